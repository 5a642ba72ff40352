// Integer-activation linears of 1 to 64 tokens on the GPU: activation codes and INT32 sums bit for bit those
// of the formats' reference kernels, outputs within the bound of the contract. Skipped where there is no GPU.
#include "formats/group_int_a8/cuda/few_tokens.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backend/cuda/device.h"
#include "base/half.h"
#include "base/scratch.h"
#include "base/thread_pool.h"
#include "cases/linear_cases.h"
#include "cuda/gpu.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/group_int_a8/layout.h"
#include "formats/quik/cuda/few_tokens.h"
#include "formats/quik/cuda/few_tokens_layout.h"

namespace nibble::group_int_a8_cuda {
namespace {

struct Case {
  int64_t n, k, outliers;  // outliers -1: group_int_a8
  cases::WeightSpec spec;
  std::vector<int> tokens = {1, 8, 9, 17, 33, 64};
};

template <typename T>
cuda::Buffer upload(const std::vector<T>& values) {
  cuda::Buffer buffer(std::max<size_t>(1, values.size()) * sizeof(T));
  if (!values.empty()) buffer.upload(values.data(), values.size() * sizeof(T));
  return buffer;
}

template <typename T>
std::vector<T> download(const cuda::Buffer& buffer, size_t count) {
  std::vector<T> values(count);
  buffer.download(values.data(), count * sizeof(T));
  return values;
}

int64_t rounded(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// FP16 tokens of every kind of tests/cases, as floats.
std::vector<float> half_input(const cases::LinearCase& shape, const cases::WeightSpec& spec, bool symmetric) {
  std::vector<float> x = cases::make_input(shape, spec.activation_bits, symmetric);
  for (float& value : x) value = f16_to_float(float_to_f16(value));
  return x;
}

class FewTokens : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }
};

TEST_P(FewTokens, EqualsTheReference) {
  const Case& c = GetParam();
  const bool quik = c.outliers >= 0;
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  cases::LinearCase shape = {c.n, c.k, std::max<int64_t>(0, c.outliers), 64, true};
  const PackedLinear linear =
      find_format(quik ? "quik" : "group_int_a8")->pack(cases::make_weight(shape, c.spec, quik), "linear");
  const PackedLinear* const only[] = {&linear};
  quik_cuda::FewTokensPacked packed;
  if (quik) {
    packed = quik_cuda::pack_for_few_tokens(only);
  } else {
    packed.weights = pack_for_few_tokens(only);
  }
  const FewTokensWeights& host = packed.weights;
  const bool rows = host.form == FewTokensForm::kRows;
  const cuda::Buffer slots = upload(host.slots), row_scales = upload(host.row_scales),
                     code_sums = upload(host.code_sums), bias = upload(host.bias),
                     places = upload(packed.column_places);
  const FewTokensOperand weights = {.form = host.form,
                                    .shape = host.shape,
                                    .slots = slots.as<uint8_t>(),
                                    .row_scales = row_scales.as<float>(),
                                    .code_sums = code_sums.as<int32_t>(),
                                    .bias = bias.as<float>()};
  std::vector<float> dense(static_cast<size_t>(c.n * c.k));
  linear.format->dequantize(linear, dense.data());
  const int64_t columns = host.shape.columns, stride = rounded(columns, 16),
                outlier_stride = rounded(std::max<int64_t>(1, host.shape.outliers), 8);
  ThreadPool pool(1);
  Scratch scratch;
  const std::span<const PackedLinear* const> one(only);
  const auto reference = linear.format->kernels.back()->prepare(one, pool);

  for (const int tokens : c.tokens) {
    shape.tokens = tokens;
    shape.first_token = static_cast<cases::Token>(tokens % 5);
    const std::vector<float> x = half_input(shape, c.spec, !quik);
    std::vector<uint16_t> half(x.size());
    for (size_t i = 0; i < x.size(); ++i) half[i] = float_to_f16(x[i]);
    std::vector<uint8_t> expected_codes;
    std::vector<int32_t> expected_sums;
    reference->integer_accumulators(x.data(), tokens, &expected_codes, &expected_sums, scratch, pool);
    std::vector<float> expected_y(static_cast<size_t>(tokens * c.n));
    reference->forward(x.data(), tokens, expected_y.data(), c.n, scratch, pool);

    const cuda::Buffer d_x = upload(half), codes(static_cast<size_t>(tokens * stride)),
                       scales(4 * static_cast<size_t>(tokens)), zeros(4 * static_cast<size_t>(tokens)),
                       outliers(2 * static_cast<size_t>(tokens * outlier_stride));
    const int64_t groups = host.shape.group == 0 ? 1 : (columns + host.shape.group - 1) / host.shape.group;
    const int64_t sums_per_row = host.form == FewTokensForm::kFloatGroups ? groups : 1;
    const size_t outputs = static_cast<size_t>(tokens * c.n);
    const int64_t y_stride = c.n + 3;
    cuda::Buffer y = upload(std::vector<uint16_t>(static_cast<size_t>(tokens * y_stride), 0x7E00)),
                 sums = upload(std::vector<int32_t>(outputs * static_cast<size_t>(sums_per_row), 0));
    if (quik) {
      cuda::check(quik_cuda::launch_quantize_few(d_x.as<__half>(), tokens, static_cast<int>(c.k),
                                                 {places.as<int32_t>()}, packed.activation_bits,
                                                 {.codes = codes.as<uint8_t>(),
                                                  .code_stride = stride,
                                                  .scales = scales.as<float>(),
                                                  .zeros = zeros.as<int32_t>(),
                                                  .outliers = outliers.as<__half>(),
                                                  .outlier_stride = outlier_stride},
                                                 stream.get()),
                  "quantizing");
    } else {
      cuda::check(launch_quantize_signed(d_x.as<__half>(), tokens, static_cast<int>(c.k),
                                         c.spec.activation_scale, codes.as<uint8_t>(), scales.as<float>(),
                                         rows ? zeros.as<int32_t>() : nullptr, stream.get()),
                  "quantizing");
    }
    const FewTokensActivations activations = {.codes = codes.as<uint8_t>(),
                                              .code_stride = stride,
                                              .scales = scales.as<float>(),
                                              .zeros = zeros.as<int32_t>(),
                                              .outliers = outliers.as<__half>(),
                                              .outlier_stride = outlier_stride};
    const FewTokensPlan plan = plan_few_tokens(weights, tokens, device.multiprocessors, 1 + tokens % 2);
    const auto multiply = [&](int32_t* to) {
      cuda::check(
          launch_few_tokens(weights, activations, tokens, plan, y.as<__half>(), y_stride, to, stream.get()),
          "multiplying");
      stream.synchronize();
      return download<uint16_t>(y, static_cast<size_t>(tokens * y_stride));
    };
    const std::vector<uint16_t> got_y = multiply(sums.as<int32_t>());
    EXPECT_EQ(multiply(nullptr), got_y) << "another run gives other bits";

    const auto got_codes = download<uint8_t>(codes, static_cast<size_t>(tokens * stride));
    const auto got_sums = download<int32_t>(sums, outputs * static_cast<size_t>(sums_per_row));
    const int offset = !quik && rows ? 128 : 0;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < columns; ++j) {
        ASSERT_EQ(got_codes[t * stride + j], static_cast<uint8_t>(expected_codes[t * columns + j] + offset))
            << "token " << t << " column " << j << " of " << tokens << " tokens";
      }
      for (int64_t row = 0; row < c.n; ++row) {
        const int64_t at = t * c.n + row;
        if (sums_per_row == 1) {
          // With an offset the sums are of a + 128.
          const int32_t more = offset == 0 ? 0 : offset * host.code_sums[row];
          ASSERT_EQ(got_sums[at] - more, expected_sums[at])
              << "token " << t << " row " << row << " of " << tokens << " tokens";
        } else {
          // The reference's groups may be several of the slots'.
          const int64_t reference_groups = static_cast<int64_t>(expected_sums.size()) / (tokens * c.n);
          std::vector<int32_t> joined(static_cast<size_t>(reference_groups));
          for (int64_t group = 0; group < groups; ++group)
            joined[group * host.shape.group / c.spec.group_size] += got_sums[at * groups + group];
          for (int64_t group = 0; group < reference_groups; ++group) {
            ASSERT_EQ(joined[group], expected_sums[at * reference_groups + group])
                << "token " << t << " row " << row << " group " << group << " of " << tokens << " tokens";
          }
        }
        double magnitude = std::fabs(host.bias[row]);
        for (int64_t j = 0; j < c.k; ++j) {
          magnitude += std::fabs(double{x[t * c.k + j]} * double{dense[row * c.k + j]});
        }
        const double y_value = f16_to_float(got_y[t * y_stride + row]), expected = expected_y[at];
        if (std::fabs(expected) > 65504) continue;
        const double bound = 4.0 * static_cast<double>(c.k) * 0x1p-24 * (magnitude + std::fabs(expected)) +
                             std::fabs(expected) * 0x1p-10 + 0x1p-24;
        ASSERT_NEAR(y_value, expected, bound) << "token " << t << " row " << row << " of " << tokens;
      }
      for (int64_t row = c.n; row < y_stride; ++row) ASSERT_EQ(got_y[t * y_stride + row], 0x7E00);
    }
  }
}

