// Hopper's matrix products over a warpgroup of 128 threads: operands in shared memory, sums in registers (PTX
// ISA, "wgmma"). The sums of m64nN lie alike for INT32 and FP32: thread t = 32 w + 4 g + q of the warpgroup
// holds, for every 8 columns from 8 j, d[4 j], d[4 j + 1] = (row 16 w + g, columns 8 j + 2 q, + 1) and d[4 j
// + 2], d[4 j + 3] = the same of row 16 w + g + 8.
#pragma once

#include <cstdint>

namespace nibble::ptx {

// Describes an operand whose rows are 128 bytes, swizzled by 128 bytes as a tensor map of that swizzle leaves
// them, in groups of 8 rows (1024 bytes, aligned so). Adding 2 to it moves 32 bytes along the rows.
__device__ inline uint64_t operand_128b(uint32_t shared_address) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) |
         ((shared_address & 0x3FFFF) >> 4);
}

__device__ inline void warpgroup_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace nibble::ptx
