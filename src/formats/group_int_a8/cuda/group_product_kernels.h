// What group_product.cc launches.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "formats/group_int_a8/cuda/group_product.h"

namespace nibble::group_int_a8_cuda {

using products::kBlockColumns;
using products::kTileOutputs;

struct GroupProductArguments {
  // How the copy engine sees the operands. Weights and scales: rows are tiles of 16 outputs, columns units of
  // 8 bytes.
  CUtensorMap weights, scales, codes, y;
  const float* row_scales;    // [n]; null for kFloatGroups
  const float* bias;          // [n] or null
  const float* token_scales;  // [tokens]
  int32_t* accumulators;      // [tokens, n] or null
  int n, tokens;
  int blocks;      // of kBlockColumns
  int slot_units;  // of 8 bytes from one slot, two blocks, to the next
  int raster;      // tiles of tokens that neighbours in time take of the same outputs
};

// What a group's scale is, and what is done with the group's sum.
enum class GroupScale { kHalf, kFloat, kMultiplier };

// The sizes of one instance of the kernel, in bytes of shared memory.
struct GroupProductSizes : products::Tiling {
  int group_steps;  // of 32 columns: 4, 2 or 1
  int scale_bytes;
  // A block of columns: of 16 outputs' weights and scales.
  constexpr int weight_box() const { return 1024; }
  constexpr int scale_box() const { return 4 / group_steps * 16 * scale_bytes; }
  constexpr int weights() const { return kTileOutputs / 16 * weight_box(); }
  constexpr int scales() const { return kTileOutputs / 16 * scale_box(); }
  constexpr int codes() const { return tile_tokens * kBlockColumns; }
  constexpr int stage() const { return weights() + codes() + scales(); }
  constexpr int chunk_tokens() const { return own_tokens() < 32 ? 16 : 32; }
  constexpr int chunk() const { return chunk_tokens() * 128; }
  // Besides the ring: chunks, slices, and the scale of each token.
  constexpr int fixed() const { return beside_ring(chunk_tokens(), 1); }
  constexpr int stages() const { return products::ring_stages(stage(), fixed()); }
  constexpr int shared() const { return stages() * stage() + fixed(); }
};

// The kernels by scale and steps of 32 columns in a group; null where there is none of a configuration.
const void* half_group_kernel(const GroupConfiguration& configuration, int group_steps);
const void* float_group_kernel(const GroupConfiguration& configuration, int group_steps);
const void* multiplier_group_kernel(const GroupConfiguration& configuration, int group_steps);

}  // namespace nibble::group_int_a8_cuda
