// Conversions, norms, rotary embedding and activations on every CPU path against plain double-precision
// loops.
#include <bit>
#include <limits>

#include "base/half.h"
#include "kernel_cases.h"

namespace nibble::testing {
namespace {

constexpr int64_t kSizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 40, 56, 64, 88, 100, 136, 257, 576};

class Conversions : public EveryPath {};

// All 65536 bit patterns of both 16-bit types.
TEST_P(Conversions, WidenEveryPattern) {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  std::vector<float> f16(bits.size()), bf16(bits.size());
  kernels().f16_to_f32(bits.data(), 65536, f16.data());
  kernels().bf16_to_f32(bits.data(), 65536, bf16.data());
  for (size_t i = 0; i < bits.size(); ++i) {
    const float expected = f16_to_float(bits[i]);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(f16[i])) << i;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(f16[i]), std::bit_cast<uint32_t>(expected)) << i;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(bf16[i]), std::bit_cast<uint32_t>(bf16_to_float(bits[i]))) << i;
  }
}

TEST_P(Conversions, NarrowRoundsToNearestEven) {
  std::vector<float> values = random_floats(20000, 1);
  std::mt19937 generator(2);
  for (size_t i = 0; i < 20000; ++i) {
    const float any = std::bit_cast<float>(static_cast<uint32_t>(generator()));
    if (!std::isnan(any)) values.push_back(any);
  }
  // Ties, subnormals, the largest finite values and what rounds beyond them.
  for (const uint16_t bits : {0x0000, 0x0001, 0x03ff, 0x0400, 0x3c00, 0x3c01, 0x7bfe, 0x7bff, 0x8001}) {
    const float low = f16_to_float(bits), high = f16_to_float(static_cast<uint16_t>(bits + 1));
    if (std::isfinite(high)) values.push_back(0.5f * (low + high));
    values.push_back(low);
  }
  for (const float value :
       {65504.0f, 65519.9f, 65520.0f, 1e30f, -65520.0f, 0.0f, -0.0f, 5.9604645e-8f, 2.9802322e-8f,
        std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    values.push_back(value);
  }
  const auto count = static_cast<int64_t>(values.size());
  std::vector<uint16_t> f16(values.size()), bf16(values.size());
  kernels().f32_to_f16(values.data(), count, f16.data());
  kernels().f32_to_bf16(values.data(), count, bf16.data());
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(f16[i], float_to_f16(values[i])) << values[i];
    ASSERT_EQ(bf16[i], float_to_bf16(values[i])) << values[i];
  }
}

TEST_P(Conversions, NarrowKeepsNaN) {
  const std::vector<float> values(5, std::numeric_limits<float>::quiet_NaN());
  std::vector<uint16_t> f16(5), bf16(5);
  kernels().f32_to_f16(values.data(), 5, f16.data());
  kernels().f32_to_bf16(values.data(), 5, bf16.data());
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_TRUE(std::isnan(f16_to_float(f16[i])));
    EXPECT_TRUE(std::isnan(bf16_to_float(bf16[i])));
  }
}

TEST_P(Conversions, WriteNothingBeyondTheEnd) {
  for (const int64_t count : kSizes) {
    const std::vector<float> values = random_floats(static_cast<size_t>(count), 3);
    std::vector<uint16_t> narrow(static_cast<size_t>(count) + 1, 0x1234);
    kernels().f32_to_f16(values.data(), count, narrow.data());
    EXPECT_EQ(narrow.back(), 0x1234);
    std::vector<float> wide(static_cast<size_t>(count) + 1, kGuard);
    kernels().f16_to_f32(narrow.data(), count, wide.data());
    EXPECT_EQ(wide.back(), kGuard);
    kernels().bf16_to_f32(narrow.data(), count, wide.data());
    EXPECT_EQ(wide.back(), kGuard);
  }
}

