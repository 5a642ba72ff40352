// Hopper's matrix products d [64, N] += a b^T over a warpgroup with a in registers, b [N, K] in shared memory
// as operand_128b describes it (PTX ISA, "wgmma"), and the sums in registers as wgmma.cuh says. An array of N
// / 2 words serves the INT32 and the FP32 product (as bits): the compiler keeps the sums of two arrays apart
// and runs out of registers.
#pragma once

#include <cstdint>

#include "backend/cuda/wgmma.cuh"

namespace nibble::ptx {

// Keeps the compiler from moving registers that a product in flight reads or writes: call it between a wait
// and the first use, and between the last write and the product.
template <typename Word, int kCount>
__device__ inline void fence_registers(Word (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// The same as operand_128b for rows of 64 bytes, swizzled by 64 bytes.
__device__ inline uint64_t operand_64b(uint32_t shared_address) {
  return (uint64_t{2} << 62) | (uint64_t{512 >> 4} << 32) | (uint64_t{1} << 16) |
         ((shared_address & 0x3FFFF) >> 4);
}

// Of thread 32 w + 4 g + q of the warpgroup, a holds four words: bytes (row 16 w + g, columns 4 q to 4 q +
// 3), (row + 8, the same), (row, columns + 16), (row + 8, columns + 16); or halves (row, columns 2 q, 2 q +
// 1), (row
// + 8, the same), (row, columns + 8), (row + 8, columns + 8).
template <int kN>
struct WgmmaRegisters;

#define NIBBLE_S0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NIBBLE_S8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define NIBBLE_S16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define NIBBLE_S24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define NIBBLE_S32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define NIBBLE_S40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define NIBBLE_S48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define NIBBLE_S56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define NIBBLE_S64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define NIBBLE_S72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define NIBBLE_S80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define NIBBLE_S88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define NIBBLE_S96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define NIBBLE_S104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define NIBBLE_S112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define NIBBLE_S120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define NIBBLE_D8(i)                                                                          \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), \
      "+r"(d[i + 6]), "+r"(d[i + 7])
#define NIBBLE_STRING8 NIBBLE_S0
#define NIBBLE_SUMS8 NIBBLE_D8(0)
#define NIBBLE_STRING16 NIBBLE_STRING8 ", " NIBBLE_S8
#define NIBBLE_SUMS16 NIBBLE_SUMS8, NIBBLE_D8(8)
#define NIBBLE_STRING32 NIBBLE_STRING16 ", " NIBBLE_S16 ", " NIBBLE_S24
#define NIBBLE_SUMS32 NIBBLE_SUMS16, NIBBLE_D8(16), NIBBLE_D8(24)
#define NIBBLE_STRING64 NIBBLE_STRING32 ", " NIBBLE_S32 ", " NIBBLE_S40 ", " NIBBLE_S48 ", " NIBBLE_S56
#define NIBBLE_SUMS64 NIBBLE_SUMS32, NIBBLE_D8(32), NIBBLE_D8(40), NIBBLE_D8(48), NIBBLE_D8(56)
#define NIBBLE_STRING80 NIBBLE_STRING64 ", " NIBBLE_S64 ", " NIBBLE_S72
#define NIBBLE_SUMS80 NIBBLE_SUMS64, NIBBLE_D8(64), NIBBLE_D8(72)
#define NIBBLE_STRING96 NIBBLE_STRING80 ", " NIBBLE_S80 ", " NIBBLE_S88
#define NIBBLE_SUMS96 NIBBLE_SUMS80, NIBBLE_D8(80), NIBBLE_D8(88)
#define NIBBLE_STRING128 NIBBLE_STRING96 ", " NIBBLE_S96 ", " NIBBLE_S104 ", " NIBBLE_S112 ", " NIBBLE_S120
#define NIBBLE_SUMS128 NIBBLE_SUMS96, NIBBLE_D8(96), NIBBLE_D8(104), NIBBLE_D8(112), NIBBLE_D8(120)

// N, its number of sums C, and the four numbers after C.
#define NIBBLE_WGMMA(N, C, C1, C2, C3, C4)                                                           \
  template <>                                                                                        \
  struct WgmmaRegisters<N> {                                                                         \
    /* Signed bytes a [64, 32] times unsigned bytes b [N, 32]. */                                    \
    __device__ static void s8u8(int32_t (&d)[C], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
                                uint64_t b) {                                                        \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.u8 {" NIBBLE_STRING##C         \
                   "}, {%" #C ", %" #C1 ", %" #C2 ", %" #C3 "}, %" #C4 ", 1;"                        \
                   : NIBBLE_SUMS##C                                                                  \
                   : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                    \
    }                                                                                                \
    /* Signed bytes of both; kFresh: the product alone, whatever d held. */                          \
    template <bool kFresh>                                                                           \
    __device__ static void s8s8(int32_t (&d)[C], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
                                uint64_t b) {                                                        \
      if constexpr (kFresh) {                                                                        \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" NIBBLE_STRING##C       \
                     "}, {%" #C ", %" #C1 ", %" #C2 ", %" #C3 "}, %" #C4 ", 0;"                      \
                     : NIBBLE_SUMS##C                                                                \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                  \
      } else {                                                                                       \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" NIBBLE_STRING##C       \
                     "}, {%" #C ", %" #C1 ", %" #C2 ", %" #C3 "}, %" #C4 ", 1;"                      \
                     : NIBBLE_SUMS##C                                                                \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                  \
      }                                                                                              \
    }                                                                                                \
    /* Halves a [64, 16] times halves b [N, 16]; d holds the bits of FP32 sums. */                   \
    __device__ static void f16(int32_t (&d)[C], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,  \
                               uint64_t b) {                                                         \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" NIBBLE_STRING##C       \
                   "}, {%" #C ", %" #C1 ", %" #C2 ", %" #C3 "}, %" #C4 ", 1, 1, 1, 0;"               \
                   : NIBBLE_SUMS##C                                                                  \
                   : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                    \
    }                                                                                                \
  };

NIBBLE_WGMMA(16, 8, 9, 10, 11, 12)
NIBBLE_WGMMA(32, 16, 17, 18, 19, 20)
NIBBLE_WGMMA(64, 32, 33, 34, 35, 36)
NIBBLE_WGMMA(128, 64, 65, 66, 67, 68)
NIBBLE_WGMMA(160, 80, 81, 82, 83, 84)
NIBBLE_WGMMA(256, 128, 129, 130, 131, 132)

#undef NIBBLE_S0
#undef NIBBLE_S8
#undef NIBBLE_S16
#undef NIBBLE_S24
#undef NIBBLE_S32
#undef NIBBLE_S40
#undef NIBBLE_S48
#undef NIBBLE_S56
#undef NIBBLE_S64
#undef NIBBLE_S72
#undef NIBBLE_S80
#undef NIBBLE_S88
#undef NIBBLE_S96
#undef NIBBLE_S104
#undef NIBBLE_S112
#undef NIBBLE_S120
#undef NIBBLE_STRING8
#undef NIBBLE_SUMS8
#undef NIBBLE_STRING16
#undef NIBBLE_SUMS16
#undef NIBBLE_STRING32
#undef NIBBLE_SUMS32
#undef NIBBLE_STRING64
#undef NIBBLE_SUMS64
#undef NIBBLE_STRING80
#undef NIBBLE_SUMS80
#undef NIBBLE_STRING96
#undef NIBBLE_SUMS96
#undef NIBBLE_STRING128
#undef NIBBLE_SUMS128
#undef NIBBLE_D8
#undef NIBBLE_WGMMA

}  // namespace nibble::ptx
