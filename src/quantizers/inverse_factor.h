// The triangular factor that GPTQ needs, of a symmetric positive definite matrix.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace nibble {

// a [n, n] row-major, its lower triangle a symmetric positive definite A = L L^T -> L^-1 in the lower
// triangle. What stands above the diagonal is scratch before and after. Returns false when A is not positive
// definite in the precision of T; a is then spoilt. Takes n^3 / 3 multiply-adds, all in products of fixed
// tiles: the same bits for any number of threads. Defined for float and double.
template <typename T>
[[nodiscard]] bool inverse_cholesky_factor(T* a, int64_t n, ThreadPool& pool);

}  // namespace nibble
