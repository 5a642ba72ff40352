// The kernels' view of 4-bit weights, emulated: lanes, operand registers, nibble extraction and the F16
// tricks of operands.cuh, bit for bit on the CPU, against plain loops over the canonical layout.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/half.h"
#include "cases/linear_cases.h"
#include "formats/group_int/cuda/decode_layout.h"
#include "formats/group_int/layout.h"

namespace nibble::group_int_cuda {
namespace {

PackedLinear make_linear(int64_t n, int64_t k, int64_t group_size) {
  cases::LinearCase shape = {n, k, 0, 1};
  QuantizedWeight weight =
      cases::make_weight(shape, {.weight_bits = 4, .group_size = group_size}, /*with_outliers=*/false);
  for (float& scale : weight.scales) scale = f16_to_float(float_to_f16(scale));
  PackedLinear packed = find_format("group_int")->pack(weight, "linear");
  find_format("group_int")->validate(packed);
  return packed;
}

// F16 arithmetic of one operand half: (bits & mask) | 0x6400 is 1024 + code or 1024 + 16 code.
float decode_half(uint32_t word, int i, bool high) {
  const uint32_t bits = i >= 2 ? word >> 8 : word;
  const uint32_t masked = bits & (i % 2 == 0 ? 0x000F000Fu : 0x00F000F0u);
  const auto half = static_cast<uint16_t>(((high ? masked >> 16 : masked) & 0xFFFF) | 0x6400);
  const float value = f16_to_float(half);
  return i % 2 == 0 ? value - 1032.0f : value * 0.0625f - 72.0f;
}

struct Case {
  int64_t n, k, group_size;
};

class DecodeLayout : public ::testing::TestWithParam<Case> {};

TEST_P(DecodeLayout, LanesFindTheirWeights) {
  const auto [n, k, group_size] = GetParam();
  const PackedLinear linear = make_linear(n, k, group_size);
  ASSERT_EQ(decode_refusal(linear), "");
  const std::vector<uint8_t> packed = pack_for_decode(linear);
  const DecodeShape shape = decode_shape(linear);
  ASSERT_EQ(static_cast<int64_t>(packed.size()), shape.bytes());
  std::vector<float> expected(static_cast<size_t>(n * k));
  linear.format->dequantize(linear, expected.data());

  std::vector<bool> seen(static_cast<size_t>(n * k));
  for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
    for (int64_t block = 0; block < shape.blocks(); ++block) {
      const uint8_t* const at = packed.data() + tile * shape.tile_bytes() + block * shape.block_bytes();
      for (int64_t lane = 0; lane < 32; ++lane) {
        const int64_t g = lane / 4, q = lane % 4;
        for (int64_t m = 0; m < 8; ++m) {
          uint32_t word;
          std::memcpy(&word, at + m / 4 * 512 + lane * 16 + m % 4 * 4, 4);
          for (int i = 0; i < 4; ++i) {    // operand register a[i]
            for (int h = 0; h < 2; ++h) {  // its lower and upper half
              // PTX ISA, fragments of mma.m16n8k16: registers 0, 1 hold columns 2q, 2q + 1, registers 2, 3
              // those 8 further; odd registers hold row g + 8.
              const int64_t row_in_tile = g + (i % 2 == 1 ? 8 : 0);
              const int64_t row = tile * kBlockRows + row_in_tile,
                            column = block * kBlockColumns + 16 * m + 2 * q + h + (i >= 2 ? 8 : 0);
              const int64_t set = shape.scales_per_block == 2 ? m / 4 : 0;
              uint16_t bits;
              std::memcpy(&bits, at + kCodeBytes + set * kScaleBytes + row_in_tile * 2, 2);
              const float value = decode_half(word, i, h == 1) * f16_to_float(bits);
              if (row >= n || column >= k) {
                EXPECT_EQ(value, 0.0f);
                continue;
              }
              EXPECT_EQ(value, expected[row * k + column]) << "row " << row << " column " << column;
              EXPECT_FALSE(seen[row * k + column]);
              seen[row * k + column] = true;
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), n * k);
}

TEST_P(DecodeLayout, PlacesHoldTheCodesAndScales) {
  const auto [n, k, group_size] = GetParam();
  const PackedLinear linear = make_linear(n, k, group_size);
  const GroupIntLayout layout = group_int_layout(linear);
  const DecodeShape shape = decode_shape(linear);
  const std::vector<uint8_t> packed = pack_for_decode(linear);
  std::vector<uint8_t> used(packed.size()), codes(static_cast<size_t>(k));  // bit 0, 1: lower, upper nibble
  for (int64_t row = 0; row < n; ++row) {
    group_int_unpack_row(layout, row, codes.data());
    for (int64_t column = 0; column < k; ++column) {
      const CodePlace place = code_place(shape, row, column);
      ASSERT_TRUE(place.byte >= 0 && place.byte < shape.bytes());
      const auto bit = static_cast<uint8_t>(place.shift == 0 ? 1 : 2);
      EXPECT_EQ(used[place.byte] & bit, 0);
      used[place.byte] |= bit;
      EXPECT_EQ(packed[place.byte] >> place.shift & 15, codes[column]);
      const int64_t scale = scale_place(shape, row, column);
      ASSERT_TRUE(scale >= 0 && scale + 1 < shape.bytes());
      uint16_t bits;
      std::memcpy(&bits, packed.data() + scale, 2);
      EXPECT_EQ(f16_to_float(bits), group_int_scale(layout, row, column / layout.group_size));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, DecodeLayout,
                         ::testing::Values(Case{16, 128, 128}, Case{1, 1, 0}, Case{17, 129, 0},
                                           Case{48, 1152, 128}, Case{33, 1100, 128}, Case{40, 2048, 0},
                                           Case{16, 1024, 128}, Case{16, 128, 64}, Case{33, 1100, 64},
                                           Case{20, 320, 64}, Case{3, 64, 64}));

TEST(DecodeLayoutRefuses, WhatItCannotHold) {
  EXPECT_NE(decode_refusal(make_linear(16, 128, 32)).find("32"), std::string::npos);
  cases::LinearCase shape = {16, 128, 0, 1};
  const PackedLinear eight =
      find_format("group_int")
          ->pack(cases::make_weight(shape, {.weight_bits = 8, .group_size = 128}, false), "linear");
  EXPECT_NE(decode_refusal(eight).find("8 bits"), std::string::npos);
  const PackedLinear zeros =
      find_format("group_int")
          ->pack(cases::make_weight(shape, {.weight_bits = 4, .group_size = 128, .zeros = true}, false),
                 "linear");
  EXPECT_EQ(decode_refusal(zeros), "zero points");
}

}  // namespace
}  // namespace nibble::group_int_cuda
