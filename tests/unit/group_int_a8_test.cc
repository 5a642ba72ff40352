// The group_int_a8 format itself: its bytes, what it refuses, and inputs at the edges of its arithmetic.
// Kernels against plain loops on ordinary shapes are in tests/conformance.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "cases/linear_cases.h"
#include "format_testing.h"
#include "formats/packed_checkpoint.h"
#include "io/safetensors.h"
#include "unit/temporary_folder.h"

namespace nibble {
namespace {

using testing::enabled_kernels;
using testing::refusal_of;
using testing::values_of;

using cases::WeightSpec;

const LinearFormat& format() { return *find_format("group_int_a8"); }

// Two rows of 34 columns in groups of 32: a group of 32 and one of 2.
QuantizedWeight small_weight(int weight_bits) {
  QuantizedWeight weight = {.out_features = 2,
                            .in_features = 34,
                            .weight_bits = weight_bits,
                            .activation_bits = 8,
                            .group_size = 32};
  for (int i = 0; i < 68; ++i) weight.codes.push_back(static_cast<int8_t>(i % 16 - 8));
  weight.scales = {0.5f, 0.25f, 2.0f, 0.125f};
  weight.bias = {10.0f, 20.0f};
  return weight;
}

// The same with integer scales: 4 * 0.125, 2 * 0.125; 16 * 0.125, 0.125.
QuantizedWeight integer_weight(bool amplified) {
  QuantizedWeight weight = small_weight(4);
  weight.scale_multipliers = {4, 2, 16, 1};
  weight.row_scales = {0.125f, 0.125f};
  if (amplified) weight.scale_amplifier = 8;
  return weight;
}

void expect_refusal(const std::string& message, const std::string& expected) {
  EXPECT_NE(message.find(expected), std::string::npos)
      << "'" << expected << "' is not in: '" << message << "'";
  EXPECT_NE(message.find("layers.3.up_proj"), std::string::npos) << "message: '" << message << "'";
}

std::vector<float> outputs(const PackedLinear& linear, const LinearKernel& kernel,
                           const std::vector<float>& x) {
  ThreadPool pool(1);
  Scratch scratch;
  const PackedLinear* pointer = &linear;
  const int64_t tokens = static_cast<int64_t>(x.size()) / linear.in_features;
  std::vector<float> y(static_cast<size_t>(tokens * linear.out_features));
  kernel.prepare({&pointer, 1}, pool)
      ->forward(x.data(), tokens, y.data(), linear.out_features, scratch, pool);
  return y;
}

TEST(GroupIntA8Format, CanonicalBytesOfFourBits) {
  const PackedLinear linear = format().pack(small_weight(4), "a");
  EXPECT_EQ(linear.find("codes")->shape(), (Shape{2, 17}));
  EXPECT_EQ(linear.find("codes")->dtype(), DType::kU8);
  const std::vector<uint8_t> codes = values_of<uint8_t>(linear, "codes");
  // -8 -7, -6 -5, ... as nibbles in two's complement, the even column low.
  EXPECT_EQ((std::vector<uint8_t>{codes.begin(), codes.begin() + 8}),
            (std::vector<uint8_t>{0x98, 0xBA, 0xDC, 0xFE, 0x10, 0x32, 0x54, 0x76}));
  EXPECT_EQ(codes[17], 0xBA);  // row 1 starts at code 34 % 16 - 8 = -6
  EXPECT_EQ(linear.find("scales")->dtype(), DType::kF16);
  EXPECT_EQ(values_of<uint16_t>(linear, "scales"), (std::vector<uint16_t>{0x3800, 0x3400, 0x4000, 0x3000}));
  EXPECT_EQ(values_of<float>(linear, "bias"), (std::vector<float>{10.0f, 20.0f}));
  EXPECT_EQ(
      linear.parameters,
      (FormatParameters{{"activation_bits", 8}, {"group_size", 32}, {"scale_kind", 0}, {"weight_bits", 4}}));
  EXPECT_EQ(linear.find("activation_scale"), nullptr);
  EXPECT_EQ(linear.weight_bytes(), 34u + 8u);
  EXPECT_EQ(format().arithmetic(linear), "int4xint8->int32");
  EXPECT_EQ(format().code_bits(linear), 4);
}

TEST(GroupIntA8Format, CanonicalBytesOfEightBitsAndOddRows) {
  QuantizedWeight weight = small_weight(8);
  weight.codes[3] = -128;
  weight.activation_scale = 0.75f;
  weight.scales[1] = 0.1f;  // no F16 number
  const PackedLinear linear = format().pack(weight, "a");
  EXPECT_EQ(values_of<int8_t>(linear, "codes"), weight.codes);
  EXPECT_EQ(values_of<float>(linear, "scales"), weight.scales);
  EXPECT_EQ(values_of<float>(linear, "activation_scale"), std::vector<float>{0.75f});
  EXPECT_EQ(format().arithmetic(linear), "int8xint8->int32");

  QuantizedWeight odd = {.out_features = 2, .in_features = 3, .weight_bits = 4, .activation_bits = 8};
  odd.codes = {1, -2, 7, -8, 3, -1};
  odd.scales = {1, 1};
  EXPECT_EQ(values_of<uint8_t>(format().pack(odd, "a"), "codes"),
            (std::vector<uint8_t>{0xE1, 0x07, 0x38, 0x0F}));
}

TEST(GroupIntA8Format, IntegerScales) {
  const PackedLinear amplified = format().pack(integer_weight(true), "a");
  EXPECT_EQ(amplified.parameter("scale_kind", -1), 1);
  EXPECT_EQ(amplified.parameter("amplifier", -1), 8);
  EXPECT_EQ(values_of<uint16_t>(amplified, "multipliers"), (std::vector<uint16_t>{4, 2, 16, 1}));
  EXPECT_EQ(amplified.find("scales"), nullptr);
  const PackedLinear two_level = format().pack(integer_weight(false), "a");
  EXPECT_EQ(two_level.parameter("scale_kind", -1), 2);
  EXPECT_EQ(values_of<uint8_t>(two_level, "multipliers"), (std::vector<uint8_t>{4, 2, 16, 1}));
  EXPECT_EQ(values_of<float>(two_level, "row_scales"), (std::vector<float>{0.125f, 0.125f}));
  // All three kinds stand for the same weight here.
  std::vector<float> floats(68), one(68), two(68);
  format().dequantize(format().pack(small_weight(4), "a"), floats.data());
  format().dequantize(amplified, one.data());
  format().dequantize(two_level, two.data());
  EXPECT_EQ(floats, one);
  EXPECT_EQ(floats, two);
  EXPECT_EQ(floats[0], -4.0f);
  EXPECT_EQ(floats[33], -7 * 0.25f);
}

TEST(GroupIntA8Format, HandComputedOutputs) {
  QuantizedWeight weight = small_weight(4);
  std::vector<float> x(34);
  x[0] = -12.7f;  // with s = 0.1: codes -127, 30, 5 (4.5 is a tie in decimal only), 1
  x[1] = 3.0f;
  x[32] = 0.5f;
  x[33] = 0.1f;
  const auto expected = [&](double s, const std::vector<int>& a, int row) {
    const int8_t* q = weight.codes.data() + row * 34;
    return s * (weight.scales[row * 2] * (a[0] * q[0] + a[1] * q[1]) +
                weight.scales[row * 2 + 1] * (a[2] * q[32] + a[3] * q[33])) +
           weight.bias[row];
  };
  const PackedLinear per_token = format().pack(weight, "a");
  weight.activation_scale = 0.05f;  // -254 saturates
  const PackedLinear fixed = format().pack(weight, "a");
  for (const LinearKernel* kernel : enabled_kernels(per_token)) {
    SCOPED_TRACE(kernel->name);
    const std::vector<float> dynamic = outputs(per_token, *kernel, x), constant = outputs(fixed, *kernel, x);
    for (int row = 0; row < 2; ++row) {
      EXPECT_NEAR(dynamic[row], expected(0.1, {-127, 30, 5, 1}, row), 1e-3);
      EXPECT_NEAR(constant[row], expected(0.05, {-127, 60, 10, 2}, row), 1e-3);
    }
  }
}

TEST(GroupIntA8Format, ActivationsAtTheEdges) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const float step : {0.0f, 0.5f, 0x1p-120f, 0x1p125f}) {
    for (const int bits : {4, 8}) {
      QuantizedWeight weight = small_weight(bits);
      weight.activation_scale = step;
      const PackedLinear linear = format().pack(weight, "a");
      // Token by token: NaN among zeros, infinity, the largest floats, zeros, subnormals, ordinary numbers.
      std::vector<float> x(6 * 34);
      x[5] = std::nanf("");
      x[34 + 33] = -kInfinity;
      x[2 * 34] = kLargest;
      x[2 * 34 + 1] = -kLargest;
      for (int j = 0; j < 34; ++j) {
        x[4 * 34 + j] = static_cast<float>(j - 17) * std::numeric_limits<float>::denorm_min();
        x[5 * 34 + j] = static_cast<float>(j * j % 23 - 11) / 7.0f;
      }
      ThreadPool pool(1);
      Scratch scratch;
      const PackedLinear* pointer = &linear;
      std::vector<uint8_t> wanted_codes, codes;
      std::vector<int32_t> wanted_sums, sums;
      const auto reference = format().kernels.back()->prepare({&pointer, 1}, pool);
      ASSERT_TRUE(reference->integer_accumulators(x.data(), 6, &wanted_codes, &wanted_sums, scratch, pool));
      const std::vector<float> wanted = outputs(linear, *format().kernels.back(), x);
      for (const LinearKernel* kernel : enabled_kernels(linear)) {
        SCOPED_TRACE(std::string(kernel->name) + " step " + std::to_string(step));
        const auto op = kernel->prepare({&pointer, 1}, pool);
        ASSERT_TRUE(op->integer_accumulators(x.data(), 6, &codes, &sums, scratch, pool));
        EXPECT_EQ(codes, wanted_codes);
        EXPECT_EQ(sums, wanted_sums);
        const std::vector<float> y = outputs(linear, *kernel, x);
        for (int i = 0; i < 12; ++i) {
          if (i < 4) {
            EXPECT_TRUE(std::isnan(y[i])) << i;
          } else {
            EXPECT_EQ(std::isfinite(y[i]), std::isfinite(wanted[i])) << i;
          }
        }
        EXPECT_EQ(y[6], 10.0f);  // zeros: the bias
        EXPECT_EQ(y[7], 20.0f);
      }
      for (const uint8_t code : wanted_codes) EXPECT_NE(static_cast<int8_t>(code), -128);
    }
  }
}

