// Reading what few_tokens_layout.h packs, for the tests that emulate kernels on it.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "cases/linear_cases.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/group_int_a8/layout.h"

namespace nibble::group_int_a8_cuda::testing {

// A linear of n outputs and k columns.
struct Case {
  int64_t n, k;
  cases::WeightSpec spec;
};

inline uint32_t word_at(const uint8_t* at) {
  uint32_t word;
  std::memcpy(&word, at, 4);
  return word;
}
inline int8_t byte_of(uint32_t word, int64_t i) { return static_cast<int8_t>(word >> (8 * i)); }

// The operand registers that 4-bit weights become: the low and the high nibbles of a word as bytes of 16 q.
inline void nibbles_of(uint32_t word, uint32_t& low, uint32_t& high) {
  low = (word << 4) & 0xF0F0F0F0u;
  high = word & 0xF0F0F0F0u;
}

// That the scale at `at` is the layout's of place row * groups + group.
inline void expect_scale(const FewTokensWeights& weights, const uint8_t* at,
                         const group_int_a8::Layout& layout, int64_t place) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  if (weights.form == FewTokensForm::kIntegerGroups) {
    EXPECT_EQ(bits, layout.multipliers[place]);
  } else if (weights.shape.scale_bytes == 2) {
    EXPECT_EQ(f16_to_float(bits), layout.scales[place]);
  } else {
    float scale;
    std::memcpy(&scale, at, 4);
    EXPECT_EQ(scale, layout.scales[place]);
  }
}

}  // namespace nibble::group_int_a8_cuda::testing
