// What product.cc launches.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {

inline constexpr int kTileOutputs = 128, kBlockColumns = 128;
inline constexpr int kConsumers = 2, kProductThreads = 128 * (kConsumers + 1);

struct ProductArguments {
  // How the copy engine sees the operands. Weights: rows are tiles of 16 outputs, columns units of 8 bytes.
  CUtensorMap weights, codes, outliers, y;
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
};

// The sizes of one instance of the kernel, in bytes of shared memory.
struct ProductSizes {
  int tokens, share, split, bits;
  constexpr int own_tokens() const { return tokens / split; }  // that a block finishes
  // A block of columns: of 16 outputs' weights so many bytes, integers or outliers.
  constexpr int weight_box() const { return 256 * bits; }
  constexpr int outliers() const { return weight_box() / 32; }
  constexpr int outlier_row() const { return 2 * outliers(); }  // bytes of a token's
  constexpr int weights() const { return kTileOutputs / 16 * weight_box(); }
  constexpr int stage() const { return weights() + tokens * kBlockColumns; }
  constexpr int slice() const { return 64 * own_tokens() * 4; }  // sums sent to another block by a warpgroup
  constexpr int ranges() const { return own_tokens() * 8; }
  // Three chunks of so many tokens per warpgroup on their way out, two tiles' ranges, and what alignment
  // takes.
  constexpr int fixed(int chunk_tokens) const {
    return kConsumers * (3 * 128 * chunk_tokens + (split - 1) * slice()) + 2 * ranges() + 1024;
  }
  constexpr int stages(int chunk_tokens) const {
    const int fit = (232448 - 1024 - fixed(chunk_tokens)) / stage();
    return fit < 8 ? fit : 8;
  }
  // Small chunks where that makes room for another stage.
  constexpr int chunk_tokens() const { return own_tokens() < 32 || stages(16) > stages(32) ? 16 : 32; }
  constexpr int chunk() const { return chunk_tokens() * 128; }
  constexpr int stages() const { return stages(chunk_tokens()); }
  constexpr int shared() const { return stages() * stage() + fixed(chunk_tokens()); }
};

// The kernel of a configuration; null where there is none.
const void* int8_product_kernel(const Configuration& configuration);
const void* int4_product_kernel(const Configuration& configuration);

}  // namespace nibble::quik_cuda
