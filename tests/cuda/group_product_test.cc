// Prompts of group_int_a8 with group scales on the GPU, in every configuration: activation codes and the sums
// before the token's scale bit for bit those of plain loops, outputs rounded from them. Skipped where there
// is no GPU.
#include "formats/group_int_a8/cuda/group_product.h"

#include <cmath>
#include <cstring>
#include <tuple>

#include "cases/linear_cases.h"
#include "cuda/device_arrays.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/group_int_a8/cuda/group_product_layout.h"
#include "formats/group_int_a8/layout.h"
#include "formats/quik/cuda/product.h"

namespace nibble::group_int_a8_cuda {
namespace {

using cuda::testing::DeviceArray;

struct Case {
  int64_t n, k;
  cases::WeightSpec spec;
  std::vector<int> tokens;
  bool wide = false;  // scales that are no F16 numbers
};

// Steps and codes of tokens by the README.
struct Codes {
  std::vector<float> scales;  // [tokens]
  std::vector<int8_t> of;     // [tokens, k]
};
Codes quantize(const std::vector<float>& x, int64_t k, float activation_scale) {
  Codes codes;
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(k)) {
    float largest = 0;
    for (int64_t j = 0; j < k; ++j) {
      const float magnitude = std::fabs(x[first + j]);
      largest = magnitude > largest || std::isnan(magnitude) ? magnitude : largest;
    }
    const float scale = activation_scale > 0 ? activation_scale : largest / 127.0f;
    const bool empty = !std::isfinite(largest) || scale == 0;
    codes.scales.push_back(std::isfinite(largest) ? scale : NAN);
    for (int64_t j = 0; j < k; ++j) {
      const float quotient = empty ? 0 : std::nearbyint(x[first + j] / scale);
      codes.of.push_back(static_cast<int8_t>(std::fmin(std::fmax(quotient, -127.0f), 127.0f)));
    }
  }
  return codes;
}

// Random tokens in F16, one of which has an infinity where there are many, and their codes.
struct Input {
  std::vector<uint16_t> halves;  // [tokens, k]
  Codes codes;

  Input(const Case& c, int tokens) {
    std::vector<float> x = cases::make_input({c.n, c.k, 0, tokens, true}, 8, true);
    if (tokens > 12) x[11 * c.k + c.k / 2] = INFINITY;
    for (float& value : x) {
      halves.push_back(float_to_f16(value));
      value = f16_to_float(halves.back());
    }
    codes = quantize(x, c.k, c.spec.activation_scale);
  }
};

// That an output is `scaled`, a token's sum times its scales, plus the bias, rounded to F16; NaN for a token
// whose scale is.
void expect_output(uint16_t bits, float token_scale, double scaled, float bias) {
  const float got = f16_to_float(bits);
  if (std::isnan(token_scale)) {
    ASSERT_TRUE(std::isnan(got));
    return;
  }
  const double value = scaled + bias;
  if (std::fabs(value) > 65000) return;
  const double bound = (std::fabs(scaled) + std::fabs(bias)) * 0x1p-21 + std::fabs(value) * 0x1p-11 + 0x1p-24;
  ASSERT_NEAR(got, value, bound);
}

// The totals of one output by groups of the slots: 16 P and their scales.
struct Groups {
  std::vector<int32_t> sums;
  std::vector<float> scales;
  std::vector<int32_t> multipliers;

  int32_t total(bool integers, int split) const {
    const auto per_block = static_cast<int64_t>(sums.size()) / blocks;
    float parts[2] = {};
    int32_t integer = 0;
    for (int part = 0; part < split; ++part) {
      for (int64_t i = part * blocks / split * per_block; i < (part + 1) * blocks / split * per_block; ++i) {
        integer += multipliers[i] * (sums[i] / 16);
        parts[part] = std::fmaf(scales[i], static_cast<float>(sums[i]), parts[part]);
      }
    }
    if (integers) return integer;
    const float all = parts[0] + parts[1];
    int32_t bits;
    std::memcpy(&bits, &all, 4);
    return bits;
  }
  int64_t blocks = 0;  // of 128 columns
};

class GroupProductTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }
};

