// Matrix products of bytes over a warp (PTX ISA, "mma", m16n8k32), and what expands 4-bit codes for them.
#pragma once

#include <cstdint>

namespace nibble::ptx {

// d [16, 8] += a [16, 32] b [32, 8] in INT32. Lane l = 4 g + q holds of
//   a: (row g, columns 4q .. 4q + 3), (g + 8, the same), (g, 4q + 16 .. 4q + 19), (g + 8, the same)
//   b: (rows 4q .. 4q + 3, column g), (rows 4q + 16 .. 4q + 19, column g)
//   d: (row g, columns 2q, 2q + 1), (row g + 8, the same)
// b of signed or unsigned bytes; a is signed.
template <bool kUnsignedB>
__device__ inline void mma_16x8x32(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kUnsignedB) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Four bytes 16 q from the low, or from the high, nibbles q of four bytes, in two's complement.
__device__ inline uint32_t low_nibbles_times_16(uint32_t word) { return (word << 4) & 0xF0F0F0F0u; }
__device__ inline uint32_t high_nibbles_times_16(uint32_t word) { return word & 0xF0F0F0F0u; }

}  // namespace nibble::ptx
