// QUIK's linear on the GPU against plain loops: activation codes and INT32 sums bit for bit, outputs within
// the bound of the contract. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backend/cuda/device.h"
#include "base/half.h"
#include "cases/linear_cases.h"
#include "cuda/gpu.h"
#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {
namespace {

struct Case {
  int n, k, outliers, tokens, bits;
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

int64_t rounded(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

class QuikProduct : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }
};

TEST_P(QuikProduct, EqualsPlainLoops) {
  const Case& c = GetParam();
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  const int k_int = c.k - c.outliers, top = (1 << c.bits) - 1;
  const std::vector<int32_t> outlier_columns = cases::spread_columns(c.k, c.outliers);
  std::vector<int32_t> integer_columns;
  for (int32_t column = 0; column < c.k; ++column) {
    if (!std::binary_search(outlier_columns.begin(), outlier_columns.end(), column))
      integer_columns.push_back(column);
  }

  std::mt19937 generator(c.n * 31 + c.k);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> code(-(1 << (c.bits - 1)), (1 << (c.bits - 1)) - 1);
  const int64_t code_stride = rounded(k_int, 16), outlier_stride = rounded(std::max(c.outliers, 1), 8);
  std::vector<int8_t> codes(c.n * code_stride, 0);
  std::vector<int32_t> sums(c.n);
  std::vector<float> scales(c.n), bias(c.n);
  std::vector<uint16_t> outlier_weights(c.n * outlier_stride, 0);
  for (int row = 0; row < c.n; ++row) {
    for (int j = 0; j < k_int; ++j) {
      codes[row * code_stride + j] = static_cast<int8_t>(code(generator));
      sums[row] += codes[row * code_stride + j];
    }
    scales[row] = 0.001f + 0.01f * std::fabs(normal(generator));
    bias[row] = normal(generator);
    for (int o = 0; o < c.outliers; ++o)
      outlier_weights[row * outlier_stride + o] = float_to_f16(0.05f * normal(generator));
  }
  std::vector<uint16_t> x(static_cast<size_t>(c.tokens) * c.k);
  for (uint16_t& value : x) value = float_to_f16(normal(generator));
  if (c.tokens > 2) std::fill(x.begin() + c.k, x.begin() + 2 * c.k, 0);  // an all-zero token

  const cuda::Buffer d_codes = upload(codes), d_sums = upload(sums), d_scales = upload(scales),
                     d_bias = upload(bias), d_outlier_weights = upload(outlier_weights),
                     d_integer = upload(integer_columns), d_outlier = upload(outlier_columns),
                     d_x = upload(x);
  const cuda::Buffer a_codes(c.tokens * code_stride), a_scales(4 * c.tokens), a_zeros(4 * c.tokens),
      a_outliers(2 * c.tokens * outlier_stride);
  const size_t outputs = static_cast<size_t>(c.tokens) * c.n;
  cuda::Buffer d_y = upload(std::vector<uint16_t>(outputs, 0x7E00)),
               d_sums_out = upload(std::vector<int32_t>(outputs, 77));
  const Weights weights = {.n = c.n,
                           .k_int = k_int,
                           .outliers = c.outliers,
                           .codes = d_codes.as<int8_t>(),
                           .code_stride = code_stride,
                           .scales = d_scales.as<float>(),
                           .code_sums = d_sums.as<int32_t>(),
                           .outlier_weights = d_outlier_weights.as<__half>(),
                           .outlier_stride = outlier_stride,
                           .bias = c.bias ? d_bias.as<float>() : nullptr,
                           .integer_columns = d_integer.as<int32_t>(),
                           .outlier_columns = d_outlier.as<int32_t>()};
  const Activations activations = {.tokens = c.tokens,
                                   .codes = a_codes.as<uint8_t>(),
                                   .code_stride = code_stride,
                                   .scales = a_scales.as<float>(),
                                   .zeros = a_zeros.as<int32_t>(),
                                   .outliers = a_outliers.as<__half>(),
                                   .outlier_stride = outlier_stride};
  const Product product(weights, activations);
  cuda::check(launch_quantize(d_x.as<__half>(), weights, c.bits, activations, stream.get()), "quantizing");
  cuda::check(
      product.launch(d_y.as<__half>(), d_sums_out.as<int32_t>(), device.multiprocessors, stream.get()),
      "multiplying");
  stream.synchronize();
  const auto got_codes = download<uint8_t>(a_codes, c.tokens * code_stride);
  const auto got_sums = download<int32_t>(d_sums_out, outputs);
  const auto got_y = download<uint16_t>(d_y, outputs);
  cuda::check(product.launch(d_y.as<__half>(), nullptr, device.multiprocessors, stream.get()), "multiplying");
  stream.synchronize();
  EXPECT_EQ(download<uint16_t>(d_y, outputs), got_y) << "a second run gives other bits";

  for (int t = 0; t < c.tokens; ++t) {
    float lo = 0, hi = 0;
    for (const int32_t column : integer_columns) {
      lo = std::fmin(lo, f16_to_float(x[t * c.k + column]));
      hi = std::fmax(hi, f16_to_float(x[t * c.k + column]));
    }
    float s = (hi - lo) / static_cast<float>(top);
    if (s == 0) {
      lo = -1;
      s = 2.0f / static_cast<float>(top);
    }
    const int z = static_cast<int>(std::lrint(-lo / s));
    std::vector<int> u(k_int);
    for (int j = 0; j < k_int; ++j) {
      const float quotient = f16_to_float(x[t * c.k + integer_columns[j]]) / s;
      u[j] = std::clamp(static_cast<int>(std::lrint(quotient)) + z, 0, top);
      ASSERT_EQ(got_codes[t * code_stride + j], u[j]) << "token " << t << " column " << j;
    }
    for (int row = 0; row < c.n; ++row) {
      int32_t sum = 0;
      for (int j = 0; j < k_int; ++j) sum += u[j] * codes[row * code_stride + j];
      ASSERT_EQ(got_sums[static_cast<size_t>(t) * c.n + row], sum) << "token " << t << " row " << row;
      double y = double{s} * double{scales[row]} * (double(sum) - double(z) * sums[row]),
             magnitude = std::fabs(y);
      for (int o = 0; o < c.outliers; ++o) {
        const double product_o = double{f16_to_float(x[t * c.k + outlier_columns[o]])} *
                                 double{f16_to_float(outlier_weights[row * outlier_stride + o])};
        y += product_o;
        magnitude += std::fabs(product_o);
      }
      if (c.bias) {
        y += bias[row];
        magnitude += std::fabs(bias[row]);
      }
      const double bound = 4.0 * c.k * 0x1p-24 * magnitude + std::fabs(y) * 0x1p-10 + 0x1p-24;
      ASSERT_NEAR(f16_to_float(got_y[static_cast<size_t>(t) * c.n + row]), y, bound)
          << "token " << t << " row " << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, QuikProduct,
                         ::testing::Values(Case{256, 128, 0, 128, 4}, Case{256, 256, 64, 128, 8},
                                           Case{40, 200, 32, 5, 4, true}, Case{17, 65, 1, 2, 8, true},
                                           Case{1, 16, 0, 1, 4}, Case{600, 1030, 33, 300, 8, true},
                                           Case{576, 1536, 128, 257, 8}, Case{1000, 2048, 256, 130, 4, true},
                                           Case{512, 4096, 256, 200, 8}));

}  // namespace
}  // namespace nibble::quik_cuda
