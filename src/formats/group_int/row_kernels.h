// What one instruction set offers to a format whose rows are streams of codes as README.md describes them:
// plain functions on plain memory, defined once per instruction set and driven by row_op.h.
#pragma once

#include <cstdint>

namespace nibble {

// Columns of one unit: the granularity of decoding, and of groups that the kernels accept. Activations are
// padded with zeros to whole units.
inline constexpr int64_t kGroupIntUnit = 16;
// Depth of one block of the GEMM, a multiple of the unit, at most. The decoded panel (8 rows) and three
// tokens of one block fit a 32 KiB first-level cache together.
inline constexpr int64_t kGroupIntDepth = 640;
// Rows of the decoded panel, at most.
inline constexpr int64_t kGroupIntPanelRows = 8;

template <typename Layout>
struct RowKernels {
  // Tokens up to which gemv() is faster than gemm(), as measured on [1536, 576].
  int64_t gemv_tokens;
  // Copies one token x [k] to out [k rounded up to units], padded with zeros, in the column order in which
  // codes of that width decode.
  void (*arrange)(int bits, const float* x, int64_t k, float* out);
  // y[t * y_stride + r] for rows [first, first + rows) and a few tokens, reading codes directly. `x` holds
  // arranged tokens, `plain` [tokens, k] the same as they are.
  void (*gemv)(const Layout& layout, int64_t first, int64_t rows, const float* x, const float* plain,
               int64_t tokens, float* y, int64_t y_stride);
  // The same for many tokens, through `panel`: kGroupIntPanelRows * kGroupIntDepth floats, 64-byte aligned.
  void (*gemm)(const Layout& layout, int64_t first, int64_t rows, const float* x, int64_t tokens,
               float* panel, float* y, int64_t y_stride);
};

// Few tokens in integers: an activation becomes a 24-bit integer in steps of its segment's largest
// (integer_products.h), which keeps what a float product keeps, and codes are multiplied as bytes.
template <typename Layout>
struct IntegerKernels {
  int64_t most_tokens;  // up to which they are faster than RowKernels::gemm
  // Columns that share a step, or 0 where codes of this width, width of the matrix or groups do not suit.
  int64_t (*segment)(const Layout& layout);
  // Bytes of one prepared token, a multiple of 64.
  int64_t (*token_bytes)(const Layout& layout);
  // Prepares one token x [k]; linears of one input, width and segment share it. `out` is 64-byte aligned.
  void (*prepare)(const Layout& layout, const float* x, uint8_t* out);
  // As RowKernels::gemv, of prepared tokens.
  void (*multiply)(const Layout& layout, int64_t first, int64_t rows, const uint8_t* prepared,
                   const float* plain, int64_t tokens, float* y, int64_t y_stride);
};

}  // namespace nibble