struct PackRefusal {
  const char* expected;
  std::function<void(QuantizedWeight&)> spoil;
};

TEST(GroupIntA8Format, PackRefusesWhatItCannotHold) {
  const PackRefusal refusals[] = {
      {"weights of 4 or 8 bits, not 3", [](QuantizedWeight& w) { w.weight_bits = 3; }},
      {"not by 16-bit ones", [](QuantizedWeight& w) { w.activation_bits = 16; }},
      {"not of 48", [](QuantizedWeight& w) { w.group_size = 48; }},
      {"not of -32", [](QuantizedWeight& w) { w.group_size = -32; }},
      {"zero points", [](QuantizedWeight& w) { w.zeros.assign(4, 0.0f); }},
      {"codebooks", [](QuantizedWeight& w) { w.codebooks.assign(32, 0.0f); }},
      {"sparse",
       [](QuantizedWeight& w) {
         w.sparse = {{0, 1, 1}, {3}, {1.0f}};
       }},
      {"outlier columns", [](QuantizedWeight& w) { w.outlier_columns = {2}; }},
      {"67 codes given", [](QuantizedWeight& w) { w.codes.pop_back(); }},
      {"5 scales given", [](QuantizedWeight& w) { w.scales.push_back(1.0f); }},
      {"bias of 1 values", [](QuantizedWeight& w) { w.bias.pop_back(); }},
      {"code 8 at row 1, column 3 does not fit", [](QuantizedWeight& w) { w.codes[37] = 8; }},
      {"value 0 is nan", [](QuantizedWeight& w) { w.scales[0] = NAN; }},
      {"value 3 is -1", [](QuantizedWeight& w) { w.scales[3] = -1; }},
      {"activation scale is -1", [](QuantizedWeight& w) { w.activation_scale = -1; }},
      {"activation scale is inf", [](QuantizedWeight& w) { w.activation_scale = INFINITY; }},
      {"positive normal number", [](QuantizedWeight& w) { w.activation_scale = 1e-40f; }},
      {"cannot hold a linear of 0 x 34", [](QuantizedWeight& w) { w.out_features = 0; }},
      {"3 integer scales",
       [](QuantizedWeight& w) {
         w.scale_multipliers = {1, 1, 1};
       }},
      {"1 row scales",
       [](QuantizedWeight& w) {
         w.scale_multipliers = {1, 1, 1, 1};
         w.row_scales = {1};
       }},
      {"integer scale 2 is 256",
       [](QuantizedWeight& w) {
         w = integer_weight(false);
         w.scale_multipliers[2] = 256;
       }},
      {"amplifier is 24",
       [](QuantizedWeight& w) {
         w = integer_weight(true);
         w.scale_amplifier = 24;
       }},
  };
  for (const PackRefusal& refusal : refusals) {
    QuantizedWeight weight = small_weight(4);
    refusal.spoil(weight);
    expect_refusal(refusal_of([&] { format().pack(weight, "layers.3.up_proj"); }), refusal.expected);
  }
}

