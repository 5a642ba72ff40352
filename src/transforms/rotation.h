// A random orthogonal matrix that multiplies in n log n operations: signs drawn from a seed, then a Hadamard
// transform.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/hadamard.h"

namespace nibble {

// +1 and -1, the same for the same seed on every machine.
std::vector<float> random_signs(int64_t count, uint64_t seed);

class Rotation {
 public:
  Rotation(const HadamardShape& shape, std::vector<float> signs);

  int64_t size() const { return hadamard_.shape().size; }
  const HadamardShape& shape() const { return hadamard_.shape(); }
  const std::vector<float>& signs() const { return signs_; }

  // Each row x [size] of `rows` becomes Q x.
  void rotate_rows(float* rows, int64_t count) const;
  // Each column x of the row-major matrix [size, columns] becomes Q x.
  void rotate_columns(float* matrix, int64_t columns) const;

 private:
  Hadamard hadamard_;
  std::vector<float> signs_;
};

}  // namespace nibble
