// The few-token kernel's view of integer weights, emulated: lanes, operand registers, nibble extraction and
// the operand maps of mma.m16n8k32 and m16n8k16, against plain loops over the canonical layout. No GPU
// needed.
#include <gtest/gtest.h>

#include <random>

#include "base/half.h"
#include "cases/linear_cases.h"
#include "cuda_packed_slots.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/group_int_a8/layout.h"
#include "formats/quik/cuda/few_tokens_layout.h"
#include "formats/quik/layout.h"

namespace nibble::group_int_a8_cuda {
namespace {

using testing::byte_of;
using testing::Case;
using testing::nibbles_of;
using testing::word_at;

// Registers a0 .. a3 that lane l forms for product `step` of an integer slot, by few_tokens_kernel.cuh.
void operand(const FewTokensShape& shape, const uint8_t* slot, int64_t lane, int64_t step, uint32_t (&a)[4]) {
  if (shape.weight_bits == 8) {
    for (int i = 0; i < 4; ++i) a[i] = word_at(slot + 512 * step + 16 * lane + 4 * i);
    return;
  }
  const uint8_t* const at = slot + 512 * (step / 2) + 16 * lane + 8 * (step % 2);
  for (int i = 0; i < 2; ++i) {
    nibbles_of(word_at(at + 4 * i), a[2 * i], a[2 * i + 1]);
  }
}

// Words b0, b1 of `step` that a lane holds of a token's codes: 16 consecutive bytes per 64 columns, or
// twice 8.
uint32_t activation_word(const FewTokensShape& shape, const std::vector<uint8_t>& codes, int64_t slot_column,
                         int64_t q, int64_t step, int i) {
  const int64_t in_block = shape.group == 32 ? 32 * (step % 2) + 8 * q : 16 * q + 8 * (step % 2);
  const int64_t first = slot_column + 64 * (step / 2) + in_block + 4 * i;
  uint32_t word = 0;
  for (int64_t e = 0; e < 4; ++e) {
    const uint32_t code = first + e < static_cast<int64_t>(codes.size()) ? codes[first + e] : 0xA5;
    word |= code << (8 * e);
  }
  return word;
}

// sum over k of a [16, 32] b [32] for one token, as the instruction's operand maps say.
void multiply(const FewTokensShape& shape, const uint8_t* slot, int64_t slot_column,
              const std::vector<uint8_t>& codes, bool unsigned_codes, int64_t first_step, int64_t last_step,
              int64_t (&sums)[16]) {
  for (int64_t step = first_step; step < last_step; ++step) {
    for (int64_t lane = 0; lane < 32; ++lane) {
      uint32_t a[4];
      operand(shape, slot, lane, step, a);
      for (int i = 0; i < 4; ++i) {  // a[i] meets b[i / 2] of the lane with the same q
        const uint32_t b = activation_word(shape, codes, slot_column, lane % 4, step, i / 2);
        for (int64_t e = 0; e < 4; ++e) {
          const int code = unsigned_codes ? static_cast<uint8_t>(byte_of(b, e)) : byte_of(b, e);
          sums[lane / 4 + 8 * (i % 2)] += byte_of(a[i], e) * code;
        }
      }
    }
  }
}

const uint8_t* slot_at(const FewTokensWeights& weights, int64_t tile, int64_t slot) {
  return weights.slots.data() + tile * weights.shape.tile_bytes() + slot * weights.shape.slot_bytes();
}

std::vector<uint8_t> random_codes(int64_t count) {
  std::mt19937 generator(static_cast<uint32_t>(count));
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(generator());
  return codes;
}

class FewTokensLayout : public ::testing::TestWithParam<Case> {};

TEST_P(FewTokensLayout, ProductsOfLanesEqualPlainLoops) {
  const auto& [n, k, spec] = GetParam();
  const LinearFormat* const format = find_format("group_int_a8");
  const PackedLinear first = format->pack(cases::make_weight({n, k, 0, 1, true}, spec, false), "first"),
                     second = format->pack(cases::make_weight({n + 3, k, 0, 1}, spec, false), "second");
  ASSERT_EQ(few_tokens_refusal(first), "");
  const PackedLinear* const both[] = {&first, &second};
  const FewTokensWeights weights = pack_for_few_tokens(both);
  const FewTokensShape& shape = weights.shape;
  ASSERT_EQ(shape.n, 2 * n + 3);
  ASSERT_EQ(static_cast<int64_t>(weights.slots.size()), shape.bytes());
  const std::vector<uint8_t> activations = random_codes(k);
  const bool rows = weights.form == FewTokensForm::kRows;
  const int64_t group = rows ? shape.slot_columns() : shape.group, factor = shape.weight_bits == 4 ? 16 : 1;

  for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
    for (int64_t slot = 0; slot < shape.integer_slots(); ++slot) {
      const int64_t slot_column = slot * shape.slot_columns();
      for (int64_t part = 0; part < shape.slot_columns() / group; ++part) {
        int64_t sums[16] = {};
        multiply(shape, slot_at(weights, tile, slot), slot_column, activations, rows, part * group / 32,
                 (part + 1) * group / 32, sums);
        for (int64_t r = 0; r < 16; ++r) {
          const int64_t row = tile * 16 + r;
          if (row >= shape.n) {
            EXPECT_EQ(sums[r], 0);
            continue;
          }
          const auto layout = group_int_a8::read_layout(row < n ? first : second);
          const int64_t own = row < n ? row : row - n;
          std::vector<int8_t> codes(static_cast<size_t>(k));
          layout.unpack_row(own, codes.data());
          int64_t expected = 0;
          const int64_t from = slot_column + part * group;
          for (int64_t j = from; j < std::min(k, from + group); ++j) {
            expected += codes[j] * (rows ? int{activations[j]} : int{static_cast<int8_t>(activations[j])});
          }
          ASSERT_EQ(sums[r], factor * expected) << "row " << row << " slot " << slot << " part " << part;
          if (rows || from >= k) continue;
          const uint8_t* const at = slot_at(weights, tile, slot) + 2048 + (part * 16 + r) * shape.scale_bytes;
          const int64_t place = own * layout.groups + from / layout.group_size;
          testing::expect_scale(weights, at, layout, place);
        }
      }
    }
  }
}

using Scales = cases::WeightSpec::Scales;
INSTANTIATE_TEST_SUITE_P(Forms, FewTokensLayout,
                         ::testing::Values(Case{16, 256, {4, 8, 128}}, Case{5, 300, {4, 8, 128}},
                                           Case{17, 520, {4, 8, 32}}, Case{9, 257, {4, 8, 64}},
                                           Case{20, 1000, {4, 8, 256}}, Case{3, 1, {4, 8, 0}},
                                           Case{18, 700, {4, 8, 0}}, Case{13, 333, {8, 8, 0}},
                                           Case{11, 640, {4, 8, 128, false, Scales::kTwoLevel}},
                                           Case{19, 450, {4, 8, 64, false, Scales::kAmplified}}));

TEST(FewTokensLayoutOfQuik, ProductsOfLanesEqualPlainLoops) {
  for (const int bits : {4, 8}) {
    for (const auto& [n, k, outliers] : {std::tuple{20, 700, 70}, {16, 192, 64}, {7, 33, 1}, {33, 300, 0}}) {
      const LinearFormat* const format = find_format("quik");
      const PackedLinear linear =
          format->pack(cases::make_weight({n, k, outliers, 1, true}, {bits, 8}, true), "linear");
      const PackedLinear* const only[] = {&linear};
      const quik_cuda::FewTokensPacked packed = quik_cuda::pack_for_few_tokens(only);
      const FewTokensWeights& weights = packed.weights;
      const FewTokensShape& shape = weights.shape;
      const quik::Layout layout = quik::read_layout(linear);
      ASSERT_EQ(static_cast<int64_t>(weights.slots.size()), shape.bytes());
      const std::vector<uint8_t> activations = random_codes(layout.k_int);
      for (int64_t j = 0; j < layout.k_int; ++j)
        EXPECT_EQ(packed.column_places[layout.integer_columns[j]], static_cast<int32_t>(j));
      for (int64_t o = 0; o < outliers; ++o)
        EXPECT_EQ(packed.column_places[layout.outlier_columns[o]], ~static_cast<int32_t>(o));

      for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
        int64_t sums[16] = {};
        for (int64_t slot = 0; slot < shape.integer_slots(); ++slot) {
          multiply(shape, slot_at(weights, tile, slot), slot * shape.slot_columns(), activations, true, 0,
                   shape.slot_columns() / 32, sums);
        }
        for (int64_t r = 0; r < 16 && tile * 16 + r < n; ++r) {
          std::vector<int8_t> codes(static_cast<size_t>(layout.k_int));
          layout.unpack_row(tile * 16 + r, codes.data());
          int64_t expected = 0, code_sum = 0;
          for (int64_t j = 0; j < layout.k_int; ++j) {
            expected += codes[j] * activations[j];
            code_sum += codes[j];
          }
          EXPECT_EQ(sums[r], (bits == 4 ? 16 : 1) * expected);
          EXPECT_EQ(weights.code_sums[tile * 16 + r], code_sum);
        }
        // Outlier slots: registers i of step v hold column c, c + 1 of row g (+ 8).
        for (int64_t o = 0; o < shape.outlier_slots() * 64; ++o) {
          const int64_t in_slot = o % 64, v = in_slot / 32 * 2 + in_slot % 8 / 4, q = in_slot % 32 / 8,
                        e = in_slot % 4;
          for (int64_t r = 0; r < 16; ++r) {
            const int64_t lane = r % 8 * 4 + q, i = 2 * (e / 2) + r / 8;
            const uint8_t* const slot = weights.slots.data() + tile * shape.tile_bytes() +
                                        shape.integer_slots() * shape.slot_bytes() + o / 64 * 2048;
            const uint32_t word = word_at(slot + 512 * v + 16 * lane + 4 * i);
            const auto got = static_cast<uint16_t>(word >> (16 * (e % 2)));
            const int64_t row = tile * 16 + r;
            const uint16_t expected =
                row < n && o < outliers ? layout.outlier_weights[row * outliers + o] : uint16_t{0};
            EXPECT_EQ(got, expected) << "row " << row << " outlier " << o;
          }
        }
      }
    }
  }
}

TEST(FewTokensLayoutRefuses, WhatItCannotHold) {
  const LinearFormat* const format = find_format("group_int_a8");
  const auto refusal = [&](int64_t k, const cases::WeightSpec& spec) {
    return few_tokens_refusal(format->pack(cases::make_weight({2, k, 0, 1}, spec, false), "linear"));
  };
  EXPECT_NE(refusal(300, {4, 8, 96}).find("96"), std::string::npos);
  EXPECT_EQ(refusal(300, {8, 8, 128}), "groups of 8-bit weights");
  EXPECT_NE(refusal(65568, {4, 8, 0}).find("65568"), std::string::npos);
}

}  // namespace
}  // namespace nibble::group_int_a8_cuda
