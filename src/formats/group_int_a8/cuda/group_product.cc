#include "formats/group_int_a8/cuda/group_product.h"

#include "backend/cuda/tensor_map.h"
#include "base/error.h"
#include "formats/group_int_a8/cuda/group_product_kernels.h"

namespace nibble::group_int_a8_cuda {
namespace {

const void* kernel_of(const FewTokensOperand& weights, const GroupConfiguration& configuration) {
  const int steps = weights.shape.group / 32;
  if (weights.form == FewTokensForm::kIntegerGroups) return multiplier_group_kernel(configuration, steps);
  return weights.shape.scale_bytes == 2 ? half_group_kernel(configuration, steps)
                                        : float_group_kernel(configuration, steps);
}

}  // namespace

GroupProduct::GroupProduct(const FewTokensOperand& weights, const PromptActivations& activations, int tokens,
                           __half* y, int64_t y_stride, const GroupConfiguration& configuration,
                           int multiprocessors) {
  const FewTokensShape& shape = weights.shape;
  NIBBLE_CHECK(weights.form != FewTokensForm::kRows && shape.weight_bits == 4);
  const void* const kernel = kernel_of(weights, configuration);
  if (kernel == nullptr) {
    fail("there is no product of {} tokens, share {}, split {} for groups of {}", configuration.tile_tokens,
         configuration.share, configuration.split, shape.group);
  }
  const GroupProductSizes sizes = {configuration, shape.group / 32, shape.scale_bytes};
  GroupProductArguments a = {};
  a.weights = cuda::make_byte_map(weights.slots, shape.tiles(), shape.tile_bytes(), kTileOutputs / 16,
                                  sizes.weight_box());
  a.scales = cuda::make_byte_map(weights.slots, shape.tiles(), shape.tile_bytes(), kTileOutputs / 16,
                                 sizes.scale_box());
  a.codes = cuda::make_tile_map(cuda::TileType::kBytes, activations.codes, tokens, activations.code_stride,
                                activations.code_stride, sizes.tile_tokens / sizes.share);
  a.y = cuda::make_tile_map(cuda::TileType::kHalf, y, tokens, shape.n, 2 * y_stride, sizes.chunk_tokens());
  a.row_scales = weights.row_scales;
  a.bias = weights.bias;
  a.token_scales = activations.scales;
  a.n = static_cast<int>(shape.n);
  a.tokens = tokens;
  a.blocks = static_cast<int>(products::divided_up(shape.columns, kBlockColumns));
  a.slot_units = static_cast<int>(shape.slot_bytes() / 8);
  a.raster = sizes.raster();
  prepared_.prepare(kernel, configuration, sizes.shared(), multiprocessors, a);
}

cudaError_t GroupProduct::launch(int32_t* accumulators, cudaStream_t stream) const {
  return prepared_.launch<GroupProductArguments>(accumulators, stream);
}

}  // namespace nibble::group_int_a8_cuda