TEST_P(GroupProductTest, EqualsPlainLoops) {
  const Case& c = GetParam();
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  const int64_t n = c.n, k = c.k;
  QuantizedWeight weight = cases::make_weight({n, k, 0, 1, true}, c.spec, false);
  if (c.wide) {
    for (float& scale : weight.scales) scale *= 1.0001f;
  }
  const PackedLinear linear = find_format("group_int_a8")->pack(weight, "linear");
  const PackedLinear* const only[] = {&linear};
  const FewTokensWeights host = pack_for_few_tokens(only);
  ASSERT_EQ(host.shape.scale_bytes, c.wide ? 4 : 2);
  const bool integers = host.form == FewTokensForm::kIntegerGroups;
  const group_int_a8::Layout layout = group_int_a8::read_layout(linear);
  const DeviceArray<uint8_t> slots(host.slots);
  const DeviceArray<float> row_scales(integers ? host.row_scales : std::vector<float>(1)), bias(host.bias);
  const FewTokensOperand weights = {.form = host.form,
                                    .shape = host.shape,
                                    .slots = slots.device(),
                                    .row_scales = integers ? row_scales.device() : nullptr,
                                    .bias = bias.device()};

  for (const int tokens : c.tokens) {
    SCOPED_TRACE(::testing::Message() << tokens << " tokens");
    const Input input(c, tokens);
    const Codes& codes = input.codes;
    const int64_t stride = (k + 63) / 64 * 64;
    DeviceArray<uint16_t> d_x(input.halves);
    DeviceArray<uint8_t> d_codes(std::vector<uint8_t>(static_cast<size_t>(tokens * stride), 0xEE));
    DeviceArray<float> d_scales(std::vector<float>(static_cast<size_t>((tokens + 3) / 4 * 4), NAN));
    const PromptActivations activations = {
        .codes = d_codes.device(), .code_stride = stride, .scales = d_scales.device()};
    cuda::check(
        launch_quantize_prompt(reinterpret_cast<const __half*>(d_x.device()), tokens, static_cast<int>(k),
                               c.spec.activation_scale, host.shape.group, activations, stream.get()),
        "quantizing");
    stream.synchronize();
    d_codes.download();
    d_scales.download();
    for (int64_t t = 0; t < tokens; ++t) {
      if (std::isfinite(codes.scales[t])) {
        ASSERT_EQ(d_scales.host()[t], codes.scales[t]) << "token " << t;
      } else {
        ASSERT_TRUE(std::isnan(d_scales.host()[t])) << "token " << t;
      }
      for (int64_t j = 0; j < stride; ++j) {
        const int place = group_code_position(static_cast<int>(j), host.shape.group);
        ASSERT_EQ(static_cast<int8_t>(d_codes.host()[t * stride + place]), j < k ? codes.of[t * k + j] : 0)
            << "token " << t << " column " << j;
      }
    }

    // [tokens, n]
    std::vector<Groups> groups(static_cast<size_t>(tokens * n));
    std::vector<int8_t> row_codes(static_cast<size_t>(k));
    const int64_t blocks = (k + 127) / 128, per_row = blocks * (128 / host.shape.group);
    for (int64_t row = 0; row < n; ++row) {
      layout.unpack_row(row, row_codes.data());
      for (int64_t t = 0; t < tokens; ++t) {
        Groups& own = groups[t * n + row];
        own.blocks = blocks;
        for (int64_t g = 0; g < per_row; ++g) {
          int32_t sum = 0;
          const int64_t from = g * host.shape.group, to = std::min(k, from + host.shape.group);
          for (int64_t j = from; j < to; ++j) sum += codes.of[t * k + j] * row_codes[j];
          const bool inside = from < k;
          const int64_t place = row * layout.groups + from / layout.group_size;
          own.sums.push_back(16 * sum);
          own.scales.push_back(inside && !integers ? layout.scales[place] : 0);
          own.multipliers.push_back(inside && integers ? layout.multipliers[place] : 0);
        }
      }
    }

    const int64_t written = (n + 7) / 8 * 8, y_stride = written + 8;
    for (const GroupConfiguration& configuration : group_configurations(weights)) {
      SCOPED_TRACE(::testing::Message() << "tile of " << configuration.tile_tokens << " tokens, share "
                                        << configuration.share << ", split " << configuration.split);
      DeviceArray<uint16_t> y(std::vector<uint16_t>(static_cast<size_t>(tokens * y_stride), 0x7E00));
      DeviceArray<int32_t> totals(std::vector<int32_t>(static_cast<size_t>(tokens * n), 77));
      const GroupProduct product(weights, activations, tokens, reinterpret_cast<__half*>(y.device()),
                                 y_stride, configuration, device.multiprocessors);
      cuda::check(product.launch(totals.device(), stream.get()), "multiplying");
      stream.synchronize();
      y.download();
      totals.download();
      const std::vector<uint16_t> first_run = y.host();
      cuda::check(product.launch(nullptr, stream.get()), "multiplying");
      stream.synchronize();
      y.download();
      ASSERT_EQ(y.host(), first_run) << "a second run gives other bits";
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t row = 0; row < n; ++row) {
          const int32_t expected = groups[t * n + row].total(integers, configuration.split);
          ASSERT_EQ(totals.host()[t * n + row], expected) << "token " << t << " row " << row;
          float total;
          std::memcpy(&total, &expected, 4);
          const double scaled = double{codes.scales[t]} *
                                (integers ? double{layout.row_scales[row]} * expected : double{total} / 16);
          ASSERT_NO_FATAL_FAILURE(
              expect_output(y.host()[t * y_stride + row], codes.scales[t], scaled, host.bias[row]))
              << "token " << t << " row " << row;
        }
        for (int64_t row = written; row < y_stride; ++row)
          ASSERT_EQ(y.host()[t * y_stride + row], 0x7E00) << "written beyond a row's end";
      }
    }
  }
}

