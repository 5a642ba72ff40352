// The dense algebra of calibration, from OpenBLAS, which is loaded when first needed: the program starts and
// runs models without it. Every call below runs on the calling thread alone; callers split work into fixed
// tiles over the ThreadPool, so that results do not depend on the number of threads. All matrices are
// row-major.
#pragma once

#include <cstdint>
#include <string>

namespace nibble {

struct BlasInfo {
  std::string library;  // the name it was loaded by: "libopenblas.so.0"
  std::string core;     // kernel set chosen for this CPU: "SkylakeX"
  std::string config;   // OpenBLAS's own version line
};

// Loads OpenBLAS with the kernels for this machine's instruction sets, whatever OPENBLAS_CORETYPE says,
// unless NIBBLE_KEEP_OPENBLAS_CORETYPE is set, and checks a product. Throws Error that says what to install
// when the library is not there, and when it computes wrong results.
const BlasInfo& blas_info();

// c [m, n] = alpha * op(a) op(b) + beta * c, with op(a) [m, k] and op(b) [k, n]; `*_stride` are row strides
// in elements. T is float or double. With beta 0 the old c is not read.
template <typename T>
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
          int64_t a_stride, const T* b, int64_t b_stride, T beta, T* c, int64_t c_stride);

// Lower triangle of c [n, n] = alpha * a^T a + beta * c, a [k, n]. The strict upper triangle is left alone.
template <typename T>
void syrk_lower(int64_t n, int64_t k, T alpha, const T* a, int64_t a_stride, T beta, T* c, int64_t c_stride);

// a [n, n] -> L with a = L L^T in its lower triangle; the strict upper triangle is left alone.
// Returns false when a is not positive definite (or not finite); a is then half overwritten.
template <typename T>
[[nodiscard]] bool cholesky_lower(int64_t n, T* a, int64_t a_stride);

// b [n, m] <- L^-1 b with L the lower triangle of l [n, n].
template <typename T>
void solve_lower(int64_t n, int64_t m, const T* l, int64_t l_stride, T* b, int64_t b_stride);

// b [m, n] <- b L^-T with L the lower triangle of l [n, n].
template <typename T>
void solve_lower_transposed_right(int64_t m, int64_t n, const T* l, int64_t l_stride, T* b, int64_t b_stride);

}  // namespace nibble
