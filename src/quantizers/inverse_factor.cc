#include "quantizers/inverse_factor.h"

#include <algorithm>
#include <vector>

#include "calibration/blas.h"

namespace nibble {
namespace {

// Columns per panel. Wide enough for the products to run at full speed, narrow enough that the Cholesky
// factor of the diagonal block, which one thread computes while the others wait, stays below a percent of the
// work.
constexpr int64_t kPanel = 128;
constexpr int64_t kRows = 256;

}  // namespace

template <typename T>
bool inverse_cholesky_factor(T* a, int64_t n, ThreadPool& pool) {
  // A = L L^T, left-looking: a panel first receives the products of everything to its left.
  for (int64_t j = 0; j < n; j += kPanel) {
    const int64_t width = std::min(kPanel, n - j);
    T* diagonal = a + j * n + j;
    const auto subtract_left = [&](int64_t row, int64_t rows) {
      gemm<T>(false, true, rows, width, j, T{-1}, a + row * n, n, a + j * n, n, T{1}, a + row * n + j, n);
    };
    if (j > 0) subtract_left(j, width);
    if (!cholesky_lower<T>(width, diagonal, n)) return false;
    const int64_t below = j + width;
    pool.parallel_for((n - below + kRows - 1) / kRows, [&](int64_t task, int) {
      const int64_t row = below + task * kRows, rows = std::min(kRows, n - row);
      if (j > 0) subtract_left(row, rows);
      solve_lower_transposed_right<T>(rows, width, diagonal, n, a + row * n + j, n);
    });
  }

  // L^-1 in place. Columns [j, j + width) of the inverse are the solution of L[j:, j:] X = (I, 0)^T, and read
  // only columns of L from j on: a batch of panels is solved into `solution` by independent tasks and then
  // copied over L, left to right.
  const int64_t panels = (n + kPanel - 1) / kPanel;
  constexpr int64_t kBatch = 16;
  std::vector<T> solution(static_cast<size_t>(std::min(kBatch, panels) * kPanel * n));
  for (int64_t batch = 0; batch < panels; batch += kBatch) {
    const int64_t count = std::min(kBatch, panels - batch);
    pool.parallel_for(count, [&](int64_t task, int) {
      const int64_t j = (batch + task) * kPanel, width = std::min(kPanel, n - j);
      T* x = solution.data() + task * kPanel * n;  // [n - j, width]
      std::fill(x, x + (n - j) * width, T{0});
      for (int64_t i = 0; i < width; ++i) x[i * width + i] = T{1};
      solve_lower<T>(n - j, width, a + j * n + j, n, x, width);
    });
    pool.parallel_for(count, [&](int64_t task, int) {
      const int64_t j = (batch + task) * kPanel, width = std::min(kPanel, n - j);
      const T* x = solution.data() + task * kPanel * n;
      for (int64_t row = 0; row < n - j; ++row) {
        const int64_t filled = std::min(width, row + 1);
        std::copy(x + row * width, x + row * width + filled, a + (j + row) * n + j);
      }
    });
  }
  return true;
}

template bool inverse_cholesky_factor<float>(float*, int64_t, ThreadPool&);
template bool inverse_cholesky_factor<double>(double*, int64_t, ThreadPool&);

}  // namespace nibble