TEST_P(Conversions, AllFiniteFindsOneBadValue) {
  for (const int64_t count : {1, 5, 16, 1000, 1024, 1025, 5000}) {
    std::vector<float> f32 = random_floats(static_cast<size_t>(count), 4);
    std::vector<uint16_t> f16(f32.size()), bf16(f32.size());
    for (size_t i = 0; i < f32.size(); ++i) f16[i] = float_to_f16(f32[i]), bf16[i] = float_to_bf16(f32[i]);
    EXPECT_TRUE(kernels().all_finite(WeightType::kF32, f32.data(), count));
    EXPECT_TRUE(kernels().all_finite(WeightType::kF16, f16.data(), count));
    EXPECT_TRUE(kernels().all_finite(WeightType::kBF16, bf16.data(), count));
    for (const size_t place : {size_t{0}, f32.size() / 2, f32.size() - 1}) {
      for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()}) {
        const float kept = f32[place];
        const uint16_t kept_f16 = f16[place], kept_bf16 = bf16[place];
        f32[place] = bad, f16[place] = float_to_f16(bad), bf16[place] = float_to_bf16(bad);
        EXPECT_FALSE(kernels().all_finite(WeightType::kF32, f32.data(), count));
        EXPECT_FALSE(kernels().all_finite(WeightType::kF16, f16.data(), count));
        EXPECT_FALSE(kernels().all_finite(WeightType::kBF16, bf16.data(), count));
        f32[place] = kept, f16[place] = kept_f16, bf16[place] = kept_bf16;
      }
    }
  }
}

NIBBLE_FOR_EVERY_PATH(Conversions);

class Rows : public EveryPath {};

TEST_P(Rows, RmsNorm) {
  for (const int64_t size : kSizes) {
    const std::vector<float> x = random_floats(static_cast<size_t>(size), 5, 3.0f);
    const std::vector<float> weight = random_floats(static_cast<size_t>(size), 6);
    double squares = 0;
    for (const float value : x) squares += static_cast<double>(value) * value;
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(size) + 1e-5);
    std::vector<float> out(static_cast<size_t>(size) + 1, kGuard);
    kernels().rms_norm(x.data(), weight.data(), size, 1e-5f, out.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = x[i] * inverse * weight[i];
      expect_near(out[i], expected, 2e-6 * std::fabs(expected) + 1e-12, "size " + std::to_string(size));
    }
    EXPECT_EQ(out.back(), kGuard);
    std::vector<float> in_place = x;
    kernels().rms_norm(in_place.data(), weight.data(), size, 1e-5f, in_place.data());
    out.pop_back();
    EXPECT_EQ(in_place, out);
  }
}

TEST_P(Rows, LayerNorm) {
  for (const int64_t size : kSizes) {
    std::vector<float> x = random_floats(static_cast<size_t>(size), 7);
    for (float& value : x) value += 5.0f;  // a mean that must not be lost in the variance
    const std::vector<float> weight = random_floats(static_cast<size_t>(size), 8);
    const std::vector<float> bias = random_floats(static_cast<size_t>(size), 9);
    double mean = 0, variance = 0;
    for (const float value : x) mean += value;
    mean /= static_cast<double>(size);
    for (const float value : x) variance += (value - mean) * (value - mean);
    variance /= static_cast<double>(size);
    for (const bool with_bias : {true, false}) {
      std::vector<float> out(static_cast<size_t>(size) + 1, kGuard);
      kernels().layer_norm(x.data(), weight.data(), with_bias ? bias.data() : nullptr, size, 1e-5f,
                           out.data());
      for (size_t i = 0; i < x.size(); ++i) {
        const double expected =
            (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + (with_bias ? bias[i] : 0.0f);
        // One row of size 1 has x = mean, where the rounding of the mean is all that is left.
        expect_near(out[i], expected, 2e-5 * (1 + std::fabs(expected)), "size " + std::to_string(size));
      }
      EXPECT_EQ(out.back(), kGuard);
    }
  }
}

TEST_P(Rows, RotaryEmbedding) {
  for (const int64_t half : {1, 2, 3, 4, 5, 8, 12, 16, 20, 32, 40, 64}) {
    const std::vector<float> head = random_floats(static_cast<size_t>(2 * half), 10);
    std::vector<float> cosines, sines;
    for (int64_t i = 0; i < half; ++i) {
      const double angle = 0.37 * static_cast<double>(i + 1);
      cosines.push_back(static_cast<float>(std::cos(angle)));
      sines.push_back(static_cast<float>(std::sin(angle)));
    }
    for (const bool interleaved : {false, true}) {
      std::vector<float> rotated = head;
      rotated.push_back(kGuard);
      kernels().rope(rotated.data(), cosines.data(), sines.data(), half, interleaved);
      for (int64_t i = 0; i < half; ++i) {
        const auto first = static_cast<size_t>(interleaved ? 2 * i : i);
        const auto second = static_cast<size_t>(interleaved ? 2 * i + 1 : i + half);
        const double a = head[first], b = head[second], c = cosines[static_cast<size_t>(i)],
                     s = sines[static_cast<size_t>(i)];
        expect_near(rotated[first], a * c - b * s, 1e-6, "first of pair");
        expect_near(rotated[second], b * c + a * s, 1e-6, "second of pair");
      }
      EXPECT_EQ(rotated.back(), kGuard);
    }
  }
}

TEST_P(Rows, SiluTimesUp) {
  for (const int64_t count : kSizes) {
    const std::vector<float> gate = random_floats(static_cast<size_t>(count), 11, 8.0f);
    const std::vector<float> up = random_floats(static_cast<size_t>(count), 12);
    std::vector<float> out(static_cast<size_t>(count) + 1, kGuard);
    kernels().silu_mul(gate.data(), up.data(), count, out.data());
    for (size_t i = 0; i < gate.size(); ++i) {
      const double expected = gate[i] / (1 + std::exp(-static_cast<double>(gate[i]))) * up[i];
      expect_near(out[i], expected, 1e-6 * std::fabs(expected) + 1e-12, "silu");
    }
    EXPECT_EQ(out.back(), kGuard);
  }
}

TEST_P(Rows, SiluOfExtremes) {
  const float gate[] = {-1e30f, -200.0f, -90.0f, -87.0f, 0.0f, 87.0f, 90.0f, 200.0f, 1e30f};
  const std::vector<float> up(9, 1.0f);
  std::vector<float> out(9);
  kernels().silu_mul(gate, up.data(), 9, out.data());
  for (size_t i = 0; i < 4; ++i) expect_near(out[i], 0, 2e-36, "silu of a very negative number");
  EXPECT_EQ(out[4], 0.0f);
  for (size_t i = 5; i < 9; ++i) EXPECT_EQ(out[i], gate[i]);
}

TEST_P(Rows, Add) {
  for (const int64_t count : kSizes) {
    const std::vector<float> x = random_floats(static_cast<size_t>(count), 13);
    const std::vector<float> before = random_floats(static_cast<size_t>(count) + 1, 14);
    std::vector<float> y = before;
    kernels().add(x.data(), count, y.data());
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], before[i] + x[i]);
    EXPECT_EQ(y.back(), before.back());
  }
}

