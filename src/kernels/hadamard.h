// Multiplication of vectors by an orthogonal Hadamard matrix in n log n operations: it spreads every entry
// over all others, which flattens outliers and keeps lengths and products.
//
// A vector of `size` entries is cut into blocks of `block` = base * 2^c. Within a block, entry i * 2^c + j
// (i < base, j < 2^c) is transformed by B x S: S is Sylvester's matrix of order 2^c, (-1)^popcount(i & j) /
// sqrt(2^c), and B the base matrix:
//   base 1             nothing
//   base divisible by 4  base_hadamard(base) / sqrt(base)
//   base odd           Hartley's matrix, (cos(2 pi i j / base) + sin(2 pi i j / base)) / sqrt(base): no
//                      Hadamard matrix, but as orthogonal and nearly as flat, and there is one for each size
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/scratch.h"
#include "base/thread_pool.h"
#include "kernels/float_kernels.h"

namespace nibble {

struct HadamardShape {
  int64_t size = 0;   // entries of a vector
  int64_t block = 0;  // divides size
  int64_t base = 0;   // divides block; block / base is a power of two

  bool operator==(const HadamardShape&) const = default;
};

// The best there is for `size` >= 1: one block over the smallest base that is a known Hadamard matrix; else
// over Hartley's matrix of the odd part; where that part is beyond kLargestHartley, blocks of the largest
// power of two that divides size.
inline constexpr int64_t kLargestHartley = 1024;
HadamardShape choose_hadamard_shape(int64_t size);
// Empty when a Hadamard of this shape can be made, else what is wrong with it.
std::string hadamard_shape_problem(const HadamardShape& shape);
// "Hadamard 128 x 12", "Hartley 2 x 47", "Hadamard 2, 94 blocks"
std::string describe(const HadamardShape& shape);

class Hadamard {
 public:
  // `shape` has no problem.
  explicit Hadamard(const HadamardShape& shape);

  const HadamardShape& shape() const { return shape_; }
  // Floats of scratch that apply() needs.
  int64_t scratch_floats() const;
  // One vector in place, by the matrix or (inverse) its transpose.
  void apply(const FloatKernels& kernels, float* x, float* scratch, bool inverse = false) const;
  // `rows` vectors, one behind the other, in parallel.
  void apply_rows(float* x, int64_t rows, Scratch& scratch, ThreadPool& pool, bool inverse = false) const;

 private:
  HadamardShape shape_;
  int64_t power_;                          // block / base
  float scale_;                            // 1 / sqrt(power)
  std::vector<float> matrix_, transpose_;  // [base, base], orthogonal; empty for base 1
};

}  // namespace nibble
