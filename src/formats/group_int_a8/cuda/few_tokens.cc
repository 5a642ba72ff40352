#include "formats/group_int_a8/cuda/few_tokens.h"

#include <algorithm>
#include <bit>

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device.h"
#include "base/error.h"
#include "formats/group_int_a8/cuda/few_tokens_launch.h"

namespace nibble::group_int_a8_cuda {
namespace {

constexpr int kMaximumCluster = 8;               // what every Hopper GPU can place
constexpr int kMaximumStages = 16;               // per warp
constexpr int kBlockBytes = 227 << 10;           // shared memory a block can have
constexpr int kMultiprocessorBytes = 228 << 10;  // of it, with 1 KiB per block for the system

int slot_scale(int weight_bits) { return weight_bits == 4 ? 1 : 2; }

const void* kernel_of(const FewTokensOperand& weights, int token_tiles, int slots, bool write_group_sums) {
  switch (weights.form) {
    case FewTokensForm::kRows:
      return rows_kernel(weights.shape.weight_bits, token_tiles, slots);
    case FewTokensForm::kFloatGroups:
      return float_groups_kernel(token_tiles, slots, write_group_sums);
    case FewTokensForm::kIntegerGroups:
      return integer_groups_kernel(token_tiles, slots);
  }
  return nullptr;
}

int divided(int64_t value, int64_t by) { return static_cast<int>((value + by - 1) / by); }

// Warps that the slots occupy, `slots` each: integer and outlier slots apart.
int occupied_warps(const FewTokensShape& shape, int slots) {
  return divided(shape.integer_slots(), slots) + divided(shape.outlier_slots(), slots);
}

FewTokensShared shared_of(const FewTokensOperand& weights, const FewTokensPlan& plan) {
  return few_tokens_shared(weights.form == FewTokensForm::kRows, plan.token_tiles, plan.warps, plan.stages,
                           static_cast<int>(weights.shape.slot_bytes()), plan.cluster);
}

cuda::DependentLaunch launch_of(const FewTokensOperand& weights, const FewTokensPlan& plan,
                                cudaStream_t stream) {
  return {{.grid = dim3(plan.clusters * plan.cluster),
           .block = dim3(32 * plan.warps),
           .shared_bytes = static_cast<size_t>(shared_of(weights, plan).bytes),
           .cluster = plan.cluster > 1 ? plan.cluster : 0},
          stream};
}

// The largest instance slots first would leave multiprocessors idle: the fewest blocks per row win, then the
// smallest instance.
bool choose(const FewTokensOperand& weights, int token_tiles, FewTokensPlan* plan) {
  const int bits = weights.shape.weight_bits;
  for (int cluster = 1; cluster <= kMaximumCluster; ++cluster) {
    for (const FewTokensInstance& instance : kFewTokensInstances) {
      if (instance.token_tiles != token_tiles) continue;
      const int slots = instance.slots * slot_scale(bits);
      const int warps = divided(occupied_warps(weights.shape, slots), cluster);
      if (warps > maximum_few_tokens_warps(weights.form, bits, token_tiles, slots)) continue;
      plan->token_tiles = token_tiles;
      plan->slots = slots;
      plan->warps = warps;
      plan->cluster = cluster;
      return true;
    }
  }
  return false;
}

}  // namespace

FewTokensPlan plan_few_tokens(const FewTokensOperand& weights, int tokens, int multiprocessors, int blocks) {
  NIBBLE_CHECK(tokens >= 1 && tokens <= kMaximumFewTokens);
  FewTokensPlan plan;
  int token_tiles = 1;
  while (8 * token_tiles < tokens) token_tiles *= 2;
  // Where a cluster's registers do not hold all tokens, the weights are read once for half of them.
  while (!choose(weights, token_tiles, &plan)) {
    token_tiles /= 2;
    if (token_tiles == 0) {
      fail("{} columns with {} outlier columns: more than a cluster of {} blocks holds for few tokens",
           weights.shape.columns, weights.shape.outliers, kMaximumCluster);
    }
  }
  const void* kernel = kernel_of(weights, plan.token_tiles, plan.slots, false);
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBlockBytes),
              "allowing shared memory");
  if (weights.form == FewTokensForm::kFloatGroups) {
    cuda::check(cudaFuncSetAttribute(kernel_of(weights, plan.token_tiles, plan.slots, true),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, kBlockBytes),
                "allowing shared memory");
  }
  cudaFuncAttributes attributes = {};
  cuda::check(cudaFuncGetAttributes(&attributes, kernel), "asking for registers");
  const int register_blocks = std::max(1, 65536 / (32 * plan.warps * ((attributes.numRegs + 7) / 8 * 8)));
  const int per_multiprocessor = std::clamp(blocks == 0 ? 2 : blocks, 1, register_blocks);

  const int most = std::min(kBlockBytes, kMultiprocessorBytes / per_multiprocessor - 1024);
  const int stage_bytes = plan.warps * static_cast<int>(weights.shape.slot_bytes() + 8);
  plan.stages = std::min(kMaximumStages, (most - 8 - shared_of(weights, plan).bytes) / stage_bytes);
  NIBBLE_CHECK(plan.stages >= 1);
  plan.clusters = multiprocessors * per_multiprocessor;
  if (plan.cluster > 1) {
    plan.clusters = 1;
    const cuda::DependentLaunch launch = launch_of(weights, plan, nullptr);
    cuda::check(cudaOccupancyMaxActiveClusters(&plan.clusters, kernel, &launch.config()), "placing clusters");
    plan.clusters = std::max(1, plan.clusters);
  }
  plan.clusters = std::min<int>(plan.clusters, static_cast<int>(weights.shape.tiles()));
  return plan;
}

