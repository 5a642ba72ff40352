// QUIK's linear on the GPU against plain loops, in every configuration: activation codes and INT32 sums bit
// for bit, outputs within the bound of the contract. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include "cuda/gpu.h"
#include "cuda/quik_case.h"
#include "formats/quik/cuda/few_tokens.h"
#include "formats/quik/cuda/mma_layout.h"
#include "formats/quik/cuda/mma_product.h"
#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::quik_cuda {
namespace {

using testing::Case;
using testing::download;
using testing::Linear;
using testing::upload;

class QuikProduct : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }
};

TEST_P(QuikProduct, EqualsPlainLoops) {
  const Case& c = GetParam();
  const cuda::Device device = cuda::open_device(0);
  if (!cuda::is_hopper(device)) GTEST_SKIP() << "the kernel is Hopper's";
  const cuda::Stream stream;
  const Linear linear(c);
  const cuda::Buffer d_words = upload(column_words(c.k, linear.outlier_columns)),
                     d_outlier_columns = upload(linear.outlier_columns);
  const cuda::Buffer memory(activation_bytes(c.tokens, linear.k_int, c.outliers));
  cuda::check(cudaMemset(memory.data(), 0xFF, memory.bytes()), "filling");  // NaNs
  const Activations activations = place_activations(memory.data(), c.tokens, linear.k_int, c.outliers);
  const int64_t written = (c.n + 7) / 8 * 8, y_stride = written + 8;
  const size_t outputs = static_cast<size_t>(c.tokens) * c.n,
               y_count = static_cast<size_t>(c.tokens * y_stride);
  const Columns columns = {.k = c.k,
                           .outliers = c.outliers,
                           .words = d_words.as<uint32_t>(),
                           .outlier_columns = d_outlier_columns.as<int32_t>()};
  cuda::check(launch_quantize(linear.d_x.as<__half>(), c.k, c.tokens, columns, c.activation_bits, activations,
                              stream.get()),
              "quantizing");
  stream.synchronize();
  std::vector<uint8_t> got_codes(static_cast<size_t>(c.tokens * activations.code_stride));
  memory.download(got_codes.data(), got_codes.size());
  for (int t = 0; t < c.tokens; ++t) {
    for (int j = 0; j < linear.k_int; ++j) {
      ASSERT_EQ(got_codes[t * activations.code_stride + code_position(j)], linear.tokens[t].codes[j])
          << "token " << t << " column " << j;
    }
  }

  std::vector<uint16_t> first_y;
  for (const Configuration& configuration : configurations()) {
    SCOPED_TRACE(::testing::Message() << "tile of " << configuration.tile_tokens << " tokens, share "
                                      << configuration.share << ", split " << configuration.split);
    cuda::Buffer d_y = upload(std::vector<uint16_t>(y_count, 0x7E00)),
                 d_sums_out = upload(std::vector<int32_t>(outputs, 77));
    const Product product(linear.weights, activations, c.tokens, d_y.as<__half>(), y_stride, configuration,
                          device.multiprocessors);
    cuda::check(product.launch(d_sums_out.as<int32_t>(), stream.get()), "multiplying");
    stream.synchronize();
    ASSERT_EQ(download<int32_t>(d_sums_out, outputs), linear.accumulators);
    const auto got_y = download<uint16_t>(d_y, y_count);
    cuda::check(product.launch(nullptr, stream.get()), "multiplying");
    stream.synchronize();
    ASSERT_EQ(download<uint16_t>(d_y, y_count), got_y) << "a second run gives other bits";
    if (first_y.empty()) {
      first_y = got_y;
    } else {
      ASSERT_EQ(got_y, first_y) << "another configuration gives other bits";
    }
  }
  linear.expect_outputs(first_y, y_stride);
  for (int t = 0; t < c.tokens; ++t) {
    for (int64_t beyond = written; beyond < y_stride; ++beyond)
      ASSERT_EQ(first_y[static_cast<size_t>(t * y_stride + beyond)], 0x7E00) << "written beyond a row's end";
  }
}

