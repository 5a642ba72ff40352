#include "backend/cuda/hadamard.h"

#include <vector>

#include "backend/cuda/input_cut.h"
#include "base/error.h"

namespace nibble::cuda {

std::string DeviceHadamard::refusal(const HadamardShape& shape) {
  if (shape.size > rows::kMaximumColumns)
    return format_text("vectors of {} entries: more than {}", shape.size, rows::kMaximumColumns);
  if (shape.size % 8 != 0) return format_text("vectors of {} entries: no multiple of 8", shape.size);
  return hadamard_shape_problem(shape);
}

DeviceHadamard::DeviceHadamard(const HadamardShape& shape) : shape_(shape) {
  NIBBLE_CHECK(refusal(shape).empty());
  if (shape.base == 1) return;
  const auto base = static_cast<size_t>(shape.base);
  const size_t padded = (base + kMixedRows - 1) / kMixedRows * kMixedRows;
  padded_rows_ = static_cast<int>(padded);
  // The transform of a unit vector of `base` entries is a column of the base matrix.
  const Hadamard mixing({.size = shape.base, .block = shape.base, .base = shape.base});
  std::vector<float> transposed(base * padded, 0.0f), scratch(static_cast<size_t>(mixing.scratch_floats()));
  for (size_t column = 0; column < base; ++column) {
    transposed[column * padded + column] = 1;
    mixing.apply(float_kernels(), transposed.data() + column * padded, scratch.data());
  }
  matrix_ = Buffer(sizeof(float) * transposed.size());
  matrix_.upload(transposed.data(), matrix_.bytes());
}

}  // namespace nibble::cuda
