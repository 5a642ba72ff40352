// Rounding to nearest, the clip search, outlier columns and the error measure.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/cpu/cpu_path.h"
#include "base/error.h"
#include "base/half.h"
#include "quantizer_cases.h"
#include "quantizers/clip_search.h"

namespace nibble {
namespace avx2 {
int find_clip_step(const ClipStretch& stretch);
}
namespace avx512vnni {
int find_clip_step(const ClipStretch& stretch);
}
namespace scalar {
int find_clip_step(const ClipStretch& stretch);
}
namespace {

QuantizerCase from_weights(int64_t n, int64_t k, std::vector<float> weight) {
  QuantizerCase made;
  made.weight = std::move(weight);
  made.input.name = "layers.7.test";
  made.input.out_features = n;
  made.input.in_features = k;
  return made;
}

QuantizedWeight rtn(QuantizerCase& made, int threads = 1) {
  ThreadPool pool(threads);
  input_of(made);
  made.input.statistics = nullptr;
  return find_quantizer("rtn").quantize(made.input, pool);
}

TEST(Rtn, RoundsHalfToEvenAndClamps) {
  // Scale 1: the largest magnitude is 7.
  QuantizerCase made = from_weights(1, 9, {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 7.0f, -6.6f, 6.5f, 0.4999f});
  made.settings.weight_bits = 4;
  const QuantizedWeight result = rtn(made);
  EXPECT_EQ(result.scales, (std::vector<float>{1.0f}));
  EXPECT_EQ(result.codes, (std::vector<int8_t>{0, 2, 2, 0, -2, 7, -7, 6, 0}));
}

TEST(Rtn, EqualsPlainLoopsForEveryWidth) {
  for (const int64_t bits : {2, 3, 4, 8}) {
    QuantizerCase made = make_case(37, 75);
    made.settings.weight_bits = bits;
    const QuantizedWeight result = rtn(made, 2);
    const float high = static_cast<float>((1 << (bits - 1)) - 1);
    for (int64_t n = 0; n < 37; ++n) {
      float largest = 0;
      for (int64_t j = 0; j < 75; ++j) largest = std::max(largest, std::fabs(made.weight[n * 75 + j]));
      const float scale = largest / high;
      ASSERT_EQ(result.scales[n], scale);
      for (int64_t j = 0; j < 75; ++j) {
        const float code =
            std::min(high, std::max(-high - 1, std::nearbyint(made.weight[n * 75 + j] / scale)));
        ASSERT_EQ(result.codes[n * 75 + j], static_cast<int>(code))
            << bits << " bits, row " << n << ", column " << j;
      }
    }
  }
}

TEST(Rtn, ZeroPointsEqualPlainLoopsForEveryWidthAndGroup) {
  for (const int64_t bits : {2, 3, 4, 8}) {
    for (const int64_t group_size : {0, 32, 7}) {
      QuantizerCase made = make_case(19, 75);
      made.settings.weight_bits = bits;
      made.settings.group_size = group_size;
      made.settings.symmetric = false;
      for (int64_t j = 0; j < 75; ++j) made.weight[j] = 0.5f + static_cast<float>(j);      // all positive
      for (int64_t j = 0; j < 75; ++j) made.weight[75 + j] = -3.0f;                        // all negative
      for (int64_t j = 0; j < 75; ++j) made.weight[150 + j] = j % 2 ? 3.4e38f : -3.4e38f;  // range overflows
      for (int64_t j = 0; j < 75; ++j) made.weight[225 + j] = j % 2 ? 1e-44f : 0.0f;       // next to nothing
      const QuantizedWeight result = rtn(made, 2);
      const double top = (1 << bits) - 1, low = -(1 << (bits - 1));
      const int64_t size = group_size > 0 ? group_size : 75, groups = (75 + size - 1) / size;
      ASSERT_EQ(result.zeros.size(), static_cast<size_t>(19 * groups));
      for (int64_t n = 0; n < 19; ++n) {
        for (int64_t g = 0; g < groups; ++g) {
          double least = 0, most = 0;
          for (int64_t j = g * size; j < std::min<int64_t>(75, (g + 1) * size); ++j) {
            least = std::min<double>(least, made.weight[n * 75 + j]);
            most = std::max<double>(most, made.weight[n * 75 + j]);
          }
          if (n == 3) least = -1, most = 1;
          const float scale = result.scales[n * groups + g], zero = result.zeros[n * groups + g];
          ASSERT_NEAR(scale, (most - least) / top, 1e-6 * scale) << "row " << n;
          // Half a step away at most: where 0 lies halfway between two codes, either will do.
          ASSERT_EQ(zero, std::nearbyint(zero));
          ASSERT_NEAR(zero, -least / ((most - least) / top) + low, 0.5 + 1e-4) << "row " << n;
          for (int64_t j = g * size; j < std::min<int64_t>(75, (g + 1) * size); ++j) {
            const double exact = double(made.weight[n * 75 + j]) / scale;
            const double code = std::clamp(std::nearbyint(exact) + zero, low, low + top);
            if (std::fabs(exact - std::floor(exact) - 0.5) < 1e-4) continue;  // as good as a tie
            ASSERT_EQ(result.codes[n * 75 + j], static_cast<int>(code)) << bits << " bits, row " << n;
          }
        }
      }
    }
  }
}

TEST(Rtn, ZeroPointsLoseLessOnLopsidedWeights) {
  for (const bool clip : {false, true}) {
    double loss[2] = {0, 0};
    for (const bool symmetric : {false, true}) {
      QuantizerCase made = make_case(16, 128);
      for (float& weight : made.weight) weight += 0.1f;
      made.settings.group_size = 64;
      made.settings.weight_bits = 3;
      made.settings.symmetric = symmetric;
      made.settings.clip = clip;
      const std::vector<float> weight = dequantize(rtn(made));
      for (size_t i = 0; i < weight.size(); ++i) {
        loss[symmetric] += std::pow(double(weight[i]) - made.weight[i], 2);
      }
    }
    EXPECT_LT(loss[0], 0.5 * loss[1]) << (clip ? "with" : "without") << " clip search";
  }
}

TEST(Rtn, GroupsHaveTheirOwnScalesAndTheLastIsShorter) {
  QuantizerCase made = from_weights(1, 5, {7, 1, 70, -10, 3.5f});
  made.settings.group_size = 2;
  const QuantizedWeight result = rtn(made);
  EXPECT_EQ(result.scales, (std::vector<float>{1.0f, 10.0f, 0.5f}));
  EXPECT_EQ(result.codes, (std::vector<int8_t>{7, 1, 7, -1, 7}));
  EXPECT_EQ(result.group_size, 2);
}

TEST(Rtn, OutlierColumnsAreLeftOutOfTheScale) {
  QuantizerCase made = from_weights(2, 4, {7, 1000, -3, 0.25f, 14, -2000, 2, 8});
  made.input.outlier_columns = {1, 3};
  const QuantizedWeight result = rtn(made);
  EXPECT_EQ(result.scales, (std::vector<float>{1.0f, 2.0f}));
  EXPECT_EQ(result.codes, (std::vector<int8_t>{7, -3, 7, 1}));
  EXPECT_EQ(result.outlier_weights, (std::vector<float>{1000, 0.25f, -2000, 8}));
  EXPECT_EQ(result.outlier_columns, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(result.integer_columns(), 2);
}

TEST(Rtn, ZeroTinyAndConstantRowsAreHarmless) {
  for (const bool clip : {false, true}) {
    QuantizerCase made =
        from_weights(4, 3, {0, 0, 0, 1e-41f, -1e-42f, 0, 0.3f, 0.3f, 0.3f, 3e38f, -3e38f, 1e38f});
    made.settings.clip = clip;
    const QuantizedWeight result = rtn(made);
    EXPECT_EQ(result.scales[0], 1.0f / 7.0f);
    EXPECT_EQ(result.scales[1], 1.0f / 7.0f);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(result.codes[i], 0);
    const std::vector<float> weight = dequantize(result);
    for (int i = 6; i < 9; ++i) EXPECT_NEAR(weight[i], 0.3f, 1e-6);
    for (int i = 9; i < 12; ++i) EXPECT_TRUE(std::isfinite(weight[i]));
    EXPECT_NEAR(weight[9], 3e38f, 0.1 * 3e38);
  }
}

TEST(Rtn, RoundsScalesToF16WhereTheFormatStoresThem) {
  QuantizerCase made = make_case(9, 64);
  made.input.f16_scales = true;
  made.weight[0] = 1e9f;                                          // beyond F16
  for (int64_t j = 0; j < 64; ++j) made.weight[64 + j] = 1e-12f;  // below it
  const QuantizedWeight result = rtn(made);
  for (int64_t n = 0; n < 9; ++n) {
    ASSERT_EQ(result.scales[n], f16_to_float(float_to_f16(result.scales[n])));
    ASSERT_GT(result.scales[n], 0.0f);
    for (int64_t j = 0; j < 64; ++j) {
      const float want =
          std::min(7.0f, std::max(-8.0f, std::nearbyint(made.weight[n * 64 + j] / result.scales[n])));
      ASSERT_EQ(result.codes[n * 64 + j], static_cast<int>(want));
    }
  }
}

TEST(Quantizers, NameTheLayerRowAndColumnOfBadWeights) {
  for (const char* name : {"rtn", "gptq"}) {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      QuantizerCase made = make_case(20, 30);
      made.weight[18 * 30 + 4] = bad;
      made.weight[19 * 30 + 1] = bad;
      ThreadPool pool(2);
      try {
        find_quantizer(name).quantize(input_of(made), pool);
        FAIL() << name << " accepted " << bad;
      } catch (const Error& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("layers.7.test"), std::string::npos) << message;
        EXPECT_NE(message.find("row 18, column 4"), std::string::npos) << message;
      }
    }
  }
}

TEST(Quantizers, AreFoundByName) {
  EXPECT_STREQ(find_quantizer("rtn").name, "rtn");
  EXPECT_FALSE(find_quantizer("rtn").needs({}).any());
  EXPECT_TRUE(find_quantizer("gptq").needs({}).hessian);
  try {
    find_quantizer("gptqq");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("gptq"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("sparse_gptq"), std::string::npos) << error.what();
  }
}

// --- clip search
// ------------------------------------------------------------------------------------------------------

double error_of_step(const std::vector<float>& weights, int step, int bits, double norm) {
  double largest = 0;
  for (const float weight : weights) largest = std::max(largest, std::fabs(double(weight)));
  const double high = (1 << (bits - 1)) - 1, scale = (100 - step) / 100.0 * largest / high;
  double sum = 0;
  for (const float weight : weights) {
    const double code = std::min(high, std::max(-high - 1, std::nearbyint(weight / scale)));
    sum += std::pow(std::fabs(weight - code * scale) / largest, norm);
  }
  return sum;
}

ClipStretch stretch_of(const std::vector<float>& weights, int bits, double norm, int steps,
                       std::vector<float>& padded) {
  float largest = 0;
  for (const float weight : weights) largest = std::max(largest, std::fabs(weight));
  padded.assign((weights.size() + kClipLanes - 1) / kClipLanes * kClipLanes, 0.0f);
  for (size_t i = 0; i < weights.size(); ++i) padded[i] = weights[i] / largest;
  const float high = static_cast<float>((1 << (bits - 1)) - 1);
  return {.values = padded.data(),
          .padded_count = static_cast<int64_t>(padded.size()),
          .lowest_code = -high - 1,
          .highest_code = high,
          .levels = high,
          .norm = static_cast<float>(norm),
          .steps = steps};
}

TEST(ClipSearch, FindsWhatBruteForceFinds) {
  std::mt19937 engine(5);
  std::normal_distribution<float> normal;
  int clipped = 0;
  for (const int bits : {2, 3, 4, 8}) {
    for (const double norm : {1.0, 2.0, 2.4, 3.5}) {
      for (const int64_t count : {1, 2, 15, 16, 17, 100, 255, 257, 700}) {
        std::vector<float> weights(static_cast<size_t>(count)), padded;
        for (float& weight : weights) weight = 0.02f * normal(engine);
        weights[0] *= 3;  // something to clip
        const int found = find_clip_step(stretch_of(weights, bits, norm, 80, padded));
        ASSERT_GE(found, 0);
        ASSERT_LT(found, 80);
        clipped += found > 0;
        double best = error_of_step(weights, 0, bits, norm);
        for (int step = 1; step < 80; ++step) best = std::min(best, error_of_step(weights, step, bits, norm));
        ASSERT_LE(error_of_step(weights, found, bits, norm), best * (1 + 1e-5) + 1e-12)
            << bits << " bits, norm " << norm << ", " << count << " weights, step " << found;
      }
    }
  }
  EXPECT_GT(clipped, 50);
}

TEST(ClipSearch, KeepsTheWholeRangeWhereItIsExact) {
  std::vector<float> padded;
  EXPECT_EQ(find_clip_step(stretch_of({7, 3, -2, 0, 5}, 4, 2.4, 80, padded)), 0);
  EXPECT_EQ(find_clip_step(stretch_of({-4.25f}, 4, 2.4, 80, padded)), 0);
  EXPECT_EQ(find_clip_step(stretch_of({1, 2, 3, 4}, 4, 2.4, 1, padded)), 0);
}

TEST(ClipSearch, SameStepOnEveryInstructionSet) {
  std::mt19937 engine(11);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 60; ++round) {
    std::vector<float> weights(static_cast<size_t>(20 + 13 * round)), padded;
    for (float& weight : weights) weight = normal(engine) * std::exp(normal(engine));
    const ClipStretch stretch = stretch_of(weights, round % 2 ? 4 : 8, 2.4, 80, padded);
    const int expected = scalar::find_clip_step(stretch);
    if (machine_has(CpuPath::kAvx2)) {
      ASSERT_EQ(avx2::find_clip_step(stretch), expected);
    }
    if (machine_has(CpuPath::kAvx512Vnni)) {
      ASSERT_EQ(avx512vnni::find_clip_step(stretch), expected);
    }
  }
}

