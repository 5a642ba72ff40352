// Operands of warp-level products (mma_product.h): which bits of the packed weights, and of a token's codes,
// a lane takes. Plain functions, for host and device; a test on the CPU multiplies through them.
//
// Weights are those of group_int_a8/cuda/few_tokens_layout.h. A lane's vector of 16 bytes there is
//   8 bits   the four registers of one product of 32 columns, as they are
//   4 bits   two such products after expand_codes(), or one of 64 columns in 4 bits after pair_codes(): each
//            word has rows g and g + 8 in its nibbles, columns c .. c + 3 in words 0 and 2 and c + 4 .. c + 7
//            in words 1 and 3; a product of 4-bit numbers wants 8 columns of one row in a word
//
// A product may add up its columns in any order, so pair_codes() leaves them in the cheapest one: c, c + 4, c
// + 1, c + 5, ... A token's 4-bit codes lie in that order too.
#pragma once

#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::quik_cuda {

// Columns of 4-bit codes that are permuted within; rows are padded to them.
inline constexpr int kPairedUnit = 128;

// Bytes of a token's codes, two in each.
NIBBLE_BOTH_SIDES constexpr int paired_code_bytes(int columns) {
  return (columns + kPairedUnit - 1) / kPairedUnit * (kPairedUnit / 2);
}
// Where integer column c = 128 u + 64 v + 16 q + 8 p + 4 h + i is: byte 64 u + 16 q + 8 v + 4 p + i, its low
// (h = 0) or high nibble. A lane's 16 bytes from 16 q are thereby the second operands of both products v.
NIBBLE_BOTH_SIDES constexpr int paired_code_byte(int column) {
  const int v = column / 64 % 2, q = column / 16 % 4, p = column / 8 % 2;
  return column / 128 * 64 + 16 * q + 8 * v + 4 * p + column % 4;
}
NIBBLE_BOTH_SIDES constexpr int paired_code_shift(int column) { return column / 4 % 2 * 4; }

// Four bytes with codes in their low nibbles, twice, side by side.
NIBBLE_BOTH_SIDES constexpr uint32_t pair_low_nibbles(uint32_t first, uint32_t second) {
  return (first & 0x0F0F0F0Fu) | (second & 0x0F0F0F0Fu) << 4;
}
NIBBLE_BOTH_SIDES constexpr uint32_t pair_high_nibbles(uint32_t first, uint32_t second) {
  return (first >> 4 & 0x0F0F0F0Fu) | (second & 0xF0F0F0F0u);
}

struct Registers {
  uint32_t word[4];
};

// A vector of 4-bit weights as the first operand of one product of 64 columns.
NIBBLE_BOTH_SIDES constexpr Registers pair_codes(const uint32_t (&vector)[4]) {
  return {{pair_low_nibbles(vector[0], vector[1]), pair_high_nibbles(vector[0], vector[1]),
           pair_low_nibbles(vector[2], vector[3]), pair_high_nibbles(vector[2], vector[3])}};
}
// The half `step` (0 or 1) of a vector of 4-bit weights as the first operand of a product of 32 columns of
// bytes, which are 16 times the codes.
NIBBLE_BOTH_SIDES constexpr Registers expand_codes(const uint32_t (&vector)[4], int step) {
  const uint32_t first = vector[2 * step], second = vector[2 * step + 1];
  return {{first << 4 & 0xF0F0F0F0u, first & 0xF0F0F0F0u, second << 4 & 0xF0F0F0F0u, second & 0xF0F0F0F0u}};
}

}  // namespace nibble::quik_cuda