TEST_P(Rows, ExponentialWithinTwoUlp) {
  std::vector<float> x;
  for (float value = -86.9f; value < 88.7f; value += 0.00731f) x.push_back(value);
  for (int i = -50; i <= 50; ++i) x.push_back(static_cast<float>(i) * 0.34657359f);  // between powers of two
  std::vector<float> out(x.size());
  kernels().exp(x.data(), static_cast<int64_t>(x.size()), out.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(static_cast<double>(x[i]));
    const double ulp = expected * std::numeric_limits<float>::epsilon();
    ASSERT_LE(std::fabs(out[i] - expected), 2 * ulp) << "exp(" << x[i] << ")";
  }
}

TEST_P(Rows, ExponentialOfExtremes) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {-infinity, -1e30f, -200.0f,  -104.0f,
                                89.0f,     1e30f,  infinity, std::numeric_limits<float>::quiet_NaN()};
  std::vector<float> out(x.size());
  kernels().exp(x.data(), static_cast<int64_t>(x.size()), out.data());
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(out[i], 0.0f) << x[i];
  for (size_t i = 4; i < 7; ++i) EXPECT_EQ(out[i], infinity) << x[i];
  EXPECT_TRUE(std::isnan(out[7]));
}

TEST_P(Rows, Softmax) {
  for (const int64_t count : kSizes) {
    std::vector<float> x = random_floats(static_cast<size_t>(count), 15, 10.0f);
    for (float& value : x) value += 300.0f;  // would overflow without the shift
    if (count > 3) x[1] = -std::numeric_limits<float>::infinity();
    std::vector<double> expected;
    double sum = 0;
    for (const float value : x)
      expected.push_back(std::exp(static_cast<double>(value) - 330.0)), sum += expected.back();
    std::vector<float> out = x;
    out.push_back(kGuard);
    kernels().softmax(out.data(), count);
    for (size_t i = 0; i < x.size(); ++i) {
      expect_near(out[i], expected[i] / sum, 3e-6 * expected[i] / sum + 1e-37, "softmax");
    }
    EXPECT_EQ(out.back(), kGuard);
  }
}

NIBBLE_FOR_EVERY_PATH(Rows);

}  // namespace
}  // namespace nibble::testing
