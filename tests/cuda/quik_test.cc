// QUIK's linear on the GPU against plain loops, in every configuration: activation codes and INT32 sums bit
// for bit, outputs within the bound of the contract. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backend/cuda/device.h"
#include "base/half.h"
#include "cases/linear_cases.h"
#include "cuda/gpu.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/quik/cuda/product.h"
#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::quik_cuda {
namespace {

struct Case {
  int n, k, outliers, tokens, weight_bits, activation_bits;
  bool bias = false;
};

template <typename T>
cuda::Buffer upload(const std::vector<T>& values) {
  cuda::Buffer buffer(values.size() * sizeof(T));
  buffer.upload(values.data(), values.size() * sizeof(T));
  return buffer;
}

template <typename T>
std::vector<T> download(const cuda::Buffer& buffer, size_t count) {
  std::vector<T> values(count);
  buffer.download(values.data(), count * sizeof(T));
  return values;
}

class QuikProduct : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }
};

// What one token's codes must be.
struct Token {
  float scale = 0;
  int zero = 0;
  std::vector<uint8_t> codes;
};

Token quantize(const uint16_t* x, const std::vector<int32_t>& columns, int top) {
  float lo = 0, hi = 0;
  bool finite = true;
  for (const int32_t column : columns) {
    const float value = f16_to_float(x[column]);
    finite = finite && std::isfinite(value);
    lo = std::fmin(lo, value);
    hi = std::fmax(hi, value);
  }
  Token token;
  token.codes.resize(columns.size());
  token.scale = (hi - lo) / static_cast<float>(top);
  if (!finite) {
    token.scale = NAN;
    return token;
  }
  if (token.scale == 0) {
    lo = -1;
    token.scale = 2.0f / static_cast<float>(top);
  }
  token.zero = static_cast<int>(std::lrint(-lo / token.scale));
  for (size_t j = 0; j < columns.size(); ++j) {
    const float quotient = f16_to_float(x[columns[j]]) / token.scale;
    token.codes[j] =
        static_cast<uint8_t>(std::clamp(static_cast<int>(std::lrint(quotient)) + token.zero, 0, top));
  }
  return token;
}