using Scales = cases::WeightSpec::Scales;
INSTANTIATE_TEST_SUITE_P(
    Shapes, GroupProductTest,
    ::testing::Values(Case{256, 512, {4, 8, 128}, {128, 40}}, Case{40, 200, {4, 8, 128}, {5, 65}},
                      Case{17, 129, {4, 8, 128}, {33}}, Case{600, 1030, {4, 8, 128}, {150}},
                      Case{300, 2048, {4, 8, 256, false, Scales::kFloat, 0.125f}, {64, 130}},
                      Case{4300, 384, {4, 8, 128}, {257}}, Case{136, 11008, {4, 8, 128}, {35}},
                      Case{264, 1024, {4, 8, 128, false, Scales::kTwoLevel}, {1, 48, 129}},
                      Case{100, 900, {4, 8, 256, false, Scales::kAmplified, 0.125f}, {70}},
                      Case{4300, 256, {4, 8, 128, false, Scales::kTwoLevel}, {200}},
                      Case{72, 28672, {4, 8, 128, false, Scales::kTwoLevel}, {33}},
                      Case{140, 700, {4, 8, 64}, {140}}, Case{33, 520, {4, 8, 32}, {66}},
                      Case{129, 450, {4, 8, 64, false, Scales::kAmplified}, {130}},
                      Case{65, 333, {4, 8, 32, false, Scales::kTwoLevel}, {34}},
                      Case{80, 640, {4, 8, 128}, {129}, true}, Case{33, 520, {4, 8, 32}, {66}, true},
                      Case{70, 300, {4, 8, 64}, {31}, true}));

// Groups whose multipliers fold, through quik's product.
using FoldedProduct = GroupProductTest;

