// What product.cc launches.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {

using products::kBlockColumns;
using products::kTileOutputs;

struct ProductArguments {
  // How the copy engine sees the operands. Weights, multipliers: rows are tiles of 16 outputs, columns units
  // of 8 bytes.
  CUtensorMap weights, multipliers, codes, outliers, y;
  const float* scales;         // [n]
  const int32_t* code_sums;    // [n]
  const float* bias;           // [n] or null
  const float* token_scales;   // [tokens]
  const int32_t* token_zeros;  // [tokens]
  int32_t* accumulators;       // [tokens, n] or null
  int n, tokens;
  int integer_blocks, outlier_blocks;  // of kBlockColumns, and of ProductSizes::outliers()
  int outlier_offset;                  // of a tile's outlier weights, in units of 8 bytes
  int raster;                          // tiles of tokens that neighbours in time take of the same outputs
  int lag;                             // blocks by which the second warpgroup starts later
  // Of folded weights: units of 8 bytes from one slot to the next; bytes of a block's multipliers of 16
  // outputs; the step of 32 columns, shifted so far to the right, is its group.
  int slot_units, multiplier_box, multiplier_shift;
};

// The sizes of one instance of the kernel, in bytes of shared memory.
struct ProductSizes : products::Tiling {
  int bits;
  bool folded = false;
  // A block of columns: of 16 outputs' weights so many bytes, integers or outliers.
  constexpr int weight_box() const { return 256 * bits; }
  constexpr int outliers() const { return weight_box() / 32; }
  constexpr int outlier_row() const { return 2 * outliers(); }  // bytes of a token's
  constexpr int integers() const { return kTileOutputs / 16 * weight_box(); }
  // With room for the multipliers of groups of 32 columns.
  constexpr int weights() const { return integers() + (folded ? kTileOutputs * 4 * 2 : 0); }
  constexpr int stage() const { return weights() + tile_tokens * kBlockColumns; }
  // Besides the ring: chunks, slices, and the scale and the zero point of each token.
  constexpr int fixed(int chunk_tokens) const { return beside_ring(chunk_tokens, 2); }
  constexpr int stages(int chunk_tokens) const { return products::ring_stages(stage(), fixed(chunk_tokens)); }
  // Small chunks where that makes room for another stage.
  constexpr int chunk_tokens() const { return own_tokens() < 32 || stages(16) > stages(32) ? 16 : 32; }
  constexpr int chunk() const { return chunk_tokens() * 128; }
  constexpr int stages() const { return stages(chunk_tokens()); }
  constexpr int shared() const { return stages() * stage() + fixed(chunk_tokens()); }
};

// The kernel of a configuration; null where there is none.
const void* int8_product_kernel(const Configuration& configuration);
const void* int4_product_kernel(const Configuration& configuration);
const void* folded_product_kernel(const Configuration& configuration);

}  // namespace nibble::quik_cuda
