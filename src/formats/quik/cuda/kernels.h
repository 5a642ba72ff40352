// What product.cc launches.
#pragma once

#include <cuda.h>

#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda {

inline constexpr int kTileTokens = 128, kTileOutputs = 256, kTileBytes = 128;

// How the copy engine sees the four operands.
struct TileMaps {
  CUtensorMap codes, weights;             // UINT8, boxes [kTileTokens, 128], [kTileOutputs, 128]
  CUtensorMap outliers, outlier_weights;  // FP16, boxes [kTileTokens, 64], [kTileOutputs, 64]
};

cudaError_t launch_product(const TileMaps& maps, const Weights& weights, const Activations& activations,
                           __half* y, int32_t* accumulators, int multiprocessors, cudaStream_t stream);

}  // namespace nibble::quik_cuda
