// Tiles between global memory and the blocks of a cluster beyond plain copies (ptx.cuh): one copy for several
// blocks, tiles written back, words sent to another block (PTX ISA, "cp.async.bulk.tensor", "st.async",
// "stmatrix").
#pragma once

#include <cstdint>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/ptx.cuh"

namespace nibble::ptx {

// tile_copy into the same place of every block of the cluster whose bit is set in `blocks`; each block's own
// barrier at the address of `barrier` is told of the bytes.
__device__ inline void tile_copy_to_blocks(uint32_t shared, const void* tensor_map, int column, int row,
                                           uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(tensor_map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

// --- rows that kShare blocks of a cluster (1: none) read together

// Copies kRows rows, `row_bytes` of each, from `column` and `row` of the map to `shared` in each of the
// blocks, which must all call it: block `rank` fetches its part for all. Maps are of kRows / kShare rows.
template <int kRows, int kShare>
__device__ inline void copy_shared_rows(uint32_t shared, const void* tensor_map, int column, int row,
                                        int rank, int row_bytes, uint32_t barrier) {
  if constexpr (kShare > 1) {
    constexpr int kPart = kRows / kShare;
    tile_copy_to_blocks(shared + rank * kPart * row_bytes, tensor_map, column, row + rank * kPart, barrier,
                        (1 << kShare) - 1);
  } else {
    tile_copy(shared, tensor_map, column, row, barrier);
  }
}
// Tells all of them, by one of their threads each, that a reader is done with what lies in this block; the
// barrier is at `empty` in each. For every `thread` of the reader, counted from 0.
template <int kShare>
__device__ inline void release_shared_rows(uint32_t empty, int thread) {
  if constexpr (kShare > 1) {
    if (thread < kShare) remote_arrive(remote_address(empty, thread));
  } else {
    if (thread == 0) barrier_arrive(empty);
  }
}

// Writes a box from shared memory; what lies beyond the matrix is left out. Counts in the thread's bulk
// group.
__device__ inline void tile_store(const void* tensor_map, int column, int row, uint32_t shared) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(tensor_map),
      "r"(column), "r"(row), "r"(shared)
      : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until all but the last kPending groups of this thread have left shared memory.
template <int kPending>
__device__ inline void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of halves, held as sums of products are (lane 4 g + q: row g, columns 2 q and 2 q + 1),
// stored transposed: lane 8 m + i gives the address of 16 bytes that receive column i of matrix m.
__device__ inline void store_transposed(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2,
                                        uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

__device__ inline uint4 load_shared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ inline uint2 load_shared_pair(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}

// Sends 16 bytes to another block, whose addresses are remote_address() of the own ones (cluster.cuh), and
// tells that block's barrier of them.
__device__ inline void send_words(uint32_t address, int32_t w0, int32_t w1, int32_t w2, int32_t w3,
                                  uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          address),
      "r"(w0), "r"(w1), "r"(w2), "r"(w3), "r"(barrier)
      : "memory");
}

}  // namespace nibble::ptx
