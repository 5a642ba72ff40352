#include "transforms/rotation.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {
namespace {

// SplitMix64: a counter run through a mixing function.
uint64_t mixed(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

}  // namespace

std::vector<float> random_signs(int64_t count, uint64_t seed) {
  std::vector<float> signs(static_cast<size_t>(count));
  const uint64_t stream = mixed(seed);
  for (size_t i = 0; i < signs.size(); ++i) signs[i] = (mixed(stream + i) >> 63) != 0 ? -1.0f : 1.0f;
  return signs;
}

Rotation::Rotation(const HadamardShape& shape, std::vector<float> signs)
    : hadamard_(shape), signs_(std::move(signs)) {
  NIBBLE_CHECK(static_cast<int64_t>(signs_.size()) == shape.size);
}

void Rotation::rotate_rows(float* rows, int64_t count) const {
  std::vector<float> scratch(static_cast<size_t>(hadamard_.scratch_floats()));
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows + r * size();
    for (int64_t i = 0; i < size(); ++i) row[i] *= signs_[static_cast<size_t>(i)];
    hadamard_.apply(float_kernels(), row, scratch.data());
  }
}

void Rotation::rotate_columns(float* matrix, int64_t columns) const {
  // A few columns at a time are copied together, so that each is contiguous.
  constexpr int64_t kStrip = 32;
  std::vector<float> strip(static_cast<size_t>(std::min(kStrip, columns) * size()));
  for (int64_t first = 0; first < columns; first += kStrip) {
    const int64_t width = std::min(kStrip, columns - first);
    for (int64_t i = 0; i < size(); ++i) {
      for (int64_t j = 0; j < width; ++j) {
        strip[static_cast<size_t>(j * size() + i)] = matrix[i * columns + first + j];
      }
    }
    rotate_rows(strip.data(), width);
    for (int64_t i = 0; i < size(); ++i) {
      for (int64_t j = 0; j < width; ++j) {
        matrix[i * columns + first + j] = strip[static_cast<size_t>(j * size() + i)];
      }
    }
  }
}

}  // namespace nibble