TEST(ClipSearch, SetsTheScalesOfRowsAndGroups) {
  for (const int64_t group_size : {0, 32}) {
    QuantizerCase made = make_case(13, 100);
    made.settings.group_size = group_size;
    const QuantizedWeight plain = rtn(made);
    made.settings.clip = true;
    const QuantizedWeight searched = rtn(made, 2);
    const int64_t size = group_size > 0 ? group_size : 100, groups = (100 + size - 1) / size;
    ASSERT_EQ(searched.scales.size(), static_cast<size_t>(13 * groups));
    int smaller = 0;
    for (int64_t i = 0; i < 13 * groups; ++i) {
      const int64_t first = i % groups * size, last = std::min<int64_t>(100, first + size);
      const float* row = made.weight.data() + i / groups * 100;
      const std::vector<float> weights(row + first, row + last);
      const int step = static_cast<int>(std::lround(100 - 100 * searched.scales[i] / plain.scales[i]));
      ASSERT_NEAR(searched.scales[i], plain.scales[i] * (100 - step) / 100.0f, 1e-6f * plain.scales[i]);
      double best = error_of_step(weights, 0, 4, 2.4);
      for (int other = 1; other < 80; ++other) best = std::min(best, error_of_step(weights, other, 4, 2.4));
      ASSERT_LE(error_of_step(weights, step, 4, 2.4), best * (1 + 1e-5));
      smaller += step > 0;
    }
    EXPECT_GT(smaller, 0);
  }
}

