// What the multiplying warpgroups of prompts' products share (quik/cuda/product_kernel.cuh,
// group_int_a8/cuda/group_product_kernel.cuh): how weights come from a stage of the ring to registers, and
// how a warpgroup's sums, 64 outputs times some tokens that lie in registers as wgmma.cuh says, move to
// another block or to memory.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/product_block.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile_exchange.cuh"

namespace nibble::products {

// Named barriers: the first two one per warpgroup.
constexpr int kStoreBarrier = 1, kLagBarrier = 3;

// Counts this thread in at a named barrier without waiting.
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Which thread of which warpgroup; in its warp it is lane 4 g + q.
struct Lane {
  int group, warp, g, q, thread;
  __device__ static Lane mine() {
    const int thread = static_cast<int>(threadIdx.x);
    return {thread / 128, thread % 128 / 32, thread % 32 / 4, thread % 4, thread % 128};
  }
};

// A lane's words of a packed block of weights: vectors of 16 bytes, 512 bytes apart.
template <int kCount>
__device__ inline void load_words(uint32_t (&a)[kCount], uint32_t from) {
#pragma unroll
  for (int v = 0; v < kCount / 4; ++v) {
    const uint4 words = ptx::load_shared(from + 512 * v);
    a[4 * v] = words.x;
    a[4 * v + 1] = words.y;
    a[4 * v + 2] = words.z;
    a[4 * v + 3] = words.w;
  }
}
// The same of 4-bit weights of 128 columns: bytes of 16 q.
__device__ inline void load_nibbles(uint32_t (&a)[16], uint32_t from) {
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    const uint4 words = ptx::load_shared(from + 512 * v);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      a[8 * v + 2 * p] = (pairs[p] << 4) & 0xF0F0F0F0u;
      a[8 * v + 2 * p + 1] = pairs[p] & 0xF0F0F0F0u;
    }
  }
}

// --- sums of a tile whose columns the kSplit blocks of a cluster share: each finishes kOwn tokens

// Sends the sums of the others' tokens to them, and adds theirs to its own by `add`, in the order of the
// slots. At `slices` every block has (kSplit - 1) slices of `slice` bytes per warpgroup, 16 bytes a thread:
// block r's sums come to the slot (r - to) mod kSplit - 1 of block `to`, and are counted by the warpgroup's
// of its `barriers`.
template <int kSplit, int kOwn, typename Add>
__device__ inline void exchange_sums(const int32_t (&d)[kSplit * kOwn / 2], int32_t (&own)[kOwn / 2],
                                     int rank, uint32_t slices, int slice, uint32_t barriers,
                                     const Lane& lane, const Add& add) {
  const uint32_t mine = slices + lane.group * (kSplit - 1) * slice + 16 * lane.thread;
  const uint32_t barrier = barriers + 8 * lane.group;
  if (lane.thread == 0) ptx::barrier_arrive_expecting(barrier, (kSplit - 1) * slice);
#pragma unroll
  for (int to = 0; to < kSplit; ++to) {
    if (to == rank) {
#pragma unroll
      for (int i = 0; i < kOwn / 2; ++i) own[i] = d[to * (kOwn / 2) + i];
    } else {
      const int slot = (rank - to + kSplit) % kSplit - 1;
      const uint32_t there = ptx::remote_address(mine + slot * slice, to);
      const uint32_t there_full = ptx::remote_address(barrier, to);
#pragma unroll
      for (int j = 0; j < kOwn / 8; ++j) {
        const int i = to * (kOwn / 2) + 4 * j;
        ptx::send_words(there + 2048 * j, d[i], d[i + 1], d[i + 2], d[i + 3], there_full);
      }
    }
  }
  ptx::barrier_wait(barrier, 0);
#pragma unroll
  for (int slot = 0; slot < kSplit - 1; ++slot) {
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
      const uint4 words = ptx::load_shared(mine + slot * slice + 2048 * j);
      const uint32_t others[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) own[4 * j + i] = add(own[4 * j + i], static_cast<int32_t>(others[i]));
    }
  }
}

// --- out

// Writes sums, of which a lane's first is of (token, output), to `accumulators` [tokens, n] of the kernel's
// arguments, shifted right by kShift.
template <int kShift, typename Arguments, int kCount>
__device__ inline void write_sums(const Arguments& a, const int32_t (&d)[kCount], int token, int output) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int t = token + i / 4 * 8 + i % 2, r = output + (i % 4 >= 2 ? 8 : 0);
    if (t < a.tokens && r < a.n) a.accumulators[int64_t{t} * a.n + r] = d[i] >> kShift;
  }
}

// Writes a warpgroup's sums, bits of floats, as FP16 through the copy engine: chunks of tokens, transposed on
// their way to shared memory, three in turn, so that one barrier per chunk is enough. `staging` are the
// warpgroup's three chunks, `count` the tiles that it stored before.
template <int kOwn, int kChunkTokens>
__device__ inline void store_tile(const void* y_map, uint32_t staging, const Lane& lane,
                                  const int32_t (&d)[kOwn / 2], int token, int output, int count) {
  constexpr int kChunk = kChunkTokens * 128;
  int buffer = count * (kOwn / kChunkTokens) % 3;
  const int l = lane.thread % 32, row = l % 8 + l / 16 * 8, piece = (2 * lane.warp + l / 8 % 2) ^ (l % 8);
#pragma unroll
  for (int first = 0; first < kOwn; first += kChunkTokens) {
    const uint32_t chunk = staging + buffer * kChunk;
#pragma unroll
    for (int j = first / 8; j < (first + kChunkTokens) / 8; j += 2) {
      uint32_t m[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (j + i / 2) + 2 * (i % 2);
        const __half2 pair = __floats2half2_rn(__int_as_float(d[at]), __int_as_float(d[at + 1]));
        m[i] = reinterpret_cast<const uint32_t&>(pair);
      }
      ptx::store_transposed(chunk + (8 * j - first + row) * 128 + 16 * piece, m[0], m[1], m[2], m[3]);
    }
    ptx::fence_for_copies();
    ptx::named_barrier(kStoreBarrier + lane.group, 128);
    if (lane.thread == 0) {
      ptx::tile_store(y_map, output, token + first, chunk);
      ptx::commit_stores();
      ptx::wait_stores_read<1>();
    }
    buffer = buffer == 2 ? 0 : buffer + 1;
  }
}

}  // namespace nibble::products
