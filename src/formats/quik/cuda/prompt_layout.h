// Where the activations of a prompt lie, so that the weights of group_int_a8/cuda/few_tokens_layout.h, packed
// once for every number of tokens, are operands of the prompt's products too. That packing gives each lane
// consecutive columns; here the columns move to where the products then look for them. Plain functions, for
// host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define NIBBLE_BOTH_SIDES __host__ __device__
#else
#define NIBBLE_BOTH_SIDES
#endif

namespace nibble::quik_cuda {

// Units of columns that are permuted within; rows of activations are padded to them.
inline constexpr int kCodeUnit = 64, kOutlierUnit = 32;

// The byte of a token's codes that holds integer column c = 64 u + 16 q + 8 p + 4 h + i: 64 u + 32 p + 16 h +
// 4 q + i.
NIBBLE_BOTH_SIDES constexpr int code_position(int column) {
  const int q = column >> 4 & 3, p = column >> 3 & 1, h = column >> 2 & 1;
  return (column & ~63) | p << 5 | h << 4 | q << 2 | (column & 3);
}

// The half of a token's outliers that holds outlier o = 32 u + 8 q + 4 p + 2 h + i: 32 u + 16 p + 8 h + 2 q +
// i.
NIBBLE_BOTH_SIDES constexpr int outlier_position(int outlier) {
  const int q = outlier >> 3 & 3, p = outlier >> 2 & 1, h = outlier >> 1 & 1;
  return (outlier & ~31) | p << 4 | h << 3 | q << 1 | (outlier & 1);
}

// What the quantization knows of 8 neighbouring columns: bit e of the low byte is set where column e is an
// outlier, the other bits count the outlier columns before them.
NIBBLE_BOTH_SIDES constexpr uint32_t column_word(uint32_t outliers_before, uint32_t mask) {
  return outliers_before << 8 | mask;
}

}  // namespace nibble::quik_cuda