TEST(ClipSearch, FindsWhatBruteForceFindsWithZeroPoints) {
  for (const int64_t group_size : {0, 16}) {
    QuantizerCase made = make_case(11, 60);
    for (float& weight : made.weight)
      weight = weight * std::fabs(weight) * 40 + 0.01f;  // long tails, lopsided
    made.settings.symmetric = false;
    made.settings.group_size = group_size;
    const QuantizedWeight plain = rtn(made);
    made.settings.clip = true;
    const QuantizedWeight searched = rtn(made, 2);
    ASSERT_EQ(searched.zeros, plain.zeros);
    const int64_t size = group_size > 0 ? group_size : 60, groups = (60 + size - 1) / size;
    int smaller = 0;
    for (int64_t i = 0; i < 11 * groups; ++i) {
      const auto error = [&](int step) {
        const double scale = double(plain.scales[i]) * (100 - step) / 100, zero = plain.zeros[i];
        double sum = 0;
        for (int64_t j = i % groups * size; j < std::min<int64_t>(60, (i % groups + 1) * size); ++j) {
          const double weight = made.weight[i / groups * 60 + j];
          const double level = std::clamp(std::nearbyint(weight / scale), -8 - zero, 7 - zero);
          sum += std::pow(std::fabs(weight - level * scale), 2.4);
        }
        return sum;
      };
      const int step = static_cast<int>(std::lround(100 - 100 * searched.scales[i] / plain.scales[i]));
      double best = error(0);
      for (int other = 1; other < 80; ++other) best = std::min(best, error(other));
      ASSERT_LE(error(step), best * (1 + 1e-4));
      smaller += step > 0;
    }
    EXPECT_GT(smaller, 0);
  }
}

