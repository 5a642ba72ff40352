// Matrix products of 4-bit numbers over a warp (PTX ISA, "mma", m16n8k64). Ampere and Ada have an instruction
// for them; Hopper has none and calls a routine of two hundred, so code for it never includes this.
#pragma once

#include <cstdint>

namespace nibble::ptx {

// d [16, 8] += a [16, 64] b [64, 8] in INT32, a signed, b unsigned. Lane l = 4 g + q holds, 8 numbers a word,
// of
//   a: (row g, columns 8q .. 8q + 7), (g + 8, the same), (g, 8q + 32 .. 8q + 39), (g + 8, the same)
//   b: (rows 8q .. 8q + 7, column g), (rows 8q + 32 .. 8q + 39, column g)
//   d: (row g, columns 2q, 2q + 1), (row g + 8, the same)
__device__ inline void mma_16x8x64(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#error "there is no product of 4-bit numbers from compute capability 9.0 on"
#endif
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace nibble::ptx
