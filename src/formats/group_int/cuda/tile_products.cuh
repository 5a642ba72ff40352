// How the tile kernel's warpgroups multiply: each decodes the weights of its 64 rows in registers, where
// wgmma takes its first operand from, while the products of those decoded before are under way. T is the
// kernel's Tile. All is inlined: an array that is passed to a call would have to lie in memory.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile_exchange.cuh"
#include "backend/cuda/wgmma.cuh"
#include "backend/cuda/wgmma_registers.cuh"
#include "formats/group_int/cuda/decode_shape.h"
#include "formats/group_int/cuda/operands.cuh"
#include "formats/group_int/cuda/tile_sums.cuh"

namespace nibble::group_int_cuda {

constexpr int kBlockProducts = kBlockColumns / 16;  // product i: columns 16 i to 16 i + 15 of a block

// A multiplying thread's place in the ring, whose stages are a block of columns each.
template <typename T>
class RingReader {
 public:
  // `ring`: of all stages the tokens, then the weights. `barriers`: of all stages "full", then "empty".
  __device__ __forceinline__ RingReader(uint32_t ring, uint32_t barriers, int warp, int lane)
      : lane_(lane),
        magic_(decode_magic()),
        codes_(ring + T::kStages * T::kTokenBytes + warp * T::kBlockBytes + lane * 16),
        scales_(codes_ - lane * 16 + kCodeBytes + 2 * (lane / 4)),
        tokens_(ring >> 4),
        full_(barriers) {
    // In registers, not computed again and again.
    asm volatile("" : "+r"(codes_), "+r"(scales_), "+r"(tokens_), "+r"(full_));
  }

  // What this thread takes from a stage.
  struct Block {
    uint32_t codes, scales;
    uint64_t tokens;
    // Of four products, from `product` on.
    __device__ __forceinline__ uint4 load_codes(int product) const {
      return load_shared_uint4(codes + 128 * product);
    }
    // Of row g + `more`.
    __device__ __forceinline__ __half load_scale(int product, int more) const {
      const int set = T::kScales == 2 ? product / (kBlockProducts / 2) : 0;
      return load_shared_half(scales + kScaleBytes * set + 2 * more);
    }
    // As wgmma takes them.
    __device__ __forceinline__ uint64_t tokens_of(int product) const {
      return tokens + product / 4 * (T::kTokenBytes / 2 / 16) + product % 4 * 2;
    }
  };
  __device__ __forceinline__ Block wait_for_block() const {
    ptx::barrier_wait(full_ + 8 * stage_, parity_);
    return {codes_ + stage_ * T::kWeightBytes, scales_ + stage_ * T::kWeightBytes,
            ptx::operand_128b(0) + (tokens_ + stage_ * (T::kTokenBytes / 16))};
  }
  __device__ __forceinline__ void advance() {
    if (++stage_ == T::kStages) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }
  // Gives the stage before this one back to the producers that fill it, unless that has been done.
  __device__ __forceinline__ void release_previous(bool held) const {
    const int previous = (stage_ == 0 ? T::kStages : stage_) - 1;
    __syncwarp();
    const uint32_t empty = full_ + 8 * (T::kStages + previous);
    if (held) ptx::release_shared_rows<T::kShare>(empty, lane_);
  }

  __device__ __forceinline__ uint32_t magic() const { return magic_; }

 private:
  int lane_;
  uint32_t magic_;                           // decode_magic()
  uint32_t codes_, scales_, tokens_, full_;  // addresses in shared memory; of tokens in units of 16 bytes
  uint32_t parity_ = 0;
  int stage_ = 0;
};

// A batch is T::kBatch products that are issued together; these are their first operands.
template <typename T>
struct BatchOperands {
  uint32_t registers[4 * T::kBatch];

  __device__ __forceinline__ BatchOperands() {
#pragma unroll
    for (int i = 0; i < 4 * T::kBatch; ++i) registers[i] = 0;
  }

  // Of the products from `product` on; `codes` are those of its four. `scales` as decode_word has them, if
  // any.
  template <typename... Scales>
  __device__ __forceinline__ void decode(int product, uint4 codes, uint32_t magic, Scales... scales) {
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < T::kBatch; ++i) {
      uint32_t decoded[4];
      decode_word(words[(product + i) % 4], magic, scales..., decoded);
#pragma unroll
      for (int r = 0; r < 4; ++r) registers[4 * i + r] = decoded[r];
    }
  }