// --- outlier columns
// --------------------------------------------------------------------------------------------------

InputStatistics magnitudes(std::vector<float> max_abs) {
  InputStatistics statistics;
  statistics.in_features = static_cast<int64_t>(max_abs.size());
  statistics.tokens = 1;
  statistics.max_abs = std::move(max_abs);
  return statistics;
}

InputStatistics ramp(int64_t k) {
  std::vector<float> max_abs(static_cast<size_t>(k));
  for (int64_t i = 0; i < k; ++i) max_abs[i] = 1.0f + static_cast<float>(i * 7919 % k);
  return magnitudes(std::move(max_abs));
}

TEST(OutlierColumns, CountsFollowTheContract) {
  const struct {
    int64_t in, hidden, columns;
    bool scaling;
    size_t expected;
  } kCases[] = {
      {576, 576, -1, false, 64},     // SmolLM2-135M
      {1536, 576, -1, true, 128},    // its down projections
      {1536, 576, -1, false, 64},    // ... at 4 bits: by the hidden size, not scaled
      {4096, 4096, -1, false, 256},  // from 4096 on
      {8192, 8192, -1, false, 256},  // never more
      {11008, 4096, -1, true, 512},  // LLaMA-2-7B: floor(2.69)
      {28672, 8192, -1, true, 768},  // LLaMA-2-70B: floor(3.5)
      {256, 256, -1, false, 32},     // the fixtures
      {512, 256, -1, true, 64},      // their down projections
      {2048, 1024, -1, false, 64},   // o of qwen3: heads * head_dim is not the hidden size
      {513, 513, -1, false, 64},     // rounded up
      {512, 512, -1, false, 32},
      {56, 56, -1, false, 28},  // at least half of the columns stay integer
      {7, 7, -1, false, 3},
      {1, 1, -1, false, 0},
      {40, 88, -1, true, 20},  // narrower than the hidden size: not scaled to nothing
      {576, 576, 0, false, 0},
      {576, 576, 8, false, 8},
      {1536, 576, 8, true, 16},
      {1536, 576, 700, true, 768},
      {0x7fff, 0x7fff, 1 << 20, false, 0x3fff},
  };
  for (const auto& row : kCases) {
    LinearSettings settings;
    settings.outlier_columns = row.columns;
    settings.outlier_scaling = row.scaling;
    const std::vector<int32_t> columns =
        select_outlier_columns(ramp(row.in), settings, row.hidden, row.scaling);
    EXPECT_EQ(columns.size(), row.expected)
        << row.in << " inputs, hidden " << row.hidden << ", " << row.columns;
    EXPECT_TRUE(std::is_sorted(columns.begin(), columns.end()));
  }
}

