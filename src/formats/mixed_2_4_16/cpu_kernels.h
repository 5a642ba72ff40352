// What one instruction set offers to mixed_2_4_16: plain functions on plain memory, defined in
// cpu_kernels.isa.cc once per instruction set and driven by cpu.cc.
#pragma once

#include <cstdint>

#include "formats/mixed_2_4_16/layout.h"

namespace nibble {

// Tokens of one pass over the codes, at most.
inline constexpr int64_t kMixedMostPass = 4;
// Depth of one block of the GEMM: whole units.
inline constexpr int64_t kMixedDepth = 192;
inline constexpr int64_t kMixedRowStride = kMixedDepth + 16;

// A token as integers, one line of 64 bytes per group: x_j = X_j * 2^-21 * exponent to the nearest integer,
// and X_j = (high_j * 256 + middle_j) * 256 + low_j in signed bytes. Columns beyond the input are 0.
struct MixedLine {
  int32_t bytes[3][4];  // high, middle, low; byte m of dword i is that of column 4 * m + i
  float high_sum;       // of high_j
  float low_sum;        // of middle_j * 256 + low_j
  float exponent;       // a power of two; NaN where an x_j is not finite
  float unused;
};
static_assert(sizeof(MixedLine) == 64);

struct MixedKernels {
  int64_t pass_tokens;  // of one gemv(), at most kMixedMostPass
  int64_t few_tokens;   // up to which gemv() is faster than multiply()
  int64_t panel_rows;   // outputs of one GEMM panel: one tile of rows, or two
  int64_t pack_rows;    // tokens of one packed block
  // x [k] as integers, groups in their own order, padding included.
  void (*to_integers)(const float* x, int64_t k, int64_t groups, MixedLine* lines);
  // Rows of one tile times `count` (at most pass_tokens) tokens, lines [count, 4 * units]. `second` is
  // scratch for 8 * units floats, 64-byte aligned; `starts` [n + 1] are the sparse rows' first entries, x
  // [tokens, k] the tokens as floats.
  void (*gemv)(const MixedLayout& layout, int64_t tile, const MixedLine* lines, int64_t count, const float* x,
               const int64_t* starts, float* second, float* y, int64_t y_stride);
  // Units [unit, unit + count) of at most pack_rows tokens in the order of places, one block of the GEMM's
  // rows.
  void (*pack)(const MixedLayout& layout, const float* x, int64_t tokens, int64_t unit, int64_t count,
               float* packed);
  // Weights of rows [row, row + panel_rows) in the same units, to panel [kMixedDepth][panel_rows].
  void (*decode)(const MixedLayout& layout, int64_t row, int64_t unit, int64_t count, const int64_t* starts,
                 const uint16_t* places, float* panel);
  // y [tokens, columns] (+)= packed [pack_rows, ...] times panel; from the bias on where `first`.
  void (*multiply)(const float* packed, int64_t tokens, int64_t depth, const float* panel, int64_t columns,
                   bool first, const float* bias, float* y, int64_t y_stride);
};

namespace avx2 {
extern const MixedKernels kMixedKernels, kMixedSyncKernels;
}
namespace avxvnni {
extern const MixedKernels kMixedKernels, kMixedSyncKernels;
}
namespace avx512vnni {
extern const MixedKernels kMixedKernels, kMixedSyncKernels;
}

}  // namespace nibble
