// What a warp of attention_few.cu loads of 32 positions, and as what: 16 consecutive bytes a lane, straight
// from global memory. With lane = 4 g + q, part i is 32 of a head's channels in two products of 16:
//
//   key(j, i)    of tile j, position 8 (g / 2) + 2 j + g % 2: four pairs of channels, b0 b1 of one product
//                and b0 b1 of the next
//   query_channel(i, q)   the first of the 8 channels that these are, in order
//   value(d)     of channel 8 d + g, positions 8 q to 8 q + 7
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/cache_codes.cuh"
#include "backend/cuda/kv_cache.h"

namespace nibble::cuda {

inline constexpr int kUnitPositions = 32;

template <typename T>
__device__ inline T load_once(const void* from) {
  T v;
  if constexpr (sizeof(T) == 16) {
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
  } else {
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(from)
                 : "memory");
  }
  return v;
}

__device__ inline uint32_t bits_of(__half2 pair) { return reinterpret_cast<const uint32_t&>(pair); }

template <int kHeadDim, bool kInt8>
struct FewUnit;

// FP16: a lane's 16 bytes are 8 channels of every 32.
template <int kHeadDim>
struct FewUnit<kHeadDim, false> {
  static constexpr int kParts = kHeadDim / 32, kTiles = kHeadDim / 8;
  uint4 k[4][kParts], v[kTiles];

  __device__ static int query_channel(int part, int q) { return 32 * part + 8 * q; }
  __device__ void load_keys(const LayerCache& cache, int page, int head, int slot, int g, int q) {
    const int position = slot + 8 * (g / 2) + g % 2;
    const __half* const keys = cache.keys + cache.offset(page, head) + int64_t{position} * kHeadDim + 8 * q;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        k[j][part] = load_once<uint4>(keys + 2 * j * kHeadDim + 32 * part);
    }
  }
  __device__ void load_values(const LayerCache& cache, int page, int head, int slot, int g, int q) {
    const __half* const values = cache.values + cache.offset(page, head) + g * kPagePositions + slot + 8 * q;
#pragma unroll
    for (int d = 0; d < kTiles; ++d) v[d] = load_once<uint4>(values + d * 8 * kPagePositions);
  }
  __device__ uint4 key(int j, int part) const { return k[j][part]; }
  __device__ uint4 value(int d) const { return v[d]; }
};

// 8 bits: a lane's 16 bytes are 16 channels of every 64, half of a group that shares a scale. Codes times
// scales are rounded to FP16, as the other cache's values are.
template <int kHeadDim>
struct FewUnit<kHeadDim, true> {
  static constexpr int kParts = kHeadDim / 64, kTiles = kHeadDim / 8, kGroups = kHeadDim / kScaleChannels;
  uint4 k[4][kParts];
  __half key_scales[4][kParts];
  uint2 v[kTiles];
  uint4 value_scales[kGroups];

  __device__ static int query_channel(int part, int q) { return 64 * (part / 2) + 16 * q + 8 * (part % 2); }
  __device__ void load_keys(const LayerCache& cache, int page, int head, int slot, int g, int q) {
    const int position = slot + 8 * (g / 2) + g % 2;
    const uint8_t* const keys =
        cache.key_codes + cache.offset(page, head) + int64_t{position} * kHeadDim + 16 * q;
    const __half* const scales =
        cache.key_scales + cache.scale_offset(page, head) + position * kGroups + q / 2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        k[j][part] = load_once<uint4>(keys + 2 * j * kHeadDim + 64 * part);
        key_scales[j][part] = scales[2 * j * kGroups + 2 * part];
      }
    }
  }
  __device__ void load_values(const LayerCache& cache, int page, int head, int slot, int g, int q) {
    const uint8_t* const values =
        cache.value_codes + cache.offset(page, head) + g * kPagePositions + slot + 8 * q;
    const __half* const scales = cache.value_scales + cache.scale_offset(page, head) + slot + 8 * q;
#pragma unroll
    for (int d = 0; d < kTiles; ++d) v[d] = load_once<uint2>(values + d * 8 * kPagePositions);
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
      value_scales[group] = *reinterpret_cast<const uint4*>(scales + group * kPagePositions);
  }
  __device__ uint4 key(int j, int part) const {
    const uint4& codes = k[j][part / 2];
    const __half2 scale = __half2half2(key_scales[j][part / 2]);
    const FourHalves low = four_codes(part % 2 == 0 ? codes.x : codes.z),
                     high = four_codes(part % 2 == 0 ? codes.y : codes.w);
    return {bits_of(__hmul2(low.low, scale)), bits_of(__hmul2(low.high, scale)),
            bits_of(__hmul2(high.low, scale)), bits_of(__hmul2(high.high, scale))};
  }
  __device__ uint4 value(int d) const {
    const FourHalves low = four_codes(v[d].x), high = four_codes(v[d].y);
    const uint4& scales = value_scales[d / 4];
    const auto scaled = [](__half2 codes, const uint32_t& scale) {
      return bits_of(__hmul2(codes, reinterpret_cast<const __half2&>(scale)));
    };
    return {scaled(low.low, scales.x), scaled(low.high, scales.y), scaled(high.low, scales.z),
            scaled(high.high, scales.w)};
  }
};

}  // namespace nibble::cuda