TEST(OutlierColumns, AreTheLargestWithTiesByLowerIndex) {
  LinearSettings settings;
  settings.outlier_columns = 3;
  const InputStatistics statistics = magnitudes({2, 5, 1, 5, 9, 5, 0, 2});
  EXPECT_EQ(select_outlier_columns(statistics, settings, 8, false), (std::vector<int32_t>{1, 3, 4}));
  settings.outlier_columns = 1;
  EXPECT_EQ(select_outlier_columns(statistics, settings, 8, false), (std::vector<int32_t>{4}));
  EXPECT_EQ(select_outlier_columns(magnitudes({1, 1, 1, 1}), settings, 4, false), (std::vector<int32_t>{0}));
}

TEST(OutlierColumns, NoneBelowTheThresholdWhichIsDoubledForDownProjections) {
  const InputStatistics statistics = magnitudes({1, 3, 2, 0.5f});
  const struct {
    double threshold;
    bool down;
    size_t expected;
  } kCases[] = {{0, false, 2},  {2.9, false, 2}, {3.0, false, 0}, {3.1, false, 0}, {1.4, true, 2},
                {1.5, true, 0}, {1.5, false, 2}, {0, true, 2},    {100, true, 0}};
  for (const auto& row : kCases) {
    LinearSettings settings;
    settings.outlier_columns = 2;
    settings.outlier_threshold = row.threshold;
    EXPECT_EQ(select_outlier_columns(statistics, settings, 4, row.down).size(), row.expected)
        << "threshold " << row.threshold << (row.down ? ", down" : "");
  }
}

