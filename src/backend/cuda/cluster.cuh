// Blocks of a cluster: their barrier and their shared memory (PTX ISA, "barrier.cluster", "mapa").
#pragma once

#include <cstdint>

namespace nibble::ptx {

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// The cluster's barrier: all threads of all blocks arrive and wait, in turn. The first form orders no memory
// (initialised barriers need their own fence, data the barriers that count it); the second completes what the
// thread did to other blocks before.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ inline void cluster_arrive_after_writes() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Both at once, for all threads of a block together: with what was written to shared memory before, or
// without.
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ inline void cluster_barrier_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// The address, in block `rank` of the cluster, of what lies at `address` in this block.
__device__ inline uint32_t remote_address(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
__device__ inline float4 load_remote_float4(uint32_t address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
// Copies `bytes` (a multiple of 16) from this block's shared memory to another's and reports them to
// `barrier`, which lies in that block too.
__device__ inline void remote_copy(uint32_t remote, uint32_t shared, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          remote),
      "r"(shared), "r"(bytes), "r"(barrier)
      : "memory");
}
// A fence over the cluster would cost as much as a product; reads that have ended need none.
__device__ inline void remote_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// What this thread stored into shared memory is seen by copies issued after the next barrier of the block.
__device__ inline void fence_for_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace nibble::ptx
