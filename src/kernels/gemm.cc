#include "kernels/gemm.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {
namespace {

size_t element_size(WeightType type) { return type == WeightType::kF32 ? 4 : 2; }

const void* row_of(const GemmWeight& weight, int64_t row, int64_t k) {
  return static_cast<const char*>(weight.data) + static_cast<size_t>(row * k) * element_size(weight.type);
}

// Cuts [0, n) of every weight into pieces of `columns` and calls body(weight, first, count) for piece `index`.
template <typename Body>
void visit_piece(std::span<const GemmWeight> weights, int64_t columns, int64_t index, Body&& body) {
  for (const GemmWeight& weight : weights) {
    const int64_t pieces = (weight.n + columns - 1) / columns;
    if (index < pieces) {
      const int64_t first = index * columns;
      body(weight, first, std::min(columns, weight.n - first));
      return;
    }
    index -= pieces;
  }
}

int64_t count_pieces(std::span<const GemmWeight> weights, int64_t columns) {
  int64_t pieces = 0;
  for (const GemmWeight& weight : weights) pieces += (weight.n + columns - 1) / columns;
  return pieces;
}

void small_gemm(const FloatKernels& kernels, const float* x, int64_t tokens, int64_t k,
                std::span<const GemmWeight> weights, float* y, int64_t y_stride, ThreadPool& pool) {
  // Pieces of about 128 KiB: enough to hide a hand-over, small enough to balance.
  const int64_t columns = std::clamp<int64_t>((int64_t{32} << 10) / std::max<int64_t>(k, 1) / 16 * 16, 16, 1024);
  pool.parallel_for(count_pieces(weights, columns), [&](int64_t piece, int) {
    visit_piece(weights, columns, piece, [&](const GemmWeight& weight, int64_t first, int64_t count) {
      kernels.gemv(x, tokens, k, weight.type, row_of(weight, first, k), count,
                   weight.bias == nullptr ? nullptr : weight.bias + first, y + weight.column + first, y_stride);
    });
  });
}

}  // namespace

void gemm(const FloatKernels& kernels, const float* x, int64_t tokens, int64_t k, std::span<const GemmWeight> weights,
          float* y, int64_t y_stride, Scratch& scratch, ThreadPool& pool) {
  if (tokens <= 0) return;
  if (tokens <= kGemvTokens) return small_gemm(kernels, x, tokens, k, weights, y, y_stride, pool);

  const Scratch::Frame frame(scratch);
  const int64_t tile_rows = kernels.gemm_rows;
  const int64_t row_blocks = (tokens + tile_rows - 1) / tile_rows;
  const int64_t block_floats = (k + kGemmDepth - 1) / kGemmDepth * tile_rows * kGemmRowStride;
  float* packed = scratch.take<float>(static_cast<size_t>(row_blocks * block_floats));
  pool.parallel_for(row_blocks, [&](int64_t block, int) {
    const int64_t first = block * tile_rows;
    kernels.gemm_pack_rows(x + first * k, std::min(tile_rows, tokens - first), k, packed + block * block_floats);
  });

  const int64_t panel_floats = kGemmDepth * kernels.gemm_columns;
  float* panels = scratch.take<float>(static_cast<size_t>(pool.size() * panel_floats));
  const int64_t columns = kernels.gemm_columns;
  const int64_t pieces = count_pieces(weights, columns);
  // With few panels for many threads the rows are cut too. Every element's sum is the same however it is cut.
  int64_t cuts = 1;
  while (pieces * cuts < 4 * pool.size() && row_blocks / (cuts + 1) >= 8) ++cuts;
  const int64_t blocks_per_cut = (row_blocks + cuts - 1) / cuts;
  pool.parallel_for(pieces * cuts, [&](int64_t task, int thread) {
    const int64_t first_block = task % cuts * blocks_per_cut;
    const int64_t first_row = first_block * tile_rows;
    const int64_t rows = std::min(blocks_per_cut * tile_rows, tokens - first_row);
    if (rows <= 0) return;
    visit_piece(weights, columns, task / cuts, [&](const GemmWeight& weight, int64_t first, int64_t count) {
      kernels.gemm_panel(packed + first_block * block_floats, rows, k, weight.type, row_of(weight, first, k), count,
                         weight.bias == nullptr ? nullptr : weight.bias + first,
                         y + first_row * y_stride + weight.column + first, y_stride, panels + thread * panel_floats);
    });
  });
}

}  // namespace nibble