struct FileRefusal {
  const char* expected;
  int kind;  // 0 float, 1 amplified, 2 two-level scales
  std::function<void(PackedLinear&)> spoil;
};

TEST(GroupIntA8Format, ValidateRefusesBrokenFiles) {
  const auto parameter = [](const char* key, int64_t value) {
    return [key, value](PackedLinear& l) { l.parameters[key] = value; };
  };
  const FileRefusal refusals[] = {
      {"weight_bits is 5", 0, parameter("weight_bits", 5)},
      {"activation_bits is 4", 0, parameter("activation_bits", 4)},
      {"group_size is 33", 0, parameter("group_size", 33)},
      {"group_size is missing", 0, [](PackedLinear& l) { l.parameters.erase("group_size"); }},
      {"group_size is -64", 0, parameter("group_size", -64)},
      {"scale_kind is 3", 0, parameter("scale_kind", 3)},
      {"scale_kind is -1", 0, parameter("scale_kind", -1)},
      {"unknown parameter 'amplifier'", 0, parameter("amplifier", 8)},
      {"unknown parameter 'amplifier'", 2, parameter("amplifier", 8)},
      {"unknown parameter 'colour'", 0, parameter("colour", 1)},
      {"amplifier is missing", 1, [](PackedLinear& l) { l.parameters.erase("amplifier"); }},
      {"amplifier is 33554432", 1, parameter("amplifier", int64_t{1} << 25)},
      {"codes: missing", 0, [](PackedLinear& l) { l.tensors.erase("codes"); }},
      {"scales: missing", 0, [](PackedLinear& l) { l.tensors.erase("scales"); }},
      {"multipliers: missing", 1, [](PackedLinear& l) { l.tensors.erase("multipliers"); }},
      {"row_scales: missing", 2, [](PackedLinear& l) { l.tensors.erase("row_scales"); }},
      {"codes: is U8 [2, 16]", 0,
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kU8, {2, 16});
       }},
      {"codes: is U8 [2, 17], expected I8 [2, 34]", 0, parameter("weight_bits", 8)},
      {"scales: is F16 [2, 2], expected F16 or F32 [2, 1]", 0, parameter("group_size", 64)},
      {"multipliers: is U8 [2, 2], expected U16", 2,
       [](PackedLinear& l) {
         l.parameters["scale_kind"] = 1;
         l.parameters["amplifier"] = 8;
       }},
      {"scales: a tensor that", 2,
       [](PackedLinear& l) {
         l.tensors["scales"] = Tensor::zeros(DType::kF32, {2, 2});
       }},
      {"row_scales: a tensor that", 1,
       [](PackedLinear& l) { l.tensors["row_scales"] = Tensor::zeros(DType::kF32, {2}); }},
      {"row_scales: value 1 is inf", 2,
       [](PackedLinear& l) { l.tensors["row_scales"].mutable_data<float>()[1] = INFINITY; }},
      {"bias: value 0 is nan", 0, [](PackedLinear& l) { l.tensors["bias"].mutable_data<float>()[0] = NAN; }},
      {"activation_scale: is F32 [2]", 0,
       [](PackedLinear& l) { l.tensors["activation_scale"] = Tensor::zeros(DType::kF32, {2}); }},
      {"activation_scale: value 0 is 0", 0,
       [](PackedLinear& l) { l.tensors["activation_scale"] = Tensor::zeros(DType::kF32, {1}); }},
      {"out of range", 0, [](PackedLinear& l) { l.out_features = 0; }},
  };
  for (const FileRefusal& refusal : refusals) {
    PackedLinear linear = format().pack(
        refusal.kind == 0 ? small_weight(4) : integer_weight(refusal.kind == 1), "layers.3.up_proj");
    refusal.spoil(linear);
    expect_refusal(refusal_of([&] { format().validate(linear); }), refusal.expected);
  }
  QuantizedWeight odd = {.out_features = 1, .in_features = 3, .weight_bits = 4, .activation_bits = 8};
  odd.codes = {1, 2, 3};
  odd.scales = {1};
  PackedLinear linear = format().pack(odd, "layers.3.up_proj");
  linear.tensors["codes"].mutable_data<uint8_t>()[1] |= 0x10;
  expect_refusal(refusal_of([&] { format().validate(linear); }), "unused high nibble");

  PackedLinear wide = format().pack(odd, "layers.3.up_proj");
  wide.in_features = 131073;
  wide.tensors["codes"] = Tensor::zeros(DType::kU8, {1, 65537});
  expect_refusal(refusal_of([&] { format().validate(wide); }), "a group of 131073 columns");
}

