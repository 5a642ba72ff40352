// The group product's view of weights and codes, emulated without a GPU: boxes of slots, operand registers of
// m64nNk32, scales and codes where the kernel looks for them, against plain loops over the canonical layout;
// and signed codes by multiplication against their definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "base/half.h"
#include "cases/linear_cases.h"
#include "cuda_packed_slots.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/group_int_a8/cuda/folded_codes.h"
#include "formats/group_int_a8/cuda/group_product_layout.h"
#include "formats/group_int_a8/cuda/signed_codes.h"
#include "formats/group_int_a8/layout.h"

namespace nibble::group_int_a8_cuda {
namespace {

using testing::byte_of;
using testing::Case;
using testing::nibbles_of;
using testing::word_at;

class GroupProductLayout : public ::testing::TestWithParam<Case> {};

// products::load_nibbles of a lane: 16 words of a box of 16 outputs x 128 columns.
void load_nibbles(const uint8_t* box, int lane, uint32_t (&a)[16]) {
  for (int v = 0; v < 2; ++v) {
    for (int p = 0; p < 4; ++p) {
      nibbles_of(word_at(box + 512 * v + 16 * lane + 4 * p), a[8 * v + 2 * p], a[8 * v + 2 * p + 1]);
    }
  }
}

TEST_P(GroupProductLayout, OperandsAndScalesOfABlockEqualPlainLoops) {
  const auto& [n, k, spec] = GetParam();
  const PackedLinear linear =
      find_format("group_int_a8")->pack(cases::make_weight({n, k, 0, 1}, spec, false), "linear");
  const PackedLinear* const only[] = {&linear};
  const FewTokensWeights weights = pack_for_few_tokens(only);
  const FewTokensShape& shape = weights.shape;
  ASSERT_EQ(few_tokens_shape(linear).bytes(), shape.bytes());
  const group_int_a8::Layout layout = group_int_a8::read_layout(linear);
  const int group = shape.group, steps = group / 32, units = 4 / steps;
  const int64_t scale_box = units * 16 * shape.scale_bytes, blocks = (k + 127) / 128;

  // One token, in the product's order; beyond the columns anything.
  std::mt19937 generator(static_cast<uint32_t>(n + k));
  std::vector<int8_t> natural(static_cast<size_t>(k)), codes(static_cast<size_t>(blocks * 128), 77);
  for (int64_t j = 0; j < k; ++j) {
    natural[j] = static_cast<int8_t>(static_cast<int>(generator() % 255) - 127);
    codes[group_code_position(static_cast<int>(j), group)] = natural[j];
  }
  std::vector<int8_t> row_codes(static_cast<size_t>(k));
  for (int64_t row = 0; row < n; ++row) {
    layout.unpack_row(row, row_codes.data());
    const uint8_t* const tile = weights.slots.data() + row / 16 * shape.tile_bytes();
    for (int64_t block = 0; block < blocks; ++block) {
      const uint8_t* const slot = tile + block / 2 * shape.slot_bytes();
      const uint8_t* const box = slot + block % 2 * 1024;
      const uint8_t* const scales = slot + kSlotCodeBytes + block % 2 * scale_box;
      for (int unit = 0; unit < units; ++unit) {
        int64_t sum = 0;
        for (int q = 0; q < 4; ++q) {
          uint32_t a[16];
          load_nibbles(box, static_cast<int>(row % 8 * 4 + q), a);
          for (int s = unit * steps; s < (unit + 1) * steps; ++s) {
            for (int i = 0; i < 2; ++i) {  // columns 4 q.. and 16 + 4 q.. of the step
              const uint32_t word = a[4 * s + 2 * i + row % 16 / 8];
              for (int e = 0; e < 4; ++e)
                sum += byte_of(word, e) * codes[block * 128 + 32 * s + 16 * i + 4 * q + e];
            }
          }
        }
        const int64_t from = block * 128 + unit * group;
        int64_t expected = 0;
        for (int64_t j = from; j < std::min(k, from + group); ++j) expected += natural[j] * row_codes[j];
        ASSERT_EQ(sum, 16 * expected) << "row " << row << " block " << block << " unit " << unit;
        if (from >= k) continue;
        const int64_t place = row * layout.groups + from / layout.group_size;
        const uint8_t* const at = scales + (unit * 16 + row % 16) * shape.scale_bytes;
        testing::expect_scale(weights, at, layout, place);
      }
    }
  }
}

using Scales = cases::WeightSpec::Scales;
INSTANTIATE_TEST_SUITE_P(Forms, GroupProductLayout,
                         ::testing::Values(Case{16, 256, {4, 8, 128}}, Case{21, 300, {4, 8, 128}},
                                           Case{17, 520, {4, 8, 32}}, Case{9, 257, {4, 8, 64}},
                                           Case{20, 1000, {4, 8, 256}},
                                           Case{11, 640, {4, 8, 128, false, Scales::kTwoLevel}},
                                           Case{19, 450, {4, 8, 64, false, Scales::kAmplified}}));

// Every byte of folded codes, for all codes and multipliers; the other bytes are at their extremes.
TEST(FoldedCodes, AreCodesTimesMultipliers) {
  for (uint32_t multiplier = 0; multiplier <= kMostFoldedMultiplier; ++multiplier) {
    for (int code = -8; code < 8; ++code) {
      for (const int others : {-8, 0, 7}) {
        for (int at = 0; at < 4; ++at) {
          uint32_t low = 0, high = 0;
          for (int i = 0; i < 4; ++i) {
            low |= static_cast<uint32_t>((i == at ? code : others) & 15) << (8 * i);
            high |= static_cast<uint32_t>((i == at ? others : code) & 15) << (8 * i + 4);
          }
          const FoldFactor factor = fold_factor(multiplier);
          const auto m = static_cast<int>(multiplier);
          for (int i = 0; i < 4; ++i) {
            EXPECT_EQ(byte_of(fold_low_nibbles(low | high, factor), i), m * (i == at ? code : others));
            EXPECT_EQ(byte_of(fold_high_nibbles(low | high, factor), i), m * (i == at ? others : code));
          }
        }
      }
    }
  }
}

class FoldedLayout : public ::testing::TestWithParam<Case> {};

// load_folded() of quik's product_kernel.cuh, with the boxes that its producer fetches.
TEST_P(FoldedLayout, OperandsOfABlockEqualPlainLoops) {
  const auto& [n, k, spec] = GetParam();
  const PackedLinear linear =
      find_format("group_int_a8")->pack(cases::make_weight({n, k, 0, 1}, spec, false), "linear");
  const PackedLinear* const only[] = {&linear};
  const FewTokensWeights weights = pack_for_few_tokens(only);
  ASSERT_TRUE(weights.folds);
  const FewTokensShape& shape = weights.shape;
  const group_int_a8::Layout layout = group_int_a8::read_layout(linear);
  const int groups = 128 / shape.group, shift = groups == 1 ? 2 : groups == 2 ? 1 : 0;
  const int64_t box = groups * kTileRows * shape.scale_bytes;
  std::vector<int8_t> row_codes(static_cast<size_t>(k));
  for (int64_t row = 0; row < n; ++row) {
    layout.unpack_row(row, row_codes.data());
    const auto folded = [&](int64_t j) {
      return j < k ? row_codes[j] *
                         static_cast<int>(layout.multipliers[row * layout.groups + j / layout.group_size])
                   : 0;
    };
    int32_t sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += folded(j);
    ASSERT_EQ(weights.code_sums[row], sum) << "row " << row;
    for (int64_t block = 0; block < (k + 127) / 128; ++block) {
      const uint8_t* const slot =
          weights.slots.data() + row / 16 * shape.tile_bytes() + block / 2 * shape.slot_bytes();
      std::vector<int> found(128, 1000);  // by the place of an activation's code
      for (int q = 0; q < 4; ++q) {
        const uint8_t* const lane = slot + block % 2 * 1024 + 16 * (row % 8 * 4 + q);
        for (int s = 0; s < 4; ++s) {
          const uint8_t* const at =
              slot + kSlotCodeBytes + block % 2 * box + (s >> shift) * 32 + 2 * (row % 16);
          const FoldFactor factor = fold_factor(at[0] + 256u * at[1]);
          for (int i = 0; i < 2; ++i) {
            const uint32_t pair = word_at(lane + 512 * (s / 2) + 4 * (2 * (s % 2) + i));
            const uint32_t word =
                row % 16 < 8 ? fold_low_nibbles(pair, factor) : fold_high_nibbles(pair, factor);
            for (int e = 0; e < 4; ++e) found[32 * s + 16 * i + 4 * q + e] = byte_of(word, e);
          }
        }
      }
      for (int j = 0; j < 128; ++j) {
        ASSERT_EQ(found[group_code_position(j, shape.group)], folded(128 * block + j))
            << "row " << row << " column " << 128 * block + j;
      }
    }
  }
}

constexpr cases::WeightSpec two_level(int64_t group, int most_multiplier = 16) {
  return {4, 8, group, false, Scales::kTwoLevel, 0, false, most_multiplier};
}
INSTANTIATE_TEST_SUITE_P(Groups, FoldedLayout,
                         ::testing::Values(Case{16, 256, two_level(128)}, Case{21, 300, two_level(64)},
                                           Case{17, 520, two_level(32)}, Case{20, 1000, two_level(256, 5)}));

TEST(FoldedLayout, LargerMultipliersDoNotFold) {
  const auto packed = [](const cases::WeightSpec& spec) {
    const PackedLinear linear =
        find_format("group_int_a8")->pack(cases::make_weight({40, 512, 0, 1}, spec, false), "linear");
    const PackedLinear* const only[] = {&linear};
    return pack_for_few_tokens(only);
  };
  EXPECT_FALSE(packed(two_level(128, 255)).folds);
  EXPECT_TRUE(packed(two_level(128, 255)).code_sums.empty());
  EXPECT_FALSE(packed({4, 8, 128}).folds);
}

TEST(GroupProductCodes, PositionsArePermutationsOfEveryUnit) {
  for (const int group : {32, 64, 128}) {
    std::set<int> places;
    for (int column = 64; column < 128; ++column) places.insert(group_code_position(column, group));
    EXPECT_EQ(places.size(), 64u);
    EXPECT_EQ(*places.begin(), 64);
    EXPECT_EQ(*places.rbegin(), 127);
  }
}

// How prompt_quantize.cu writes codes: each thread of eight columns two words of which it swaps one with its
// neighbour in q, then 8 bytes at once.
TEST(GroupProductCodes, ThreadsWriteEveryByteOfAUnitInItsPlace) {
  for (const int group : {32, 128}) {
    const int neighbour = group == 32 ? 1 : 2;
    std::vector<int> written(512, -1);
    for (int thread = 0; thread < 64; ++thread) {
      const bool odd = (thread & neighbour) != 0;
      const int column = 8 * thread, other = 8 * (thread ^ neighbour);
      const int first = odd ? column - 8 * neighbour + 4 : column;
      const int place = group_code_position(first, group);
      ASSERT_EQ(place % 8, 0);
      const int low = odd ? other + 4 : column,
                high = odd ? column + 4 : other;  // first columns of both words
      for (int e = 0; e < 4; ++e) {
        written[place + e] = low + e;
        written[place + 4 + e] = high + e;
      }
    }
    for (int column = 0; column < 512; ++column)
      EXPECT_EQ(written[group_code_position(column, group)], column) << "groups of " << group;
  }
}

int32_t by_division(float x, float scale) {
  if (scale == 0) return 0;
  return static_cast<int32_t>(std::clamp(std::nearbyint(x / scale), -127.0f, 127.0f));
}

// Every half against steps of tokens and static ones, those of the extremes among them.
TEST(SignedCodes, EqualDivision) {
  std::mt19937 generator(3);
  std::uniform_real_distribution<float> exponents(-30, 16);
  std::vector<float> scales = {
      0.0f,   65504.0f / 127, 0x1p-24f / 127, 0.125f,  std::numeric_limits<float>::min(),
      1e-30f, 1e30f,          3e38f,          1.0f / 3};
  for (int i = 0; i < 300; ++i) scales.push_back(std::exp2(exponents(generator)));
  for (int i = 0; i < 100; ++i) {  // steps of tokens: largest half / 127
    const auto bits = static_cast<uint16_t>(1 + generator() % 0x7BFF);
    scales.push_back(f16_to_float(bits) / 127.0f);
  }
  for (const float scale : scales) {
    const quik_cuda::CodeRule rule = signed_rule(scale);
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const float x = f16_to_float(static_cast<uint16_t>(bits));
      if (!std::isfinite(x)) continue;
      ASSERT_EQ(signed_code_plus_127(x, rule) - 127, by_division(x, scale)) << x << " / " << scale;
    }
  }
}

// Floats next to every quotient that is rounded up or down, and far beyond the largest code.
TEST(SignedCodes, OfFloatsEqualDivision) {
  std::mt19937 generator(4);
  std::uniform_real_distribution<float> exponents(-140, 126);
  std::vector<float> scales = {0.0f, 1e-45f, std::numeric_limits<float>::min(), 0.125f, 1.0f / 3, 2e38f};
  for (int i = 0; i < 3000; ++i) scales.push_back(std::exp2(exponents(generator)));
  for (const float scale : scales) {
    const FloatSignedRule rule = float_signed_rule(scale);
    const auto check = [&](float x) {
      if (!std::isfinite(x)) return;
      ASSERT_EQ(float_signed_code_plus_127(x, rule) - 127, by_division(x, scale)) << x << " / " << scale;
    };
    for (int i = 0; i < 130; ++i) {
      float x = static_cast<float>(double{scale} * (i + 0.5));
      for (int back = 0; back < 3; ++back) x = std::nextafter(x, 0.0f);
      for (int near = 0; near < 7; ++near, x = std::nextafter(x, INFINITY)) {
        check(x);
        check(-x);
      }
    }
    for (const float x : {0.0f, 3e38f, -3e38f, 1e-45f}) check(x);
  }
}

}  // namespace
}  // namespace nibble::group_int_a8_cuda