using Scales = cases::WeightSpec::Scales;
INSTANTIATE_TEST_SUITE_P(
    Forms, FewTokens,
    ::testing::Values(
        // group_int_a8: float, integer and two-level scales, whole rows, 8 bits; odd shapes.
        Case{48, 1024, -1, {4, 8, 128}}, Case{17, 300, -1, {4, 8, 128}},
        Case{33, 520, -1, {4, 8, 32}, {1, 3, 5, 12, 24, 40, 63}}, Case{20, 1000, -1, {4, 8, 256}},
        Case{40, 777, -1, {4, 8, 64, false, Scales::kFloat, 0.125f}},
        Case{70, 4096, -1, {4, 8, 128, false, Scales::kTwoLevel}},
        Case{19, 450, -1, {4, 8, 64, false, Scales::kAmplified, 0.125f}}, Case{3, 1, -1, {4, 8, 0}},
        Case{50, 700, -1, {4, 8, 0}}, Case{37, 1333, -1, {8, 8, 0}},
        // Several blocks per row, and two passes.
        Case{100, 11008, -1, {4, 8, 128}, {1, 16, 32, 64}}, Case{36, 28672, -1, {4, 8, 128}, {1, 16, 64}},
        Case{36, 28672, -1, {4, 8, 128, false, Scales::kTwoLevel}, {2, 33}},
        Case{4100, 256, -1, {4, 8, 128}, {1, 64}},
        // quik: 4 and 8 bits of both, outliers of odd numbers, none, and many blocks per row.
        Case{64, 1024, 64, {4, 4}}, Case{64, 1024, 64, {8, 8}}, Case{17, 700, 70, {4, 8}},
        Case{29, 333, 1, {8, 4}, {1, 2, 4, 7, 11, 30, 61}}, Case{40, 200, 100, {4, 4}},
        Case{33, 500, 0, {4, 4}}, Case{3, 33, 1, {8, 8}}, Case{90, 4096, 256, {4, 4}},
        Case{90, 4096, 256, {8, 8}}, Case{50, 11008, 512, {4, 4}, {1, 16, 32, 64}},
        Case{50, 13824, 512, {8, 8}, {1, 9, 32, 64}}, Case{36, 28672, 768, {4, 4}, {1, 16, 64}},
        Case{2100, 192, 64, {4, 4}, {1, 64}}));