TEST_P(QuikProduct, EqualsPlainLoops) {
  const Case& c = GetParam();
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  const int k_int = c.k - c.outliers, top = (1 << c.activation_bits) - 1;
  const std::vector<int32_t> outlier_columns = cases::spread_columns(c.k, c.outliers);
  std::vector<int32_t> integer_columns;
  for (int32_t column = 0; column < c.k; ++column) {
    if (!std::binary_search(outlier_columns.begin(), outlier_columns.end(), column))
      integer_columns.push_back(column);
  }

  std::mt19937 generator(c.n * 31 + c.k);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> code(-(1 << (c.weight_bits - 1)), (1 << (c.weight_bits - 1)) - 1);
  group_int_a8_cuda::FewTokensShape shape;
  shape.n = c.n;
  shape.columns = k_int;
  shape.outliers = c.outliers;
  shape.weight_bits = c.weight_bits;
  std::vector<uint8_t> slots(static_cast<size_t>(shape.bytes()));
  std::vector<int8_t> codes(static_cast<size_t>(c.n) * k_int);
  std::vector<int32_t> sums(c.n);
  std::vector<float> scales(c.n), bias(c.n);
  std::vector<uint16_t> outlier_weights(static_cast<size_t>(c.n) * c.outliers);
  for (int row = 0; row < c.n; ++row) {
    int8_t* const row_codes = codes.data() + static_cast<size_t>(row) * k_int;
    uint16_t* const row_outliers = outlier_weights.data() + static_cast<size_t>(row) * c.outliers;
    for (int j = 0; j < k_int; ++j) {
      row_codes[j] = static_cast<int8_t>(code(generator));
      sums[row] += row_codes[j];
    }
    scales[row] = 0.001f + 0.01f * std::fabs(normal(generator));
    bias[row] = normal(generator);
    for (int o = 0; o < c.outliers; ++o) row_outliers[o] = float_to_f16(0.05f * normal(generator));
    place_row(shape, row, row_codes, row_outliers, slots.data());
  }
  std::vector<uint16_t> x(static_cast<size_t>(c.tokens) * c.k);
  for (uint16_t& value : x) value = float_to_f16(normal(generator));
  if (c.tokens > 2) std::fill(x.begin() + c.k, x.begin() + 2 * c.k, 0);  // an all-zero token
  if (c.tokens > 4)
    x[4 * static_cast<size_t>(c.k) + integer_columns.back()] = 0x7C00;  // and one with an infinity

  const cuda::Buffer d_slots = upload(slots), d_sums = upload(sums), d_scales = upload(scales),
                     d_bias = upload(bias), d_words = upload(column_words(c.k, outlier_columns)),
                     d_outlier_columns = upload(outlier_columns), d_x = upload(x);
  const cuda::Buffer memory(activation_bytes(c.tokens, k_int, c.outliers));
  cuda::check(cudaMemset(memory.data(), 0xFF, memory.bytes()), "filling");  // NaNs
  const Activations activations = place_activations(memory.data(), c.tokens, k_int, c.outliers);
  const int64_t written = (c.n + 7) / 8 * 8, y_stride = written + 8;
  const size_t outputs = static_cast<size_t>(c.tokens) * c.n,
               y_count = static_cast<size_t>(c.tokens * y_stride);
  const group_int_a8_cuda::FewTokensOperand weights = {.form = group_int_a8_cuda::FewTokensForm::kRows,
                                                       .shape = shape,
                                                       .slots = d_slots.as<uint8_t>(),
                                                       .row_scales = d_scales.as<float>(),
                                                       .code_sums = d_sums.as<int32_t>(),
                                                       .bias = c.bias ? d_bias.as<float>() : nullptr};
  const Columns columns = {.k = c.k,
                           .outliers = c.outliers,
                           .words = d_words.as<uint32_t>(),
                           .outlier_columns = d_outlier_columns.as<int32_t>()};
  cuda::check(
      launch_quantize(d_x.as<__half>(), c.k, c.tokens, columns, c.activation_bits, activations, stream.get()),
      "quantizing");
  stream.synchronize();
  std::vector<uint8_t> got_codes(static_cast<size_t>(c.tokens * activations.code_stride));
  memory.download(got_codes.data(), got_codes.size());

  std::vector<Token> tokens;
  std::vector<int32_t> expected(outputs);
  for (int t = 0; t < c.tokens; ++t) {
    tokens.push_back(quantize(x.data() + static_cast<size_t>(t) * c.k, integer_columns, top));
    const Token& token = tokens.back();
    for (int j = 0; j < k_int; ++j) {
      ASSERT_EQ(got_codes[t * activations.code_stride + code_position(j)], token.codes[j])
          << "token " << t << " column " << j;
    }
    for (int row = 0; row < c.n; ++row) {
      const int8_t* const row_codes = codes.data() + static_cast<size_t>(row) * k_int;
      int32_t sum = 0;
      for (int j = 0; j < k_int; ++j) sum += token.codes[j] * row_codes[j];
      expected[static_cast<size_t>(t) * c.n + row] = sum;
    }
  }

  std::vector<uint16_t> first_y;
  for (const Configuration& configuration : configurations()) {
    SCOPED_TRACE(testing::Message() << "tile of " << configuration.tile_tokens << " tokens, share "
                                    << configuration.share << ", split " << configuration.split);
    cuda::Buffer d_y = upload(std::vector<uint16_t>(y_count, 0x7E00)),
                 d_sums_out = upload(std::vector<int32_t>(outputs, 77));
    const Product product(weights, activations, c.tokens, d_y.as<__half>(), y_stride, configuration,
                          device.multiprocessors);
    cuda::check(product.launch(d_sums_out.as<int32_t>(), stream.get()), "multiplying");
    stream.synchronize();
    ASSERT_EQ(download<int32_t>(d_sums_out, outputs), expected);
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

  for (int t = 0; t < c.tokens; ++t) {
    for (int row = 0; row < c.n; ++row) {
      const Token& token = tokens[t];
      const float got = f16_to_float(first_y[static_cast<size_t>(t * y_stride) + row]);
      if (std::isnan(token.scale)) {
        ASSERT_TRUE(std::isnan(got)) << "token " << t << " row " << row;
        continue;
      }
      double y = double{token.scale} * double{scales[row]} *
                 (double(expected[static_cast<size_t>(t) * c.n + row]) - double(token.zero) * sums[row]);
      double magnitude = std::fabs(y);
      for (int o = 0; o < c.outliers; ++o) {
        const double product_o =
            double{f16_to_float(x[static_cast<size_t>(t) * c.k + outlier_columns[o]])} *
            double{f16_to_float(outlier_weights[static_cast<size_t>(row) * c.outliers + o])};
        y += product_o;
        magnitude += std::fabs(product_o);
      }
      if (c.bias) {
        y += bias[row];
        magnitude += std::fabs(bias[row]);
      }
      const double bound = 4.0 * c.k * 0x1p-24 * magnitude + std::fabs(y) * 0x1p-10 + 0x1p-24;
      ASSERT_NEAR(got, y, bound) << "token " << t << " row " << row;
    }
    for (int64_t beyond = written; beyond < y_stride; ++beyond)
      ASSERT_EQ(first_y[static_cast<size_t>(t * y_stride + beyond)], 0x7E00) << "written beyond a row's end";
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
                                           Case{264, 28672, 768, 33, 8, 8, true}));

}  // namespace
}  // namespace nibble::quik_cuda