// 127 * sum of multiplier * |code| may be 2^31 - 1 at most: 16909320 = floor((2^31 - 1) / 127).
TEST(GroupIntA8Format, SumsThatCouldOverflowAreRefused) {
  constexpr int64_t kBudget = 16909320;
  QuantizedWeight weight = {
      .out_features = 1, .in_features = 32 * 10, .weight_bits = 4, .activation_bits = 8, .group_size = 32};
  weight.codes.assign(static_cast<size_t>(weight.in_features), 0);
  // Eight groups of 32 codes, one of 4 that brings the sum close to the budget, one of a single code.
  for (int64_t j = 0; j < 8 * 32 + 4; ++j) weight.codes[j] = -8;
  weight.codes[9 * 32] = -8;
  constexpr int64_t kWhole = 8 * 256 * 8129, kLast = (kBudget - 8 - kWhole) / 32;
  static_assert(kWhole + kLast * 32 + 8 == kBudget);
  weight.scale_multipliers.assign(10, 8129);
  weight.scale_multipliers[8] = static_cast<int32_t>(kLast);
  weight.scale_multipliers[9] = 1;
  weight.row_scales = {1.0f / 1024};
  weight.scale_amplifier = 1024;
  for (const int32_t multiplier : weight.scale_multipliers)
    weight.scales.push_back(static_cast<float>(multiplier) / 1024);
  PackedLinear linear = format().pack(weight, "layers.3.up_proj");

  // The largest activation codes reach the bound without wrapping, on every kernel.
  const std::vector<float> x(static_cast<size_t>(weight.in_features), 1.0f);
  ThreadPool pool(1);
  Scratch scratch;
  const PackedLinear* pointer = &linear;
  for (const LinearKernel* kernel : enabled_kernels(linear)) {
    std::vector<uint8_t> codes;
    std::vector<int32_t> sums;
    ASSERT_TRUE(kernel->prepare({&pointer, 1}, pool)
                    ->integer_accumulators(x.data(), 1, &codes, &sums, scratch, pool));
    EXPECT_EQ(sums, std::vector<int32_t>{static_cast<int32_t>(-127 * kBudget)}) << kernel->name;
  }
  weight.codes[9 * 32 + 31] = 1;
  expect_refusal(refusal_of([&] { format().pack(weight, "layers.3.up_proj"); }), "row 0 could reach");
}

