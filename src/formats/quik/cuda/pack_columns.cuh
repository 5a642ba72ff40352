// How quantize.cu and quantize_step.cu sort a token's columns through shared memory: codes of integer columns
// side by side, outliers elsewhere; then the codes in the order of prompt_layout.h.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::quik_cuda {

// Puts a column's code to a thread's next place in shared memory, unless `outlier` is not 0. In PTX because
// the compiler would move the address about in copies.
__device__ inline void append_code(uint32_t& to, uint32_t outlier, int32_t code) {
  asm volatile(
      "{\n"
      ".reg .pred kept;\n"
      "setp.eq.u32 kept, %1, 0;\n"
      "@kept st.shared.u8 [%0], %2;\n"
      "@kept add.u32 %0, %0, 1;\n"
      "}\n"
      : "+r"(to)
      : "r"(outlier), "r"(code)
      : "memory");
}
// Puts an outlier's value to its place; nothing where `outlier` is 0.
__device__ inline void append_outlier(uint32_t& to, uint32_t outlier, __half value) {
  asm volatile(
      "{\n"
      ".reg .pred kept;\n"
      "setp.ne.u32 kept, %1, 0;\n"
      "@kept st.shared.u16 [%0], %2;\n"
      "@kept add.u32 %0, %0, 2;\n"
      "}\n"
      : "+r"(to)
      : "r"(outlier), "h"(__half_as_ushort(value))
      : "memory");
}

// The 16 bytes at `at`, a multiple of 16, of a row of codes in prompt_layout.h's order. `codes` has the row's
// by column, 16-byte aligned.
__device__ inline uint4 permuted_codes(const uint8_t* codes, int at) {
  // 16 bytes at p of a unit are words p / 16 % 2 + 2 (p / 32 % 2) + 4 q of its 16.
  static_assert(code_position(4) == 16 && code_position(8) == 32 && code_position(16) == 4 &&
                kCodeUnit == 64);
  const auto* const from = reinterpret_cast<const uint32_t*>(codes + (at & ~63)) + (at >> 4 & 3);
  return make_uint4(from[0], from[4], from[8], from[12]);
}

}  // namespace nibble::quik_cuda