  // Issues the products, to be added to `sums`, or to take the place of what is there.
  __device__ __forceinline__ void multiply(int product, const typename RingReader<T>::Block& block,
                                           TileSums<T>& sums, bool replace = false) const {
    const auto& a = registers;
    ptx::warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < T::kBatch; ++i) {
      const uint64_t b = block.tokens_of(product + i);
      if constexpr (T::kScalesSums) {
        if (replace && i == 0) {
          ptx::wgmma_f16_first(sums, a[0], a[1], a[2], a[3], b);
          continue;
        }
      }
      ptx::wgmma_f16(sums, a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3], b);
    }
    ptx::warpgroup_commit();
  }

  // Waits until all batches but the last kPending, which this one is none of, have ended: its registers are
  // free.
  template <int kPending>
  __device__ __forceinline__ void wait() {
    ptx::warpgroup_wait<kPending>();
    ptx::keep_registers(registers);
  }
};

template <typename T>
__device__ __forceinline__ void clear(TileSums<T>& sums) {
#pragma unroll
  for (int i = 0; i < T::kTokens / 2; ++i) sums[i] = 0;
  ptx::keep_registers(sums);
}

// sums += `more` times the scales of rows g and g + 8.
template <typename T>
__device__ __forceinline__ void add_scaled(const TileSums<T>& more, float scale, float scale_8,
                                           TileSums<T>& sums) {
#pragma unroll
  for (int i = 0; i < T::kTokens / 2; ++i) sums[i] += more[i] * (i % 4 < 2 ? scale : scale_8);
}

// The two ways to add the products of the blocks [begin, end), the next in the ring, to `sums`. Batches take
// `even` and `odd` in turn, so that one's products are under way while the other's operands are decoded. A
// stage is released in the course of the next, once the products that read it have ended.

// Weights u - 8 are exact; a group's sums are multiplied by its scales.
template <typename T>
__device__ __forceinline__ void multiply_scaling_sums(int begin, int end, RingReader<T>& ring,
                                                      BatchOperands<T>& even, BatchOperands<T>& odd,
                                                      TileSums<T>& sums) {
  TileSums<T> group;
  float scale = 0, scale_8 = 0;
  clear<T>(group);
  const auto wait_for_group = [&] {
    odd.template wait<0>();
    ptx::keep_registers(group);
  };
  for (int i = begin; i < end; ++i) {
    const auto block = ring.wait_for_block();
    uint4 codes = {};
#pragma unroll
    for (int product = 0; product < kBlockProducts; product += T::kBatch) {
      const bool is_even = product / T::kBatch % 2 == 0;
      BatchOperands<T>& batch = is_even ? even : odd;
      if (product % 4 == 0) codes = block.load_codes(product);
      const bool first = product % (kBlockProducts / T::kScales) == 0;  // of a group
      float next = 0, next_8 = 0;
      if (first) {
        next = __half2float(block.load_scale(product, 0));
        next_8 = __half2float(block.load_scale(product, 8));
      }
      batch.decode(product, codes, ring.magic());
      if (first) {
        wait_for_group();
        if (product == 0) ring.release_previous(i > begin);
        add_scaled<T>(group, scale, scale_8, sums);
        scale = next;
        scale_8 = next_8;
      }
      batch.multiply(product, block, group, first);
      (is_even ? odd : even).template wait<1>();
    }
    ring.advance();
  }
  wait_for_group();
  add_scaled<T>(group, scale, scale_8, sums);
}

// Each weight is multiplied by its scale and rounded once.
template <typename T>
__device__ __forceinline__ void multiply_scaling_weights(int begin, int end, RingReader<T>& ring,
                                                         BatchOperands<T>& even, BatchOperands<T>& odd,
                                                         TileSums<T>& sums) {
  for (int i = begin; i < end; ++i) {
    const auto block = ring.wait_for_block();
    uint4 codes = {};
#pragma unroll
    for (int product = 0; product < kBlockProducts; product += T::kBatch) {
      const bool is_even = product / T::kBatch % 2 == 0;
      BatchOperands<T>& batch = is_even ? even : odd;
      if (product % 4 == 0) codes = block.load_codes(product);
      const __half2 scale = __half2half2(block.load_scale(product, 0)),
                    scale_8 = __half2half2(block.load_scale(product, 8));
      batch.decode(product, codes, ring.magic(), scale, scale_8);
      batch.multiply(product, block, sums);
      (is_even ? odd : even).template wait<1>();
      if (product == 0) ring.release_previous(i > begin);
    }
    ring.advance();
  }
  odd.template wait<0>();
  ptx::keep_registers(sums);
}

// sums = products of the blocks [begin, end), the next in the ring.
template <typename T>
__device__ __forceinline__ void multiply(int begin, int end, RingReader<T>& ring, BatchOperands<T>& even,
                                         BatchOperands<T>& odd, TileSums<T>& sums) {
  static_assert(kBlockProducts / T::kBatch % 2 == 0);  // a block's last batch is an odd one
  clear<T>(sums);
  if constexpr (T::kScalesSums) {
    multiply_scaling_sums<T>(begin, end, ring, even, odd, sums);
  } else {
    multiply_scaling_weights<T>(begin, end, ring, even, odd, sums);
  }
  ring.release_previous(true);
}

}  // namespace nibble::group_int_cuda