TEST(GroupIntA8Format, PackingIsExactAndSurvivesAFile) {
  const testing::TemporaryFolder folder;
  for (const WeightSpec& spec :
       {WeightSpec{4, 8, 64}, WeightSpec{8, 8, 0, false, WeightSpec::Scales::kFloat, 0.25f},
        WeightSpec{4, 8, 32, false, WeightSpec::Scales::kTwoLevel},
        WeightSpec{8, 8, 32, false, WeightSpec::Scales::kAmplified}}) {
    SCOPED_TRACE(spec.name());
    const QuantizedWeight weight = cases::make_weight({37, 131, 0, 1, true}, spec, false);
    const PackedLinear linear = format().pack(weight, "x");
    std::vector<float> values(37 * 131);
    format().dequantize(linear, values.data());
    const int64_t groups = static_cast<int64_t>(weight.scales.size()) / 37;
    for (int64_t i = 0; i < 37 * 131; ++i) {
      const int64_t group = spec.group_size == 0 ? 0 : i % 131 / spec.group_size;
      ASSERT_EQ(values[i], static_cast<float>(weight.codes[i]) * weight.scales[i / 131 * groups + group])
          << i;
    }

    std::map<std::string, Tensor> tensors;
    for (const auto& [suffix, tensor] : linear.tensors) tensors["x." + suffix] = tensor;
    const auto path = folder.path() / (spec.name() + ".safetensors");
    write_safetensors(path, tensors);
    const PackedLinear read = packed_linear_from_tensors("x", packed_linear_config(linear),
                                                         open_safetensors(path).tensors, 37, 131, "file");
    EXPECT_EQ(read.parameters, linear.parameters);
    std::vector<float> again(values.size());
    format().dequantize(read, again.data());
    EXPECT_EQ(again, values);
    const std::vector<float> x = cases::normal_floats(131 * 3, 5);
    for (const LinearKernel* kernel : enabled_kernels(linear))
      EXPECT_EQ(outputs(read, *kernel, x), outputs(linear, *kernel, x)) << kernel->name;
  }
}

