// add_scaled() on one instruction set; built with -ffp-contract=off.
#include <cstdint>

namespace nibble::NIBBLE_ISA {

#if defined(NIBBLE_ISA_avx512vnni)
constexpr int kWidth = 16;
#elif defined(NIBBLE_ISA_avx2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

void add_scaled(float a, const float* x, int64_t count, float* y);
void add_scaled(float a, const float* x, int64_t count, float* y) {
  typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    Vector in, out;
    __builtin_memcpy(&in, x + i, sizeof(in));
    __builtin_memcpy(&out, y + i, sizeof(out));
    out += a * in;
    __builtin_memcpy(y + i, &out, sizeof(out));
  }
  for (; i < count; ++i) y[i] += a * x[i];
}

}  // namespace nibble::NIBBLE_ISA