// --- the error measure
// ------------------------------------------------------------------------------------------------

TEST(QuantizationError, EqualsPlainLoops) {
  for (const int64_t k : {1, 7, 256, 300}) {
    const int64_t n = 21;
    QuantizerCase made = make_case(n, k);
    const std::vector<float> approximation = dequantize(rtn(made));
    const float* hessian = made.statistics.hessian.data<float>();
    double weight = 0, weight_error = 0, output = 0, output_error = 0;
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t i = 0; i < k; ++i) {
        const double wi = made.weight[r * k + i], di = wi - approximation[r * k + i];
        weight += wi * wi;
        weight_error += di * di;
        for (int64_t j = 0; j < k; ++j) {
          const double wj = made.weight[r * k + j], dj = wj - approximation[r * k + j];
          output += wi * hessian[i * k + j] * wj;
          output_error += di * hessian[i * k + j] * dj;
        }
      }
    }
    ThreadPool one(1), two(2);
    const QuantizationError error = quantization_error(input_of(made), approximation.data(), two);
    EXPECT_NEAR(error.weight_relative, weight_error / weight, 1e-6 * weight_error / weight);
    EXPECT_NEAR(error.output_relative, output_error / output, 1e-3 * output_error / output + 1e-9);
    EXPECT_EQ(quantization_error(input_of(made), approximation.data(), one).output_relative,
              error.output_relative);

    const QuantizationError none = quantization_error(input_of(made), made.weight.data(), one);
    EXPECT_EQ(none.weight_relative, 0);
    EXPECT_EQ(none.output_relative, 0);
    made.input.statistics = nullptr;
    EXPECT_EQ(quantization_error(made.input, approximation.data(), one).output_relative, 0);
    EXPECT_EQ(quantization_error(made.input, approximation.data(), one).weight_relative,
              error.weight_relative);
  }
}

}  // namespace
}  // namespace nibble
