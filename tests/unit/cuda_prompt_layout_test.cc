// The layouts that quik's prompt kernels agree on, without a GPU: activations lie where the products of
// weights packed for few tokens look for them, and codes by multiplication equal codes by division.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>

#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/quik/cuda/prompt_layout.h"
#include "formats/quik/cuda/token_codes.h"

namespace nibble::quik_cuda {
namespace {

using group_int_a8_cuda::FewTokensShape;

// The place of lane 4 g + q's byte in a row of m64nNk32's first operand: register r of the step, byte e.
int operand_column(int q, int r, int e) { return 16 * (r / 2) + 4 * q + e; }

TEST(PromptLayout, CodesLieWhereTheWeightsLookForThem) {
  for (const int bits : {4, 8}) {
    FewTokensShape shape;
    shape.n = 32;
    shape.columns = 600;
    shape.outliers = 70;
    shape.weight_bits = bits;
    const int64_t box = 256 * bits;  // of 16 rows in a block of 128 columns, as the kernel copies it
    for (int row = 0; row < shape.n; ++row) {
      for (int column = 0; column < shape.columns; ++column) {
        const auto place = code_place(shape, row, column);
        const int64_t in_tile = place.byte - row / 16 * shape.tile_bytes();
        const int64_t block = in_tile / box, vector = in_tile % box / 512, lane = in_tile % 512 / 16,
                      word = in_tile % 16 / 4, byte = in_tile % 4;
        // The kernel's registers: 8 bits, words as they are; 4 bits, low and high nibbles of each word.
        const int64_t words = bits == 8 ? 4 * vector + word : 8 * vector + 2 * word + place.shift / 4;
        const int step = static_cast<int>(words / 4), r = static_cast<int>(words % 4);
        EXPECT_EQ(lane / 4 + 8 * (r % 2), row % 16);
        EXPECT_EQ(
            128 * block + 32 * step + operand_column(static_cast<int>(lane % 4), r, static_cast<int>(byte)),
            code_position(column))
            << bits << " bits, column " << column;
      }
    }
  }
}

TEST(PromptLayout, OutliersLieWhereTheWeightsLookForThem) {
  FewTokensShape shape;
  shape.n = 16;
  shape.columns = 256;
  shape.outliers = 200;
  for (int row = 0; row < 16; ++row) {
    for (int o = 0; o < shape.outliers; ++o) {
      const int64_t at = outlier_place(shape, row, o) - shape.integer_slots() * shape.slot_bytes();
      const int64_t slot = at / 2048, step = at % 2048 / 512, q = at % 512 / 16 % 4, g = at % 512 / 64,
                    r = at % 16 / 4, half = at % 4 / 2;
      EXPECT_EQ(g + 8 * (r % 2), row);
      // m64nNk16: register r of lane 4 g + q holds columns 8 (r / 2) + 2 q, + 1.
      EXPECT_EQ(64 * slot + 16 * step + 8 * (r / 2) + 2 * q + half, outlier_position(o)) << "outlier " << o;
    }
  }
}

TEST(PromptLayout, PositionsArePermutationsWithinUnits) {
  std::set<int> codes, outliers;
  for (int c = 0; c < kCodeUnit; ++c) codes.insert(code_position(c));
  for (int o = 0; o < kOutlierUnit; ++o) outliers.insert(outlier_position(o));
  EXPECT_EQ(codes.size(), static_cast<size_t>(kCodeUnit));
  EXPECT_EQ(outliers.size(), static_cast<size_t>(kOutlierUnit));
  EXPECT_EQ(*codes.rbegin(), kCodeUnit - 1);
  EXPECT_EQ(*outliers.rbegin(), kOutlierUnit - 1);
}

int32_t by_division(float x, const CodeRange& range, int top) {
  const int32_t code = static_cast<int32_t>(std::nearbyint(x / range.scale)) + range.zero;
  return code < 0 ? 0 : code > top ? top : code;
}

// A quotient of a half x and a scale s can only be rounded to the wrong code where it is nearly h = i + 1/2,
// so where s is one of the few floats next to x / h. Halves and scales in one binade stand for all: nothing
// over- or underflows.
TEST(TokenCodes, EqualDivisionWhereverTheyCouldDiffer) {
  int64_t checked = 0;
  for (int x11 = 1024; x11 < 2048; ++x11) {
    const float x = static_cast<float>(x11);
    for (int i = 0; i < 256; ++i) {
      float s = static_cast<float>(x / (static_cast<double>(i) + 0.5));
      for (int back = 0; back < 4; ++back) s = std::nextafter(s, 0.0f);
      for (int near = 0; near < 9; ++near, s = std::nextafter(s, 1e9f)) {
        for (const float value : {x, -x}) {
          const CodeRange range = {s, 300};
          ASSERT_EQ(code_of(value, code_rule(range, 100000)), by_division(value, range, 100000))
              << value << " / " << s;
          ++checked;
        }
      }
    }
  }
  EXPECT_EQ(checked, 1024 * 256 * 18);
}

// Floats x whose quotient by s is next to i + 1/2, for scales with all kinds of mantissas: the first and last
// of a binade, few and many bits.
TEST(TokenCodes, OfFloatsEqualDivisionWhereverTheyCouldDiffer) {
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> mantissa(1, 2);
  int64_t checked = 0;
  for (int draw = 0; draw < 3000; ++draw) {
    float s = mantissa(generator);
    if (draw < 8) s = 1 + static_cast<float>(draw) * 0x1p-23f;
    if (draw >= 8 && draw < 16) s = 2 - static_cast<float>(draw - 7) * 0x1p-23f;
    const int exponent = draw % 3 == 0 ? 0 : static_cast<int>(generator() % 180) - 120;
    s = std::ldexp(s, exponent);
    const CodeRange range = {s, 300};
    const FloatCodeRule rule = float_code_rule(range, 100000);
    for (int i = 0; i < 256; ++i) {
      float x = static_cast<float>(double{s} * (i + 0.5));
      for (int back = 0; back < 3; ++back) x = std::nextafter(x, 0.0f);
      for (int near = 0; near < 7; ++near, x = std::nextafter(x, INFINITY)) {
        for (const float value : {x, -x}) {
          ASSERT_EQ(code_of_float(value * rule.factor, rule.rule), by_division(value, range, 100000))
              << value << " / " << s;
          ++checked;
        }
      }
    }
  }
  EXPECT_EQ(checked, 3000 * 256 * 14);
}

TEST(TokenCodes, OfTinyFloats) {
  // Even where scales and values are subnormal.
  for (const float largest : {1e-20f, 1e-30f, 1e-37f, 1e-40f}) {
    const CodeRange range = code_range(-largest / 3, largest, 15);
    const FloatCodeRule rule = float_code_rule(range, 15);
    for (int i = -100; i <= 300; ++i) {
      const float x = largest * static_cast<float>(i) / 300;
      EXPECT_EQ(code_of_float(x * rule.factor, rule.rule), by_division(x, range, 15)) << x;
    }
  }
}

TEST(TokenCodes, RangesOfOddTokens) {
  for (const int top : {15, 255}) {
    const CodeRange zero = code_range(0, 0, top);
    EXPECT_EQ(zero.scale, 2.0f / static_cast<float>(top));
    EXPECT_EQ(code_of(0.0f, code_rule(zero, top)), zero.zero);
    const CodeRange infinite = code_range(0, INFINITY, top);
    EXPECT_TRUE(std::isnan(infinite.scale));
    EXPECT_EQ(infinite.zero, 0);
    for (const float x : {0.0f, -3.0f, INFINITY, -INFINITY, NAN})
      EXPECT_EQ(code_of(x, code_rule(infinite, top)), 0) << x;
    EXPECT_TRUE(std::isnan(code_range(NAN, 1, top).scale));
    const CodeRange wide = code_range(-65504, 65504, top);
    EXPECT_EQ(code_of(65504, code_rule(wide, top)), by_division(65504, wide, top));
    EXPECT_EQ(code_of(-65504, code_rule(wide, top)), 0);
  }
}

}  // namespace
}  // namespace nibble::quik_cuda