TEST(GroupIntA8Format, FusesOnlyWhatRunsAlike) {
  const PackedLinear base = format().pack(small_weight(4), "a");
  QuantizedWeight fixed = small_weight(4), other = small_weight(4), floats = small_weight(4),
                  whole = small_weight(4);
  fixed.activation_scale = 0.5f;
  other.activation_scale = 0.25f;
  floats.scales[0] = 0.1f;
  whole.group_size = 0;
  whole.scales.resize(2);
  const PackedLinear amplified = format().pack(integer_weight(true), "a");
  QuantizedWeight more = integer_weight(true);
  more.scale_amplifier = 1024;
  const auto fuse = [](const PackedLinear& a, const PackedLinear& b) { return format().can_fuse(a, b); };
  EXPECT_TRUE(fuse(base, base));
  EXPECT_TRUE(fuse(amplified, format().pack(more, "b")));
  EXPECT_TRUE(fuse(format().pack(fixed, "a"), format().pack(fixed, "b")));
  for (const QuantizedWeight& weight : {fixed, floats, whole, small_weight(8), integer_weight(false)}) {
    EXPECT_FALSE(fuse(base, format().pack(weight, "b")));
    EXPECT_FALSE(fuse(format().pack(weight, "b"), base));
  }
  EXPECT_FALSE(fuse(format().pack(fixed, "a"), format().pack(other, "b")));
  EXPECT_FALSE(fuse(amplified, format().pack(integer_weight(false), "b")));
}

}  // namespace
}  // namespace nibble
