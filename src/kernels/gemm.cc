#include "kernels/gemm.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {
namespace {

// Rows of one task: 768 of kGemmRowStride floats take 0.6 MiB.
constexpr int64_t kChunkRows = 768;
constexpr int64_t kPanelsPerTask = 8;

size_t element_size(WeightType type) { return type == WeightType::kF32 ? 4 : 2; }

const void* element_of(const GemmWeight& weight, int64_t index) {
  return static_cast<const char*>(weight.data) + static_cast<size_t>(index) * element_size(weight.type);
}

// Cuts [0, n) of every weight into pieces of `columns` and calls body(weight, first, count) for piece
// `index`.
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
  const int64_t columns =
      std::clamp<int64_t>((int64_t{32} << 10) / std::max<int64_t>(k, 1) / 16 * 16, 16, 1024);
  pool.parallel_for(count_pieces(weights, columns), [&](int64_t piece, int) {
    visit_piece(weights, columns, piece, [&](const GemmWeight& weight, int64_t first, int64_t count) {
      kernels.gemv(x, tokens, k, weight.type, element_of(weight, first * k), count,
                   weight.bias == nullptr ? nullptr : weight.bias + first, y + weight.column + first,
                   y_stride);
    });
  });
}

}  // namespace

void gemm(const FloatKernels& kernels, const float* x, int64_t tokens, int64_t k,
          std::span<const GemmWeight> weights, float* y, int64_t y_stride, Scratch& scratch,
          ThreadPool& pool) {
  if (tokens <= 0) return;
  if (tokens <= kGemvTokens) return small_gemm(kernels, x, tokens, k, weights, y, y_stride, pool);

  const Scratch::Frame frame(scratch);
  const int64_t tile_rows = kernels.gemm_rows, columns = kernels.gemm_columns;
  const int64_t row_blocks = (tokens + tile_rows - 1) / tile_rows,
                depth_blocks = (k + kGemmDepth - 1) / kGemmDepth;
  // Packed as [depth block][row block][tile_rows][kGemmRowStride].
  const int64_t block_floats = tile_rows * kGemmRowStride;
  float* packed = scratch.take<float>(static_cast<size_t>(row_blocks * depth_blocks * block_floats));
  pool.parallel_for(row_blocks, [&](int64_t block, int) {
    const int64_t row = block * tile_rows;
    for (int64_t depth = 0; depth < depth_blocks; ++depth) {
      const int64_t first = depth * kGemmDepth;
      kernels.gemm_pack_rows(x + row * k + first, std::min(tile_rows, tokens - row), k,
                             std::min(kGemmDepth, k - first),
                             packed + (depth * row_blocks + block) * block_floats);
    }
  });

  // A task is some panels times a chunk of rows that fits the second-level cache, one depth block after the
  // other: the chunk's block is read once per panel from there, the panel is converted once per chunk. Every
  // element's sum is the same however the work is cut.
  const int64_t chunks = (row_blocks + kChunkRows / tile_rows - 1) / (kChunkRows / tile_rows);
  const int64_t chunk_blocks = (row_blocks + chunks - 1) / chunks;
  const int64_t pieces = count_pieces(weights, columns);
  const int64_t group = std::clamp<int64_t>(pieces * chunks / (4 * pool.size()), 1, kPanelsPerTask);
  const int64_t groups = (pieces + group - 1) / group;
  const int64_t panel_floats = kGemmDepth * columns;
  float* panels = scratch.take<float>(static_cast<size_t>(pool.size() * panel_floats));
  // The weight that the panel after this one will read, when it is as large as this one.
  const auto next_panel = [&](const GemmWeight& weight, int64_t first, int64_t count,
                              int64_t offset) -> const void* {
    if (first + 2 * count <= weight.n) return element_of(weight, (first + count) * k + offset);
    return nullptr;
  };
  pool.parallel_for(groups * chunks, [&](int64_t task, int thread) {
    const int64_t first_block = task % chunks * chunk_blocks;
    const int64_t first_row = first_block * tile_rows;
    const int64_t rows = std::min(chunk_blocks * tile_rows, tokens - first_row);
    const int64_t first_piece = task / chunks * group, last_piece = std::min(pieces, first_piece + group);
    if (rows <= 0) return;
    for (int64_t depth = 0; depth < depth_blocks; ++depth) {
      const int64_t offset = depth * kGemmDepth;
      for (int64_t piece = first_piece; piece < last_piece; ++piece) {
        visit_piece(weights, columns, piece, [&](const GemmWeight& weight, int64_t first, int64_t count) {
          kernels.gemm_panel({.packed = packed + (depth * row_blocks + first_block) * block_floats,
                              .rows = rows,
                              .depth = std::min(kGemmDepth, k - offset),
                              .type = weight.type,
                              .weight = element_of(weight, first * k + offset),
                              .weight_stride = k,
                              .columns = count,
                              .first = depth == 0,
                              .bias = weight.bias == nullptr ? nullptr : weight.bias + first,
                              .y = y + first_row * y_stride + weight.column + first,
                              .y_stride = y_stride,
                              .panel = panels + thread * panel_floats,
                              .next = next_panel(weight, first, count, offset)});
        });
      }
    }
  });
}

}  // namespace nibble
