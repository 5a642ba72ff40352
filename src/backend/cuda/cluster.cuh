// Blocks of a cluster: their barrier and their shared memory (PTX ISA, "barrier.cluster", "mapa").
#pragma once

#include <cstdint>

namespace nibble::ptx {

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// What a thread wrote before it arrives, remote shared memory too, every thread of the cluster sees after its
// wait. All threads of all blocks do both, in turn.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// The address, in block `rank` of the cluster, of what lies at `address` in this block.
__device__ inline uint32_t remote_address(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
__device__ inline void store_remote(uint32_t address, uint32_t word) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

}  // namespace nibble::ptx
