#include "formats/group_int_a8/cuda/group_product.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device.h"
#include "backend/cuda/tensor_map.h"
#include "base/error.h"
#include "formats/group_int_a8/cuda/group_product_kernels.h"

namespace nibble::group_int_a8_cuda {
namespace {

int divided(int64_t value, int64_t by) { return static_cast<int>((value + by - 1) / by); }

const void* kernel_of(const FewTokensOperand& weights, const GroupConfiguration& configuration) {
  const int steps = weights.shape.group / 32;
  if (weights.form == FewTokensForm::kIntegerGroups) return multiplier_group_kernel(configuration, steps);
  return weights.shape.scale_bytes == 2 ? half_group_kernel(configuration, steps)
                                        : float_group_kernel(configuration, steps);
}

}  // namespace

GroupProduct::GroupProduct(const FewTokensOperand& weights, const PromptActivations& activations, int tokens,
                           __half* y, int64_t y_stride, const GroupConfiguration& configuration,
                           int multiprocessors)
    : configuration_(configuration) {
  static_assert(sizeof(GroupProductArguments) <= sizeof(arguments_));
  const FewTokensShape& shape = weights.shape;
  NIBBLE_CHECK(weights.form != FewTokensForm::kRows && shape.weight_bits == 4);
  kernel_ = kernel_of(weights, configuration);
  if (kernel_ == nullptr) {
    fail("there is no product of {} tokens, share {}, split {} for groups of {}", configuration.tile_tokens,
         configuration.share, configuration.split, shape.group);
  }
  const GroupProductSizes sizes = {configuration.tile_tokens, configuration.share, configuration.split,
                                   shape.group / 32, shape.scale_bytes};
  GroupProductArguments a = {};
  a.weights = cuda::make_byte_map(weights.slots, shape.tiles(), shape.tile_bytes(), kTileOutputs / 16,
                                  sizes.weight_box());
  a.scales = cuda::make_byte_map(weights.slots, shape.tiles(), shape.tile_bytes(), kTileOutputs / 16,
                                 sizes.scale_box());
  a.codes = cuda::make_tile_map(cuda::TileType::kBytes, activations.codes, tokens, activations.code_stride,
                                activations.code_stride, sizes.tokens / sizes.share);
  a.y = cuda::make_tile_map(cuda::TileType::kHalf, y, tokens, shape.n, 2 * y_stride, sizes.chunk_tokens());
  a.row_scales = weights.row_scales;
  a.bias = weights.bias;
  a.token_scales = activations.scales;
  a.n = static_cast<int>(shape.n);
  a.tokens = tokens;
  a.blocks = divided(shape.columns, kBlockColumns);
  a.slot_units = static_cast<int>(shape.slot_bytes() / 8);
  a.raster = std::max(1, 2048 / sizes.tokens);
  std::memcpy(arguments_, &a, sizeof a);

  const int cluster = sizes.share * sizes.split;
  const int tiles = divided(tokens, sizes.tokens) * divided(a.n, kTileOutputs * sizes.share);
  // Those that share columns take one tile each; the others go on to further tiles.
  blocks_ = cluster * (sizes.split > 1 ? tiles : std::min(tiles, multiprocessors / cluster));
  shared_bytes_ = sizes.shared();
  cuda::check(cudaFuncSetAttribute(kernel_, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_),
              "preparing a product");
}

cudaError_t GroupProduct::launch(int32_t* accumulators, cudaStream_t stream) const {
  GroupProductArguments a;
  std::memcpy(&a, arguments_, sizeof a);
  a.accumulators = accumulators;
  const cuda::DependentLaunch launch({.grid = dim3(static_cast<unsigned>(blocks_)),
                                      .block = dim3(kGroupProductThreads),
                                      .shared_bytes = static_cast<size_t>(shared_bytes_),
                                      .cluster = configuration_.share * configuration_.split},
                                     stream);
  return launch.run_untyped(kernel_, a);
}

}  // namespace nibble::group_int_a8_cuda
