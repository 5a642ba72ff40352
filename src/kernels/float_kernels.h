// Float bricks shared by formats and models, one table of functions per instruction set.
//
// The functions are single-threaded pieces without allocation; parallel loops over them live with their
// callers (gemm.h, attention.h). Each output element is computed by a sequence of operations that does not
// depend on how the work was cut into pieces, so results are the same for any number of threads.
#pragma once

#include <cstdint>

#include "backend/cpu/cpu_path.h"

namespace nibble {

enum class WeightType { kF32, kF16, kBF16 };

// How a cache keeps keys or values; kernels/cache_row.h has the layout of a row.
enum class CacheType { kF32, kF16, kQ8, kQ4 };

// Depth of one block of the GEMM: a panel of that depth and the packed rows of two tiles fit the first-level
// cache. And the row stride within a packed block: an odd number of cache lines, so that its rows do not fall
// into the same cache sets.
inline constexpr int64_t kGemmDepth = 192;
inline constexpr int64_t kGemmRowStride = kGemmDepth + 16;
// Tokens for which gemv() beats packing a panel.
inline constexpr int64_t kGemvTokens = 4;
// Keys per tile of attention; caches keep each aligned run of this many positions contiguous.
inline constexpr int64_t kKeyTile = 64;
// Columns that mix_rows() works on at a time, at most: what its scratch holds of each row.
inline constexpr int64_t kMixColumns = 32;

// One panel of weights times packed rows, over one block of the depth.
struct GemmPanel {
  const float* packed;  // row blocks [gemm_rows][kGemmRowStride], one behind the other
  int64_t rows;
  int64_t depth;  // <= kGemmDepth
  WeightType type;
  const void* weight;     // element (first row of the panel, first depth) of the matrix
  int64_t weight_stride;  // elements between rows
  int64_t columns;        // rows of the weight: outputs, <= gemm_columns
  bool first;             // y starts at the bias; otherwise the products are added to y
  const float* bias;      // [columns] or nullptr
  float* y;
  int64_t y_stride;
  float* panel;  // scratch, kGemmDepth * gemm_columns floats, 64-byte aligned
  const void*
      next;  // the weight of the next call, fetched meanwhile, or nullptr; of as many rows and columns
};

// One query block of one KV head against the keys before it. Row r of the block is token r / group, head r %
// group.
struct AttentionBlock {
  const float* query;  // token t, head h of the group at query + t * query_stride + h * head_dim
  int64_t query_stride;
  float* out;  // the same layout
  int64_t out_stride;
  int64_t head_dim;
  int64_t group;           // query heads that share the KV head
  int64_t tokens;          // of the block
  int64_t first_position;  // of its first token
  int64_t window;          // positions a token sees, itself included; 0: all before it
  float scale;             // of the scores: 1 / sqrt(head_dim)
  // Positions [i * kKeyTile, (i + 1) * kKeyTile) of the head: kKeyTile cache rows of the type.
  CacheType key_type, value_type;
  const void* const* key_tiles;
  const void* const* value_tiles;
  float* scratch;  // attention_scratch(tokens * group, head_dim) floats
};

// A part of the keys for one token: what AttentionBlock says with tokens = 1, restricted to positions [begin,
// end). Writes for each head of the group the largest score, the sum of exponentials relative to it, and the
// weighted values.
struct AttentionPart {
  const float* query;
  int64_t head_dim, group;
  int64_t begin, end;
  float scale;
  CacheType key_type, value_type;
  const void* const* key_tiles;
  const void* const* value_tiles;
  float* scores;    // [group, end - begin] scratch
  float* largest;   // [group]
  float* sum;       // [group]
  float* weighted;  // [group, head_dim]
};

struct FloatKernels {
  const char* name;
  CpuPath path;

  // Conversions of `count` elements; to 16 bits with rounding to nearest even.
  void (*f16_to_f32)(const uint16_t* in, int64_t count, float* out);
  void (*bf16_to_f32)(const uint16_t* in, int64_t count, float* out);
  void (*f32_to_f16)(const float* in, int64_t count, uint16_t* out);
  void (*f32_to_bf16)(const float* in, int64_t count, uint16_t* out);
  // Whether no element is NaN or infinite.
  bool (*all_finite)(WeightType type, const void* values, int64_t count);

  // out = x / sqrt(mean(x^2) + epsilon) * weight, over one row. out may be x.
  void (*rms_norm)(const float* x, const float* weight, int64_t size, float epsilon, float* out);
  // out = (x - mean) / sqrt(variance + epsilon) * weight + bias (nullptr: none), over one row. out may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t size, float epsilon,
                     float* out);
  // Rotates one head in place: pairs (i, i + half) or, interleaved, (2i, 2i + 1), for i in [0, half).
  void (*rope)(float* head, const float* cosines, const float* sines, int64_t half, bool interleaved);
  // out = silu(gate) * up; out may be either.
  void (*silu_mul)(const float* gate, const float* up, int64_t count, float* out);
  void (*add)(const float* x, int64_t count, float* y);  // y += x
  void (*exp)(const float* x, int64_t count, float* out);
  // In place: exp(x - max) / sum. Entries of -infinity become 0; at least one must be finite.
  void (*softmax)(float* x, int64_t count);

  // GEMM: y [rows, columns] = x W^T + bias with W row-major [columns, k] of `type`.
  int64_t gemm_rows;     // rows of one tile
  int64_t gemm_columns;  // columns of one panel
  // Packs one row block: at most gemm_rows rows of x, `stride` apart, `depth` columns of them; missing rows
  // are 0.
  void (*gemm_pack_rows)(const float* x, int64_t rows, int64_t stride, int64_t depth, float* packed);
  void (*gemm_panel)(const GemmPanel& panel);
  // The same for at most kGemvTokens tokens, without packing; any number of columns.
  void (*gemv)(const float* x, int64_t tokens, int64_t k, WeightType type, const void* weight,
               int64_t columns, const float* bias, float* y, int64_t y_stride);

  // x = S x * scale with Sylvester's S of order `size`, a power of two.
  void (*sylvester)(float* x, int64_t size, float scale);
  // x [rows, columns] = matrix [rows, rows] * x, rows `stride` apart; scratch: rows * kMixColumns floats.
  void (*mix_rows)(float* x, int64_t rows, int64_t columns, int64_t stride, const float* matrix,
                   float* scratch);

  // Writes one row of a cache.
  void (*store_cache_row)(CacheType type, const float* values, int64_t head_dim, void* row);
  int64_t (*attention_scratch)(int64_t rows, int64_t head_dim);
  void (*attention_block)(const AttentionBlock& block);
  void (*attention_part)(const AttentionPart& part);
};

// The table of the fastest path enabled in this process.
const FloatKernels& float_kernels();
// The table written for kScalar, kAvx2 or kAvx512Vnni; nullptr when this process may not run it.
const FloatKernels* float_kernels_for(CpuPath path);

}  // namespace nibble
