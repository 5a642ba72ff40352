// Copies from global to shared memory that a thread does not wait for (PTX ISA, "cp.async"): every GPU from
// compute capability 8.0 on has them.
#pragma once

#include <cstdint>

namespace nibble::ptx {

// Copies the first `bytes` (0 to 16) of 16 aligned ones and writes zeros for the rest.
__device__ inline void copy_async(uint32_t shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
}
// Closes the group of the copies since the last one.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the latest kPending groups of this thread are under way.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace nibble::ptx
