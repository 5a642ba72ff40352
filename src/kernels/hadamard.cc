#include "kernels/hadamard.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "kernels/hadamard_matrix.h"

namespace nibble {
namespace {

constexpr int64_t kStrip = 64;  // columns of a block that one task mixes

bool is_power_of_two(int64_t value) { return value > 0 && (value & (value - 1)) == 0; }

std::vector<float> base_matrix(int64_t base) {
  std::vector<float> matrix(static_cast<size_t>(base * base));
  const double scale = 1 / std::sqrt(static_cast<double>(base));
  if (base % 2 == 0) {
    const std::vector<int8_t> signs = base_hadamard(base);
    for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<float>(signs[i] * scale);
    return matrix;
  }
  for (int64_t i = 0; i < base; ++i) {
    for (int64_t j = 0; j < base; ++j) {
      const double angle =
          2 * std::numbers::pi * static_cast<double>(i * j % base) / static_cast<double>(base);
      matrix[static_cast<size_t>(i * base + j)] =
          static_cast<float>((std::cos(angle) + std::sin(angle)) * scale);
    }
  }
  return matrix;
}

}  // namespace

HadamardShape choose_hadamard_shape(int64_t size) {
  NIBBLE_CHECK(size > 0);
  const int64_t power = size & -size, odd = size / power;
  if (odd == 1) return {size, size, 1};
  for (int64_t base = 4 * odd; base <= std::min(size, kLargestBaseOrder) && size % base == 0; base *= 2) {
    if (has_base_hadamard(base)) return {size, size, base};
  }
  if (odd <= kLargestHartley) return {size, size, odd};
  return {size, power, 1};
}

std::string hadamard_shape_problem(const HadamardShape& shape) {
  if (shape.size < 1 || shape.block < 1 || shape.size % shape.block != 0) {
    return format_text("blocks of {} do not divide vectors of {}", shape.block, shape.size);
  }
  if (shape.base < 1 || shape.block % shape.base != 0 || !is_power_of_two(shape.block / shape.base)) {
    return format_text("a block of {} is no power of two times the base {}", shape.block, shape.base);
  }
  const bool known = shape.base % 2 == 0 ? has_base_hadamard(shape.base) : shape.base <= kLargestHartley;
  if (!known) return format_text("there is no base matrix of order {}", shape.base);
  return "";
}

std::string describe(const HadamardShape& shape) {
  const bool hartley = shape.base % 2 == 1 && shape.base > 1;
  std::string text = hartley ? "Hartley " : "Hadamard ";
  text += std::to_string(shape.block / shape.base);
  if (shape.base > 1) text += " x " + std::to_string(shape.base);
  if (shape.block < shape.size) text += format_text(", {} blocks", shape.size / shape.block);
  return text;
}

Hadamard::Hadamard(const HadamardShape& shape)
    : shape_(shape),
      power_(shape.block / shape.base),
      scale_(static_cast<float>(1 / std::sqrt(static_cast<double>(power_)))) {
  NIBBLE_CHECK(hadamard_shape_problem(shape).empty());
  if (shape.base == 1) return;
  matrix_ = base_matrix(shape.base);
  transpose_.resize(matrix_.size());
  for (int64_t i = 0; i < shape.base; ++i) {
    for (int64_t j = 0; j < shape.base; ++j) {
      transpose_[static_cast<size_t>(j * shape.base + i)] = matrix_[static_cast<size_t>(i * shape.base + j)];
    }
  }
}

int64_t Hadamard::scratch_floats() const { return shape_.base == 1 ? 0 : shape_.base * kMixColumns; }

void Hadamard::apply(const FloatKernels& kernels, float* x, float* scratch, bool inverse) const {
  for (int64_t first = 0; first < shape_.size; first += power_) {
    kernels.sylvester(x + first, power_, scale_);
  }
  if (shape_.base == 1) return;
  const float* matrix = inverse ? transpose_.data() : matrix_.data();
  for (int64_t first = 0; first < shape_.size; first += shape_.block) {
    kernels.mix_rows(x + first, shape_.base, power_, power_, matrix, scratch);
  }
}

void Hadamard::apply_rows(float* x, int64_t rows, Scratch& scratch, ThreadPool& pool, bool inverse) const {
  const FloatKernels& kernels = float_kernels();
  const Scratch::Frame frame(scratch);
  const int64_t floats = (scratch_floats() + 15) / 16 * 16;
  float* memory = scratch.take<float>(static_cast<size_t>(pool.size() * floats));
  // A few rows of a wide model spread over threads too; each row comes out the same either way.
  constexpr int64_t kManyRows = 8;
  if (rows >= kManyRows || shape_.base == 1) {
    pool.parallel_for(rows, [&](int64_t row, int thread) {
      apply(kernels, x + row * shape_.size, memory + thread * floats, inverse);
    });
    return;
  }
  pool.parallel_for(rows * (shape_.size / power_),
                    [&](int64_t chunk, int) { kernels.sylvester(x + chunk * power_, power_, scale_); });
  const float* matrix = inverse ? transpose_.data() : matrix_.data();
  const int64_t strips = (power_ + kStrip - 1) / kStrip;
  pool.parallel_for(rows * (shape_.size / shape_.block) * strips, [&](int64_t task, int thread) {
    const int64_t column = task % strips * kStrip;
    kernels.mix_rows(x + task / strips * shape_.block + column, shape_.base,
                     std::min(kStrip, power_ - column), power_, matrix, memory + thread * floats);
  });
}

}  // namespace nibble