cudaError_t launch_few_tokens(const FewTokensOperand& weights, const FewTokensActivations& activations,
                              int tokens, const FewTokensPlan& plan, __half* y, int64_t y_stride,
                              int32_t* accumulators, cudaStream_t stream) {
  const FewTokensShape& shape = weights.shape;
  const bool rows = weights.form == FewTokensForm::kRows;
  if (tokens < 1 || plan.clusters < 1 || activations.code_stride % 16 != 0 ||
      activations.code_stride < shape.columns ||
      (shape.outliers > 0 &&
       (activations.outlier_stride % 8 != 0 || activations.outlier_stride < shape.outliers))) {
    return cudaErrorInvalidValue;
  }
  const bool group_sums = weights.form == FewTokensForm::kFloatGroups && accumulators != nullptr;
  const void* kernel = kernel_of(weights, plan.token_tiles, plan.slots, group_sums);
  if (kernel == nullptr) return cudaErrorInvalidValue;
  const int groups = shape.group == 0 ? 1 : divided(shape.columns, shape.group);
  const int64_t accumulators_per_token = group_sums ? shape.n * groups : shape.n;
  const cuda::DependentLaunch launch = launch_of(weights, plan, stream);
  const int step = 8 * plan.token_tiles;
  for (int first = 0; first < tokens; first += step) {
    const int now = std::min(step, tokens - first);
    const int most_tokens = divided(now, plan.cluster), kind_words = most_tokens * kTileRows;
    const int block_words = (rows ? 2 : 1) * kind_words;
    FewTokensProblem problem = {
        .slots = weights.slots,
        .row_scales = weights.row_scales,
        .code_sums = weights.code_sums,
        .bias = weights.bias,
        .codes = activations.codes + first * activations.code_stride,
        .scales = activations.scales + first,
        .zeros = rows ? activations.zeros + first : nullptr,
        .outliers = shape.outliers > 0 ? activations.outliers + first * activations.outlier_stride : nullptr,
        .y = y + first * y_stride,
        .accumulators = accumulators == nullptr ? nullptr : accumulators + first * accumulators_per_token,
        .code_stride = activations.code_stride,
        .outlier_stride = activations.outlier_stride,
        .y_stride = y_stride,
        .tile_bytes = shape.tile_bytes(),
        .n = static_cast<int>(shape.n),
        .tokens = now,
        .outlier_count = static_cast<int>(shape.outliers),
        .integer_slots = static_cast<int>(shape.integer_slots()),
        .outlier_slots = static_cast<int>(shape.outlier_slots()),
        .slot_bytes = static_cast<int>(shape.slot_bytes()),
        .group_shift = shape.group == 0 ? 0 : std::countr_zero(static_cast<unsigned>(shape.group) / 32),
        .scale_bytes = shape.scale_bytes,
        .groups = groups,
        .slots_per_warp = plan.slots,
        .stages = plan.stages,
        .tiles = static_cast<int>(shape.tiles()),
        .cluster = plan.cluster,
        .clusters = plan.clusters,
        .integer_warps = divided(shape.integer_slots(), plan.slots),
        .busy_warps = occupied_warps(shape, plan.slots),
        .most_tokens = most_tokens,
        .owners = divided(now, most_tokens),
        .kind_words = kind_words,
        .block_words = block_words,
        .turn_words = plan.cluster * block_words,
        .aligned_rows = y_stride % 4 == 0 && reinterpret_cast<uintptr_t>(y) % 8 == 0,
        .shared = shared_of(weights, plan),
    };
    if (const cudaError_t error = launch.run_untyped(kernel, problem); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace nibble::group_int_a8_cuda
