#include "gradients/group_weights.h"

#include <algorithm>

#include "base/error.h"
#include "calibration/blas.h"
#include "formats/dense/dense.h"

namespace nibble {
namespace {

// Edges of a tile of a product: large enough that packing its operands costs about 1 % of it.
constexpr int64_t kTileRows = 128, kTileColumns = 512;

int64_t even_edge(int64_t extent, int64_t largest) {
  const int64_t tiles = (extent + largest - 1) / largest;
  return ((extent + tiles - 1) / tiles + 15) / 16 * 16;
}

}  // namespace

void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows,
              int64_t columns, int64_t depth, bool accumulate, float* c, int64_t c_stride, ThreadPool& pool) {
  if (rows <= 0 || columns <= 0) return;
  const int64_t row_edge = even_edge(rows, kTileRows), column_edge = even_edge(columns, kTileColumns);
  const int64_t row_tiles = (rows + row_edge - 1) / row_edge;
  const int64_t column_tiles = (columns + column_edge - 1) / column_edge;
  pool.parallel_for(row_tiles * column_tiles, [&](int64_t task, int) {
    const int64_t row = task % row_tiles * row_edge, column = task / row_tiles * column_edge;
    gemm<float>(false, false, std::min(row_edge, rows - row), std::min(column_edge, columns - column), depth,
                1.0f, a + row * a_stride, a_stride, b + column, b_stride, accumulate ? 1.0f : 0.0f,
                c + row * c_stride + column, c_stride);
  });
}

const float* float_rows(const PackedLinear& linear, int64_t first, int64_t count, Tensor* buffer,
                        ThreadPool& pool) {
  const int64_t k = linear.in_features;
  if (linear.format == &kDenseFormat && linear.tensors.at("weight").dtype() == DType::kF32) {
    return linear.tensors.at("weight").data<float>() + first * k;
  }
  if (!buffer->defined() || buffer->elements() < count * k) *buffer = Tensor::empty(DType::kF32, {count, k});
  constexpr int64_t kRowsPerTask = 64;
  float* out = buffer->mutable_data<float>();
  pool.parallel_for((count + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t row = task * kRowsPerTask;
    linear.format->dequantize_rows(linear, first + row, std::min(kRowsPerTask, count - row), out + row * k);
  });
  return out;
}

GroupWeights::GroupWeights(const LinearGroup& group, ThreadPool& pool)
    : in_features_(group.in_features()), out_features_(group.out_features()) {
  int64_t column = 0;
  for (const LinearSlot& slot : group.slots()) {
    Member member = {.rows = slot.out_features, .column = column};
    member.weight = float_rows(*slot.packed, 0, slot.out_features, &member.converted, pool);
    members_.push_back(std::move(member));
    column += slot.out_features;
  }
}

void GroupWeights::gradient_by_input(const float* dy, int64_t tokens, float* dx, ThreadPool& pool) const {
  for (size_t i = 0; i < members_.size(); ++i) {
    const Member& member = members_[i];
    multiply(dy + member.column, out_features_, member.weight, in_features_, tokens, in_features_,
             member.rows, i > 0, dx, in_features_, pool);
  }
}

}  // namespace nibble
