// What product.cc launches.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {

inline constexpr int kTileOutputs = 128, kBlockColumns = 128, kBlockOutliers = 64;
inline constexpr int kConsumers = 2, kProductThreads = 128 * (kConsumers + 1);

struct ProductArguments {
  // How the copy engine sees the operands. Weights: rows are tiles of 16 outputs, columns units of 8 bytes.
  CUtensorMap weights, outlier_weights, codes, outliers, y;
  const float* scales;        // [n]
  const int32_t* code_sums;   // [n]
  const float* bias;          // [n] or null
  const float* token_scales;  // [tokens]
  const int32_t* token_zeros; // [tokens]
  int32_t* accumulators;      // [tokens, n] or null
  int n, tokens;
  int integer_blocks, outlier_blocks;  // of 128 columns and 64 outliers
  int outlier_offset;                  // of a tile's outlier weights, in units of 8 bytes
  int raster;                          // tiles of tokens that neighbours in time take of the same outputs
  int lag;                             // blocks by which the second warpgroup starts later
};

// The sizes of one instance of the kernel, in bytes of shared memory.
struct ProductSizes {
  int tokens, share, split, bits;
  constexpr int own_tokens() const { return tokens / split; }  // that a block finishes
  constexpr int weight_box() const { return 256 * bits; }      // of 16 outputs, in a block of columns
  constexpr int weights() const { return kTileOutputs / 16 * 2048; }
  constexpr int stage() const { return weights() + tokens * kBlockColumns; }
  constexpr int chunk_tokens() const { return tokens == 192 || own_tokens() < 32 ? 16 : 32; }  // stored at a time
  constexpr int chunk() const { return chunk_tokens() * 128; }
  constexpr int slice() const { return 64 * own_tokens() * 4; }  // sums sent to another block by a warpgroup
  constexpr int ranges() const { return own_tokens() * 8; }
  constexpr int fixed() const {  // 3 chunks per warpgroup on their way out, and two tiles' ranges
    return kConsumers * (3 * chunk() + (split - 1) * slice()) + 2 * ranges() + 1024;
  }
  constexpr int stages() const {
    const int fit = (232448 - 1024 - fixed()) / stage();
    return fit < 8 ? fit : 8;
  }
  constexpr int shared() const { return stages() * stage() + fixed(); }
};

// The kernel of a configuration; null where there is none.
const void* int8_product_kernel(const Configuration& configuration);
const void* int4_product_kernel(const Configuration& configuration);

}  // namespace nibble::quik_cuda
