// Integer group scales: within the sums that INT32 holds, and codes chosen for them as they are.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "formats/format.h"
#include "quantizer_cases.h"
#include "quantizers/uniform_grid.h"

namespace nibble {
namespace {

struct Kind {
  const char* name;
  int64_t amplifier;
};

class IntegerScales : public testing::TestWithParam<Kind> {};

// Every row's sum of integer scales times the largest codes and activation codes, whatever the width of the
// row: 127 * 2^(b-1) * sum of multiplier * columns.
void expect_within_int32(const QuantizedWeight& weight) {
  const int64_t groups = static_cast<int64_t>(weight.scales.size()) / weight.out_features;
  for (int64_t row = 0; row < weight.out_features; ++row) {
    int64_t sum = 0;
    for (int64_t group = 0; group < groups; ++group) {
      sum += weight.scale_multipliers[row * groups + group] *
             std::min(weight.group_size, weight.in_features - group * weight.group_size);
    }
    EXPECT_LT(127 * (int64_t{1} << (weight.weight_bits - 1)) * sum, int64_t{1} << 31) << "row " << row;
  }
}

TEST_P(IntegerScales, CodesAreNearestForTheScaleThatIsStored) {
  ThreadPool pool(2);
  for (const int64_t bits : {4, 8}) {
    QuantizerCase made = make_case(21, 200);
    made.settings.format = "group_int_a8";
    made.settings.weight_bits = bits;
    made.settings.activation_bits = 8;
    made.settings.group_size = 64;
    made.settings.scale_kind = GetParam().name;
    made.settings.scale_amplifier = GetParam().amplifier;
    made.settings.check("test");
    QuantizerInput input = input_of(made);
    input.f16_scales = true;  // of float scales only
    const QuantizedWeight weight = find_quantizer("rtn").quantize(input, pool);
    ASSERT_EQ(weight.scale_multipliers.size(), 21u * 4);
    const bool amplified = std::string(GetParam().name) == "integer";
    EXPECT_EQ(weight.scale_amplifier != 0, amplified);
    if (GetParam().amplifier != 0) {
      EXPECT_EQ(weight.scale_amplifier, GetParam().amplifier);
    }
    const int lowest = -(1 << (bits - 1)), highest = -lowest - 1;
    for (int64_t i = 0; i < 21 * 200; ++i) {
      const int64_t row = i / 200, group = row * 4 + i % 200 / 64;
      const float scale = weight.row_scales[row] * static_cast<float>(weight.scale_multipliers[group]);
      ASSERT_EQ(scale, weight.scales[group]);
      ASSERT_EQ(weight.codes[i], std::clamp<long>(std::lrint(made.weight[i] / scale), lowest, highest)) << i;
      if (amplified) {
        ASSERT_EQ(weight.row_scales[row], 1.0f / static_cast<float>(weight.scale_amplifier));
      }
    }
    expect_within_int32(weight);
    EXPECT_NO_THROW(find_format("group_int_a8")->pack(weight, "x"));

    // Rounding a scale costs little where it is not forced to be coarse.
    made.settings.scale_kind = "float";
    made.settings.scale_amplifier = 0;
    const QuantizerInput& plain = input_of(made);
    const QuantizedWeight reference = find_quantizer("rtn").quantize(plain, pool);
    const double error = quantization_error(plain, dequantize(weight).data(), pool).weight_relative;
    const double best = quantization_error(plain, dequantize(reference).data(), pool).weight_relative;
    // A given amplifier suits 4 bits; the scales of 8 bits are small integers then.
    if (GetParam().amplifier == 0) {
      EXPECT_LT(error, best * 1.05) << bits << " bits";
    } else if (bits == 4) {
      EXPECT_LT(error, best * 2) << bits << " bits";
    }
  }
}

// Group scales that are `ratios` times 2^-6, by symmetric 4-bit rounding: the largest weight of a group is 7
// times its scale, and the others are what random codes stand for.
struct ScaleRow {
  std::vector<float> weight;
  LinearSettings settings;
  QuantizerInput input;
};

constexpr int64_t kRowGroup = 32;

ScaleRow row_of_scales(const std::vector<double>& ratios, int64_t steps) {
  ScaleRow made;
  for (size_t group = 0; group < ratios.size(); ++group) {
    for (int64_t i = 0; i < kRowGroup; ++i) {
      const int64_t code = i == 0 ? 7 : (static_cast<int64_t>(group) * 5 + i * 3) % 15 - 7;
      made.weight.push_back(static_cast<float>(ratios[group] * static_cast<double>(code) / 64));
    }
  }
  made.settings.format = "group_int_a8";
  made.settings.activation_bits = 8;
  made.settings.group_size = kRowGroup;
  made.settings.scale_kind = "two_level";
  made.settings.scale_steps = steps;
  made.settings.check("test");
  return made;
}

QuantizedWeight quantized(ScaleRow& row) {
  ThreadPool pool(1);
  row.input = {.name = "x",
               .weight = row.weight.data(),
               .out_features = 1,
               .in_features = static_cast<int64_t>(row.weight.size()),
               .settings = &row.settings};
  QuantizedWeight weight = find_quantizer("rtn").quantize(row.input, pool);
  EXPECT_NO_THROW(find_format("group_int_a8")->pack(weight, "x"));
  return weight;
}

TEST(TwoLevelScales, AreExactWhereTheyAreMultiples) {
  for (const int32_t steps : {1, 2, 3, 7, 16, 100, 255}) {
    // Every multiplier there is, in one row.
    std::vector<double> all;
    std::vector<int32_t> expected;
    for (int32_t i = 1; i <= steps; ++i) {
      all.push_back(i);
      expected.push_back(i);
    }
    ScaleRow row = row_of_scales(all, steps);
    const QuantizedWeight weight = quantized(row);
    EXPECT_EQ(weight.scale_multipliers, expected);
    EXPECT_EQ(weight.row_scales, std::vector<float>{1.0f / 64});
    EXPECT_EQ(dequantize(weight), row.weight) << steps;
  }
  // The largest scale need not have the largest multiplier.
  for (const int32_t top : {9, 11, 13, 14, 15, 16}) {
    SCOPED_TRACE(top);
    ScaleRow row = row_of_scales({3, static_cast<double>(top), 7, 1, 8}, 16);
    const QuantizedWeight weight = quantized(row);
    EXPECT_EQ(weight.scale_multipliers, (std::vector<int32_t>{3, top, 7, 1, 8}));
    EXPECT_EQ(dequantize(weight), row.weight);
  }
}

TEST(TwoLevelScales, HaveMultipliersOfOneToTheSteps) {
  ThreadPool pool(2);
  for (const int64_t bits : {4, 8}) {
    for (const int64_t steps : {0, 1, 2, 5, 16, 255}) {
      QuantizerCase made = make_case(21, 200);
      // Groups of scales far below the others': as near as a multiplier of 1 comes.
      for (int64_t i = 0; i < 21 * 200; ++i) made.weight[i] *= i % 200 < 64 && i > 2000 ? 1e-4f : 1.0f;
      made.settings.format = "group_int_a8";
      made.settings.weight_bits = bits;
      made.settings.activation_bits = 8;
      made.settings.group_size = 64;
      made.settings.scale_kind = "two_level";
      made.settings.scale_steps = steps;
      const QuantizedWeight weight = find_quantizer("rtn").quantize(input_of(made), pool);
      const auto [least, most] =
          std::minmax_element(weight.scale_multipliers.begin(), weight.scale_multipliers.end());
      EXPECT_EQ(*least, 1) << steps;
      const int64_t expected = steps > 0 ? steps : bits == 4 ? 16 : 255;
      EXPECT_EQ(made.settings.two_level_steps(), expected);
      EXPECT_LE(*most, expected);
      EXPECT_GT(*most, expected / 2);
    }
  }
}

// Sum over the groups of squared relative errors of the scales, with the unit that gives the largest scale
// the multiplier `top`.
double scale_error(const std::vector<double>& ratios, int32_t top) {
  const double unit = *std::max_element(ratios.begin(), ratios.end()) / top;
  double sum = 0;
  for (const double ratio : ratios) {
    const double error = std::clamp(std::nearbyint(ratio / unit), 1.0, 1.0 * top) * unit / ratio - 1;
    sum += error * error;
  }
  return sum;
}

TEST(TwoLevelScales, HaveTheUnitOfLeastError) {
  std::mt19937 engine(7);
  std::uniform_real_distribution<double> uniform(0.3, 1.0);
  int smaller = 0;
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<double> ratios;
    for (int group = 0; group < 9; ++group) ratios.push_back(uniform(engine));
    ScaleRow row = row_of_scales(ratios, 16);
    const QuantizedWeight weight = quantized(row);
    const int32_t top = *std::max_element(weight.scale_multipliers.begin(), weight.scale_multipliers.end());
    double least = scale_error(ratios, 16);
    for (int32_t other = 9; other < 16; ++other) least = std::min(least, scale_error(ratios, other));
    EXPECT_NEAR(scale_error(ratios, top), least, 1e-4 * least) << "trial " << trial << ", top " << top;
    smaller += top < 16;
  }
  EXPECT_GT(smaller, 10);
}

// At these widths full multipliers would overflow.
TEST(IntegerScalesOfWideRows, AreSmallerMultipliers) {
  ThreadPool pool(2);
  const int64_t k = 28672;
  std::vector<float> weights(static_cast<size_t>(3 * k));
  for (int64_t i = 0; i < 3 * k; ++i) weights[i] = static_cast<float>((i * 7919) % 201 - 100) / 100.0f;
  LinearSettings settings;
  settings.format = "group_int_a8";
  settings.activation_bits = 8;
  settings.group_size = 128;
  for (const auto& [kind, bits] : std::vector<std::pair<const char*, int64_t>>{
           {"two_level", 4}, {"two_level", 8}, {"integer", 4}, {"integer", 8}}) {
    SCOPED_TRACE(kind);
    settings.scale_kind = kind;
    settings.weight_bits = bits;
    settings.scale_steps = std::string(kind) == "two_level" ? 255 : 0;
    const QuantizerInput input = {
        .name = "x", .weight = weights.data(), .out_features = 3, .in_features = k, .settings = &settings};
    const QuantizedWeight weight = find_quantizer("rtn").quantize(input, pool);
    expect_within_int32(weight);
    EXPECT_NO_THROW(find_format("group_int_a8")->pack(weight, "x"));
    // At least half of what the row may sum up to is used: the scales are as fine as they can be.
    int64_t sum = 0;
    for (int64_t group = 0; group < 224; ++group) sum += 128 * int64_t{weight.scale_multipliers[group]};
    EXPECT_GT(127 * (int64_t{1} << (bits - 1)) * sum, int64_t{1} << 29);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, IntegerScales,
                         testing::Values(Kind{"two_level", 0}, Kind{"integer", 0}, Kind{"integer", 4096}),
                         [](const auto& test) {
                           return test.param.name + std::to_string(test.param.amplifier);
                         });

TEST(IntegerScalesSettings, AreRefusedWhereNothingHoldsThem) {
  const auto refusal = [](auto&& change) {
    LinearSettings settings;
    settings.format = "group_int_a8";
    settings.activation_bits = 8;
    settings.group_size = 128;
    change(settings);
    try {
      settings.check("mine");
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal([](LinearSettings& s) { s.scale_kind = "two_level"; }), "");
  EXPECT_NE(
      refusal([](LinearSettings& s) { s.scale_kind = "two_level", s.format = "quik"; }).find("scale_kind"),
      std::string::npos);
  EXPECT_NE(refusal([](LinearSettings& s) { s.scale_kind = "integer", s.group_size = 0; }).find("scale_kind"),
            std::string::npos);
  EXPECT_NE(refusal([](LinearSettings& s) { s.scale_amplifier = 1024; }).find("scale_amplifier"),
            std::string::npos);
  EXPECT_NE(refusal([](LinearSettings& s) {
              s.scale_kind = "integer", s.scale_amplifier = 1000;
            }).find("power of two"),
            std::string::npos);
  EXPECT_EQ(refusal([](LinearSettings& s) { s.scale_kind = "two_level", s.scale_steps = 255; }), "");
  for (const char* kind : {"float", "integer"}) {
    const std::string text = refusal([&](LinearSettings& s) { s.scale_kind = kind, s.scale_steps = 16; });
    EXPECT_NE(text.find("scale_steps 16 with scale_kind \"" + std::string(kind)), std::string::npos) << text;
    EXPECT_NE(text.find("1 to 255 with \"two_level\""), std::string::npos) << text;
  }
  EXPECT_NE(refusal([](LinearSettings& s) { s.static_limit = 200; }).find("per_token_limit"),
            std::string::npos);
  EXPECT_NE(refusal([](LinearSettings& s) {
              s.format = "quik", s.group_size = 0, s.transform = "log_equalization";
            }).find("static activation"),
            std::string::npos);
  EXPECT_EQ(
      refusal([](LinearSettings& s) { s.format = "quik", s.group_size = 0, s.transform = "smoothquant"; }),
      "");
  EXPECT_NE(refusal([](LinearSettings& s) {
              s.quantizer = "kmeans", s.format = "squeezellm", s.group_size = 0, s.transform = "smoothquant";
            }).find("by gradients of the loss"),
            std::string::npos);
}

TEST(TwoLevelScales, WithoutGroupsAreAFloatPerRow) {
  ThreadPool pool(1);
  QuantizerCase made = make_case(5, 96);
  made.settings.format = "group_int_a8";
  made.settings.activation_bits = 8;
  made.settings.group_size = 0;
  const QuantizedWeight plain = find_quantizer("rtn").quantize(input_of(made), pool);
  made.settings.scale_kind = "two_level";
  made.settings.check("test");
  const QuantizedWeight weight = find_quantizer("rtn").quantize(input_of(made), pool);
  EXPECT_TRUE(weight.scale_multipliers.empty());
  EXPECT_EQ(weight.scales, plain.scales);
  EXPECT_EQ(weight.codes, plain.codes);
  EXPECT_TRUE(uniform_sample(made.settings, 5, 96, {}).scale_multipliers.empty());
}

TEST(FitGroups, HalvesTheGroupWhereThatDivides) {
  LinearSettings settings;
  settings.group_size = 128;
  for (const int64_t columns : {576, 1536, 96, 56}) EXPECT_EQ(settings.group_size_for(columns), 128);
  settings.fit_groups = true;
  const std::pair<int64_t, int64_t> kRows[] = {{128, 128}, {1536, 128}, {576, 64}, {64, 64},  {96, 32},
                                               {56, 128},  {88, 128},   {32, 32},  {136, 128}};
  for (const auto& [columns, expected] : kRows)
    EXPECT_EQ(settings.group_size_for(columns), expected) << columns;
  settings.group_size = 96;
  EXPECT_EQ(settings.group_size_for(144), 96);  // 48 would be no multiple of 32
  settings.group_size = 0;
  EXPECT_EQ(settings.group_size_for(576), 0);

  ThreadPool pool(1);
  QuantizerCase made = make_case(3, 96);
  made.settings.group_size = 128;
  made.settings.fit_groups = true;
  for (const char* quantizer : {"rtn", "gptq"}) {
    const QuantizedWeight weight = find_quantizer(quantizer).quantize(input_of(made), pool);
    EXPECT_EQ(weight.group_size, 32) << quantizer;
    EXPECT_EQ(weight.scales.size(), 9u) << quantizer;
  }
  EXPECT_EQ(uniform_sample(made.settings, 3, 96, {}).scales.size(), 9u);
}

}  // namespace
}  // namespace nibble