TEST_P(FoldedProduct, EqualsPlainLoops) {
  const Case& c = GetParam();
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  const int64_t n = c.n, k = c.k;
  const PackedLinear linear =
      find_format("group_int_a8")->pack(cases::make_weight({n, k, 0, 1, true}, c.spec, false), "linear");
  const PackedLinear* const only[] = {&linear};
  const FewTokensWeights host = pack_for_few_tokens(only);
  ASSERT_TRUE(host.folds);
  const group_int_a8::Layout layout = group_int_a8::read_layout(linear);
  const DeviceArray<uint8_t> slots(host.slots);
  const DeviceArray<float> row_scales(host.row_scales), bias(host.bias);
  const DeviceArray<int32_t> code_sums(host.code_sums);
  const FewTokensOperand weights = {.form = host.form,
                                    .shape = host.shape,
                                    .folds = true,
                                    .slots = slots.device(),
                                    .row_scales = row_scales.device(),
                                    .code_sums = code_sums.device(),
                                    .bias = bias.device()};
  for (const int tokens : c.tokens) {
    SCOPED_TRACE(::testing::Message() << tokens << " tokens");
    const Input input(c, tokens);
    const Codes& codes = input.codes;
    const DeviceArray<uint16_t> d_x(input.halves);
    const cuda::Buffer memory(quik_cuda::activation_bytes(tokens, static_cast<int>(k), 0));
    cuda::check(cudaMemset(memory.data(), 0xFF, memory.bytes()), "filling");  // NaNs
    const quik_cuda::Activations room =
        quik_cuda::place_activations(memory.data(), tokens, static_cast<int>(k), 0);
    cuda::check(launch_quantize_prompt(reinterpret_cast<const __half*>(d_x.device()), tokens,
                                       static_cast<int>(k), c.spec.activation_scale, host.shape.group,
                                       {.codes = room.codes,
                                        .code_stride = room.code_stride,
                                        .scales = room.scales,
                                        .zeros = room.zeros},
                                       stream.get()),
                "quantizing");

    std::vector<int32_t> sums(static_cast<size_t>(tokens * n));  // before the zero points
    std::vector<int8_t> row_codes(static_cast<size_t>(k));
    std::vector<int32_t> folded(static_cast<size_t>(k));
    for (int64_t row = 0; row < n; ++row) {
      layout.unpack_row(row, row_codes.data());
      for (int64_t j = 0; j < k; ++j)
        folded[j] = row_codes[j] *
                    static_cast<int32_t>(layout.multipliers[row * layout.groups + j / layout.group_size]);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t j = 0; j < k; ++j) sums[t * n + row] += (codes.of[t * k + j] + 128) * folded[j];
      }
    }

    const int64_t written = (n + 7) / 8 * 8, y_stride = written + 8;
    for (const quik_cuda::Configuration& configuration : quik_cuda::configurations()) {
      SCOPED_TRACE(::testing::Message() << "tile of " << configuration.tile_tokens << " tokens, share "
                                        << configuration.share << ", split " << configuration.split);
      DeviceArray<uint16_t> y(std::vector<uint16_t>(static_cast<size_t>(tokens * y_stride), 0x7E00));
      DeviceArray<int32_t> totals(std::vector<int32_t>(static_cast<size_t>(tokens * n), 77));
      const quik_cuda::Product product(weights, room, tokens, reinterpret_cast<__half*>(y.device()), y_stride,
                                       configuration, device.multiprocessors);
      cuda::check(product.launch(totals.device(), stream.get()), "multiplying");
      stream.synchronize();
      y.download();
      totals.download();
      ASSERT_EQ(totals.host(), sums);
      const std::vector<uint16_t> first_run = y.host();
      cuda::check(product.launch(nullptr, stream.get()), "multiplying");
      stream.synchronize();
      y.download();
      ASSERT_EQ(y.host(), first_run) << "a second run gives other bits";
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t row = 0; row < n; ++row) {
          const double scaled = double{codes.scales[t]} * double{layout.row_scales[row]} *
                                (double{1} * sums[t * n + row] - 128.0 * host.code_sums[row]);
          ASSERT_NO_FATAL_FAILURE(
              expect_output(y.host()[t * y_stride + row], codes.scales[t], scaled, host.bias[row]))
              << "token " << t << " row " << row;
        }
        for (int64_t row = written; row < y_stride; ++row)
          ASSERT_EQ(y.host()[t * y_stride + row], 0x7E00) << "written beyond a row's end";
      }
    }
  }
}

constexpr cases::WeightSpec folded(int64_t group, float activation_scale = 0) {
  return {4, 8, group, false, Scales::kTwoLevel, activation_scale, false, 16};
}
INSTANTIATE_TEST_SUITE_P(
    Shapes, FoldedProduct,
    ::testing::Values(Case{264, 1024, folded(128), {17, 48, 129}}, Case{17, 129, folded(128), {33}},
                      Case{600, 1030, folded(64), {300}}, Case{4300, 256, folded(128, 0.125f), {200}},
                      Case{72, 28672, folded(128), {33}}, Case{65, 333, folded(32), {34}},
                      Case{129, 450, folded(64), {130}}, Case{100, 900, folded(256), {70}}));

}  // namespace
}  // namespace nibble::group_int_a8_cuda
