// What the launches of both products of prompts share (quik/cuda/product.h,
// group_int_a8/cuda/group_product.h): how a product is cut into tiles for blocks and clusters, what that
// takes of a block's shared memory, and a kernel that is ready to run on its operands.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device.h"

namespace nibble::products {

// A tile's outputs, and the columns of a stage of the ring. Of a block's warpgroups two multiply, 64 outputs
// each; one more copies.
inline constexpr int kTileOutputs = 128, kBlockColumns = 128;
inline constexpr int kConsumers = 2, kThreads = 128 * (kConsumers + 1);

constexpr int64_t divided_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// How a product uses the chip.
struct Tiling {
  int tile_tokens;  // times kTileOutputs, per block
  int share;        // blocks of a cluster that share the tokens' codes (1 or 2)
  int split;        // blocks of a cluster that share the columns (1 or 2)

  constexpr int cluster() const { return share * split; }
  // Of y [tokens, n]: what a cluster computes at a time.
  constexpr int64_t cluster_tiles(int64_t tokens, int64_t n) const {
    return divided_up(tokens, tile_tokens) * divided_up(n, int64_t{kTileOutputs} * share);
  }
  // How many of them the busiest cluster computes.
  constexpr int64_t rounds(int64_t tokens, int64_t n, int multiprocessors) const {
    return divided_up(cluster_tiles(tokens, n), multiprocessors / cluster());
  }

  constexpr int own_tokens() const { return tile_tokens / split; }  // that a block finishes
  // Bytes of sums that a warpgroup sends to another block.
  constexpr int slice() const { return 64 * own_tokens() * 4; }
  // Bytes of shared memory besides the ring: on their way out three chunks of so many tokens per warpgroup;
  // slices; for two tiles so many numbers of 4 bytes per token; what alignment takes.
  constexpr int beside_ring(int chunk_tokens, int numbers) const {
    return kConsumers * (3 * 128 * chunk_tokens + (split - 1) * slice()) + 2 * 4 * numbers * own_tokens() +
           1024;
  }
  // Tiles of tokens that neighbours in time take of the same outputs.
  constexpr int raster() const { return std::max(1, 2048 / tile_tokens); }

  bool operator==(const Tiling&) const = default;
};

// How many stages of a ring fit beside `beside_ring` bytes, and are of use.
constexpr int ring_stages(int stage_bytes, int beside_ring) {
  const int fit = (232448 - 1024 - beside_ring) / stage_bytes;
  return fit < 8 ? fit : 8;
}

// A kernel of product_parts.cuh with everything that it is launched with.
class PreparedProduct {
 public:
  // `arguments` has `tokens`, `n` and `accumulators`. Throws Error where the driver refuses.
  template <typename Arguments>
  void prepare(const void* kernel, const Tiling& tiling, int shared_bytes, int multiprocessors,
               const Arguments& arguments) {
    static_assert(sizeof(Arguments) <= sizeof(arguments_));
    std::memcpy(arguments_, &arguments, sizeof arguments);
    kernel_ = kernel;
    cluster_ = tiling.cluster();
    shared_bytes_ = shared_bytes;
    // Those that share columns take one tile each; the others go on to further tiles.
    const auto tiles = static_cast<int>(tiling.cluster_tiles(arguments.tokens, arguments.n));
    blocks_ = cluster_ * (tiling.split > 1 ? tiles : std::min(tiles, multiprocessors / cluster_));
    cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                "preparing a product");
  }
  // `Arguments` are those of prepare(). Where `accumulators` is not null the kernel writes its sums there.
  template <typename Arguments>
  cudaError_t launch(int32_t* accumulators, cudaStream_t stream) const {
    Arguments arguments;
    std::memcpy(&arguments, arguments_, sizeof arguments);
    arguments.accumulators = accumulators;
    const cuda::DependentLaunch launch({.grid = dim3(static_cast<unsigned>(blocks_)),
                                        .block = dim3(kThreads),
                                        .shared_bytes = static_cast<size_t>(shared_bytes_),
                                        .cluster = cluster_},
                                       stream);
    return launch.run_untyped(kernel_, arguments);
  }

 private:
  const void* kernel_ = nullptr;
  int blocks_ = 0, shared_bytes_ = 0, cluster_ = 1;
  unsigned char arguments_[1024];  // copied out before they are used: no alignment
};

}  // namespace nibble::products