// On Hopper the driver compiles these kernels from their PTX and emulates products of 4 bits.
TEST_P(QuikProduct, OverAWarpEqualsPlainLoops) {
  const Case& c = GetParam();
  cuda::open_device(0);
  const cuda::Stream stream;
  const Linear linear(c);
  std::vector<int32_t> places(static_cast<size_t>(c.k));
  for (size_t j = 0; j < linear.integer_columns.size(); ++j)
    places[linear.integer_columns[j]] = static_cast<int32_t>(j);
  for (size_t o = 0; o < linear.outlier_columns.size(); ++o)
    places[linear.outlier_columns[o]] = ~static_cast<int32_t>(o);
  const cuda::Buffer d_places = upload(places);
  const bool paired = multiplies_in_4_bits(c.weight_bits, c.activation_bits);
  const int bytes = mma_code_bytes(linear.k_int, c.weight_bits, c.activation_bits);
  const cuda::Buffer memory(activation_bytes(c.tokens, bytes, c.outliers));
  cuda::check(cudaMemset(memory.data(), 0xFF, memory.bytes()), "filling");  // NaNs
  const Activations activations = place_activations(memory.data(), c.tokens, bytes, c.outliers);
  cuda::check(launch_quantize_few(linear.d_x.as<__half>(), c.tokens, c.k, {.places = d_places.as<int32_t>()},
                                  c.activation_bits,
                                  {.codes = activations.codes,
                                   .code_stride = activations.code_stride,
                                   .scales = activations.scales,
                                   .zeros = activations.zeros,
                                   .outliers = activations.outliers,
                                   .outlier_stride = activations.outlier_stride,
                                   .paired = paired},
                                  stream.get()),
              "quantizing");
  stream.synchronize();
  std::vector<uint8_t> got_codes(static_cast<size_t>(c.tokens * activations.code_stride));
  memory.download(got_codes.data(), got_codes.size());
  for (int t = 0; t < c.tokens; ++t) {
    const uint8_t* const row = got_codes.data() + t * activations.code_stride;
    for (int j = 0; j < linear.k_int; ++j) {
      const int code = paired ? row[paired_code_byte(j)] >> paired_code_shift(j) & 15 : row[j];
      ASSERT_EQ(code, linear.tokens[t].codes[j]) << "token " << t << " column " << j;
    }
  }

  const size_t outputs = static_cast<size_t>(c.tokens) * c.n;
  for (const int64_t y_stride : {int64_t{c.n}, int64_t{(c.n + 15) / 8 * 8}}) {
    const size_t y_count = static_cast<size_t>(c.tokens * y_stride);
    cuda::Buffer d_y = upload(std::vector<uint16_t>(y_count, 0x7E00)),
                 d_sums_out = upload(std::vector<int32_t>(outputs, 77));
    cuda::check(launch_mma_product(linear.weights, c.activation_bits, activations, c.tokens, d_y.as<__half>(),
                                   y_stride, d_sums_out.as<int32_t>(), stream.get()),
                "multiplying");
    stream.synchronize();
    ASSERT_EQ(download<int32_t>(d_sums_out, outputs), linear.accumulators);
    const auto got_y = download<uint16_t>(d_y, y_count);
    linear.expect_outputs(got_y, y_stride);
    for (int t = 0; t < c.tokens; ++t) {
      for (int64_t beyond = c.n; beyond < y_stride; ++beyond)
        ASSERT_EQ(got_y[static_cast<size_t>(t * y_stride + beyond)], 0x7E00) << "written beyond a row's end";
    }
    cuda::check(launch_mma_product(linear.weights, c.activation_bits, activations, c.tokens, d_y.as<__half>(),
                                   y_stride, nullptr, stream.get()),
                "multiplying");
    stream.synchronize();
    ASSERT_EQ(download<uint16_t>(d_y, y_count), got_y) << "a second run gives other bits";
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, QuikProduct,
                         ::testing::Values(Case{256, 128, 0, 128, 4, 4}, Case{256, 256, 64, 128, 8, 8},
                                           Case{40, 200, 32, 5, 4, 8, true}, Case{17, 65, 1, 2, 8, 4, true},
                                           Case{1, 16, 0, 1, 4, 4}, Case{600, 1030, 33, 300, 8, 8, true},
                                           Case{576, 1536, 128, 257, 4, 4},
                                           Case{1000, 2048, 256, 130, 4, 8, true},
                                           Case{512, 4096, 256, 200, 8, 8}, Case{4224, 512, 64, 1100, 4, 4},
                                           Case{136, 11008, 512, 70, 4, 8},
                                           Case{200, 4160, 65, 16, 4, 4, true},
                                           Case{264, 28672, 768, 33, 8, 8, true}));

}  // namespace
}  // namespace nibble::quik_cuda