// A token with an infinity among its integer columns gets outputs of NaN; its neighbours none.
TEST(FewTokensOfBadInput, StayAmongThemselves) {
  if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  const int n = 20, k = 512, tokens = 3;
  const PackedLinear linear =
      find_format("group_int_a8")->pack(cases::make_weight({n, k, 0, tokens}, {4, 8, 128}, false), "linear");
  const PackedLinear* const only[] = {&linear};
  const FewTokensWeights host = pack_for_few_tokens(only);
  std::vector<uint16_t> x(tokens * k, 0x3C00);
  x[k + 5] = 0x7C00;
  const cuda::Buffer slots = upload(host.slots), d_x = upload(x), codes(tokens * k), scales(4 * tokens),
                     y(2 * tokens * n);
  const FewTokensOperand weights = {.form = host.form, .shape = host.shape, .slots = slots.as<uint8_t>()};
  cuda::check(launch_quantize_signed(d_x.as<__half>(), tokens, k, 0, codes.as<uint8_t>(), scales.as<float>(),
                                     nullptr, stream.get()),
              "quantizing");
  cuda::check(
      launch_few_tokens(
          weights, {.codes = codes.as<uint8_t>(), .code_stride = k, .scales = scales.as<float>()}, tokens,
          plan_few_tokens(weights, tokens, device.multiprocessors), y.as<__half>(), n, nullptr, stream.get()),
      "multiplying");
  stream.synchronize();
  const auto got = download<uint16_t>(y, tokens * n);
  for (int i = 0; i < tokens * n; ++i) EXPECT_EQ(std::isnan(f16_to_float(got[i])), i / n == 1) << i;
}

}  // namespace
}  // namespace nibble::group_int_a8_cuda
