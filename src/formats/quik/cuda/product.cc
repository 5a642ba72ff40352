#include "formats/quik/cuda/product.h"

#include <cstring>

#include "backend/cuda/tensor_map.h"
#include "formats/quik/cuda/kernels.h"

namespace nibble::quik_cuda {

Product::Product(const Weights& weights, const Activations& activations)
    : weights_(weights), activations_(activations), maps_() {
  static_assert(sizeof(TileMaps) == sizeof(Maps));
  TileMaps maps = {};
  maps.codes = cuda::make_tile_map(cuda::TileType::kBytes, activations.codes, activations.tokens,
                                   weights.k_int, activations.code_stride, kTileTokens);
  maps.weights = cuda::make_tile_map(cuda::TileType::kBytes, weights.codes, weights.n, weights.k_int,
                                     weights.code_stride, kTileOutputs);
  if (weights.outliers > 0) {
    maps.outliers = cuda::make_tile_map(cuda::TileType::kHalf, activations.outliers, activations.tokens,
                                        weights.outliers, 2 * activations.outlier_stride, kTileTokens);
    maps.outlier_weights = cuda::make_tile_map(cuda::TileType::kHalf, weights.outlier_weights, weights.n,
                                               weights.outliers, 2 * weights.outlier_stride, kTileOutputs);
  }
  std::memcpy(&maps_, &maps, sizeof maps);
}

cudaError_t Product::launch(__half* y, int32_t* accumulators, int multiprocessors,
                            cudaStream_t stream) const {
  TileMaps maps;
  std::memcpy(&maps, &maps_, sizeof maps);
  return launch_product(maps, weights_, activations_, y, accumulators, multiprocessors, stream);
}

}  // namespace nibble::quik_cuda
