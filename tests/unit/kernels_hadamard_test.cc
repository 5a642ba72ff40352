// Hadamard matrices by their definition, and the fast transform on every CPU path against a plain product.
#include <algorithm>
#include <numbers>

#include "kernel_cases.h"
#include "kernels/hadamard.h"
#include "kernels/hadamard_matrix.h"

namespace nibble::testing {
namespace {

TEST(HadamardMatrix, RowsAreOrthogonal) {
  std::vector<int64_t> orders;
  for (int64_t order = 1; order <= kLargestBaseOrder; ++order) {
    if (has_base_hadamard(order)) orders.push_back(order);
  }
  for (const int64_t order : {12, 20, 28, 36, 40, 44, 52, 60, 68, 76, 92, 100, 108, 140, 148, 156, 172}) {
    // 40 is two times 20, and Paley's as well.
    EXPECT_TRUE(std::count(orders.begin(), orders.end(), order) == 1 || order == 40) << order;
  }
  for (const int64_t order : orders) {
    const std::vector<int8_t> matrix = base_hadamard(order);
    ASSERT_EQ(matrix.size(), static_cast<size_t>(order * order));
    for (const int8_t value : matrix) ASSERT_TRUE(value == 1 || value == -1) << order;
    for (int64_t i = 0; i < order; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        int64_t sum = 0;
        for (int64_t k = 0; k < order; ++k) {
          sum += matrix[static_cast<size_t>(i * order + k)] * matrix[static_cast<size_t>(j * order + k)];
        }
        ASSERT_EQ(sum, i == j ? order : 0) << "order " << order << ", rows " << i << " and " << j;
      }
    }
  }
}

TEST(HadamardMatrix, OtherOrdersAreNotMade) {
  for (const int64_t order : {-4, 0, 1, 2, 3, 6, 9, 47, 116, 188, 1024}) {
    EXPECT_FALSE(has_base_hadamard(order)) << order;
  }
}

TEST(HadamardShape, TheBestForEachSize) {
  const HadamardShape kExpected[] = {
      {1, 1, 1},           {2, 2, 1},          {64, 64, 1},         {4096, 4096, 1},     {576, 576, 36},
      {1536, 1536, 12},    {5120, 5120, 20},   {11008, 11008, 172}, {13824, 13824, 108}, {14336, 14336, 28},
      {18944, 18944, 148}, {28672, 28672, 28}, {896, 896, 28},      {4864, 4864, 76},    {8960, 8960, 140},
      {40, 40, 20},        {56, 56, 28},       {88, 88, 44},        {136, 136, 68},      {80, 80, 20},
      {9984, 9984, 156},   {6656, 6656, 52},   {94, 94, 47},        {3, 3, 3},           {12, 12, 12},
      {4 * 1031, 4, 1},    {2 * 29, 58, 29},
  };
  for (const HadamardShape& expected : kExpected) {
    const HadamardShape shape = choose_hadamard_shape(expected.size);
    EXPECT_EQ(shape, expected) << expected.size << ": " << describe(shape);
    EXPECT_EQ(hadamard_shape_problem(shape), "");
  }
  EXPECT_EQ(describe({576, 576, 36}), "Hadamard 16 x 36");
  EXPECT_EQ(describe({94, 94, 47}), "Hartley 2 x 47");
  EXPECT_EQ(describe({96, 32, 1}), "Hadamard 32, 3 blocks");
}

TEST(HadamardShape, WhatCannotBeIsRefused) {
  EXPECT_NE(hadamard_shape_problem({10, 4, 1}), "");   // blocks do not divide
  EXPECT_NE(hadamard_shape_problem({24, 24, 8}), "");  // 3 is no power of two
  EXPECT_NE(hadamard_shape_problem({24, 24, 5}), "");  // the base does not divide
  EXPECT_NE(hadamard_shape_problem({24, 24, 6}), "");  // no matrix of order 6
  EXPECT_NE(hadamard_shape_problem({0, 1, 1}), "");
  EXPECT_NE(hadamard_shape_problem({2062, 2062, 1031}), "");  // beyond the largest base
}

// The matrix of a block by its definition.
double entry(const HadamardShape& shape, const std::vector<int8_t>& base_matrix, int64_t row,
             int64_t column) {
  const int64_t power = shape.block / shape.base;
  const bool odd = __builtin_popcountll(static_cast<uint64_t>(row % power & (column % power))) % 2 != 0;
  const double sylvester = (odd ? -1.0 : 1.0) / std::sqrt(static_cast<double>(power));
  const int64_t i = row / power, j = column / power;
  if (shape.base == 1) return sylvester;
  const auto base = static_cast<double>(shape.base);
  if (shape.base % 2 == 0) {
    return sylvester * base_matrix[static_cast<size_t>(i * shape.base + j)] / std::sqrt(base);
  }
  const double angle = 2 * std::numbers::pi * static_cast<double>(i) * static_cast<double>(j) / base;
  return sylvester * (std::cos(angle) + std::sin(angle)) / std::sqrt(base);
}

const HadamardShape kShapes[] = {
    {1, 1, 1},    {2, 2, 1},       {4, 4, 1},     {8, 8, 1},      {16, 16, 1},      {32, 32, 1},
    {64, 64, 1},  {128, 128, 1},   {512, 512, 1}, {576, 576, 36}, {1536, 1536, 12}, {56, 56, 28},
    {88, 88, 44}, {40, 40, 20},    {12, 12, 12},  {94, 94, 47},   {7, 7, 7},        {688, 688, 172},
    {96, 32, 1},  {312, 156, 156}, {60, 20, 20},  {848, 848, 53},
};

class HadamardTransform : public EveryPath {};

TEST_P(HadamardTransform, MatchesTheDefinition) {
  for (const HadamardShape& shape : kShapes) {
    const Hadamard hadamard(shape);
    std::vector<int8_t> base_matrix;
    if (shape.base > 1 && shape.base % 2 == 0) base_matrix = base_hadamard(shape.base);
    const std::vector<float> x = random_floats(static_cast<size_t>(shape.size), 5);
    for (const bool inverse : {false, true}) {
      std::vector<float> y = x, scratch(static_cast<size_t>(hadamard.scratch_floats()));
      y.push_back(kGuard);
      hadamard.apply(kernels(), y.data(), scratch.data(), inverse);
      EXPECT_EQ(y.back(), kGuard) << describe(shape);
      for (int64_t block = 0; block < shape.size; block += shape.block) {
        for (int64_t i = 0; i < shape.block; ++i) {
          double expected = 0;
          for (int64_t j = 0; j < shape.block; ++j) {
            expected += (inverse ? entry(shape, base_matrix, j, i) : entry(shape, base_matrix, i, j)) *
                        x[static_cast<size_t>(block + j)];
          }
          expect_near(y[static_cast<size_t>(block + i)], expected, 5e-6,
                      describe(shape) + " on " + kernels().name);
        }
      }
    }
  }
}

TEST_P(HadamardTransform, TheTransposeUndoesIt) {
  for (const HadamardShape& shape : kShapes) {
    const Hadamard hadamard(shape);
    const std::vector<float> x = random_floats(static_cast<size_t>(shape.size), 6);
    std::vector<float> y = x, scratch(static_cast<size_t>(hadamard.scratch_floats()));
    hadamard.apply(kernels(), y.data(), scratch.data());
    hadamard.apply(kernels(), y.data(), scratch.data(), /*inverse=*/true);
    for (size_t i = 0; i < x.size(); ++i) expect_near(y[i], x[i], 5e-6, describe(shape));
  }
}

NIBBLE_FOR_EVERY_PATH(HadamardTransform);

// However rows are cut among threads, few or many.
TEST(HadamardRows, TheSameBitsForAnyNumberOfThreads) {
  for (const HadamardShape& shape : kShapes) {
    const Hadamard hadamard(shape);
    for (const int64_t rows : {1, 3, 20}) {
      for (const bool inverse : {false, true}) {
        const std::vector<float> x = random_floats(static_cast<size_t>(rows * shape.size), 7);
        std::vector<float> expected = x, scratch(static_cast<size_t>(hadamard.scratch_floats()));
        for (int64_t r = 0; r < rows; ++r) {
          hadamard.apply(float_kernels(), expected.data() + r * shape.size, scratch.data(), inverse);
        }
        for (const int threads : {1, 2, 3}) {
          ThreadPool pool(threads);
          Scratch memory;
          std::vector<float> y = x;
          hadamard.apply_rows(y.data(), rows, memory, pool, inverse);
          EXPECT_EQ(y, expected) << describe(shape) << ", " << rows << " rows, " << threads << " threads";
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::testing
