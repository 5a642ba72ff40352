// The vector kernels of mixed_2_4_16: which work goes to which thread. The arithmetic is in
// cpu_kernels.isa.cc.
#include <algorithm>

#include "formats/cpu_refusal.h"
#include "formats/mixed_2_4_16/cpu_kernels.h"
#include "formats/mixed_2_4_16/kernels.h"

namespace nibble {
namespace {

// Main words of one GEMV task: long enough to hide the start of a stream, small enough to balance threads.
// Codes of one task at least, and tasks per thread at most: what is fetched ahead at the end of one is for
// another thread.
constexpr int64_t kGemvTaskBytes = 48 << 10, kGemvTasks = 6;
// One GEMM task: tokens whose packed block stays in a second-level cache, and panels that pass by.
constexpr int64_t kGemmTokens = 768;
constexpr int64_t kPanelsPerTask = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Piece {
  PackedLinear linear;  // keeps the tensors alive
  MixedLayout layout;
  int64_t column;                // where its outputs start in y
  std::vector<int64_t> starts;   // [n + 1] of the sparse rows; empty when there is no sparse part
  std::vector<uint16_t> places;  // the order's inverse, for the sparse part

  const int64_t* sparse_starts() const { return starts.empty() ? nullptr : starts.data(); }
};

Piece make_piece(const PackedLinear& linear, int64_t column) {
  Piece piece = {linear, mixed_layout(linear), column, {}, {}};
  const MixedLayout& layout = piece.layout;
  if (layout.sparse_counts == nullptr) return piece;
  piece.starts.push_back(0);
  for (int64_t row = 0; row < layout.out_features; ++row) {
    piece.starts.push_back(piece.starts.back() + layout.sparse_counts[row]);
  }
  piece.places.resize(static_cast<size_t>(layout.units * kMixedSlots));
  for (size_t place = 0; place < piece.places.size(); ++place) {
    piece.places[layout.order[place]] = static_cast<uint16_t>(place);
  }
  return piece;
}

class CpuOp final : public LinearOp {
 public:
  CpuOp(std::span<const PackedLinear* const> linears, const MixedKernels& kernels) : kernels_(kernels) {
    int64_t column = 0;
    for (const PackedLinear* linear : linears) {
      pieces_.push_back(make_piece(*linear, column));
      column += linear->out_features;
    }
    in_features_ = linears.front()->in_features;
    units_ = pieces_.front().layout.units;
    for (const Piece& piece : pieces_) tiles_ += piece.layout.tiles;
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    if (tokens <= 0) return;
    const Scratch::Frame frame(scratch);
    if (tokens <= kernels_.few_tokens) {
      forward_few(x, tokens, y, y_stride, scratch, pool);
    } else {
      for (const Piece& piece : pieces_) forward_many(piece, x, tokens, y, y_stride, scratch, pool);
    }
  }

  size_t prepared_bytes() const override {
    size_t bytes = 0;
    for (const Piece& piece : pieces_) {
      bytes += piece.starts.size() * sizeof(int64_t) + piece.places.size() * sizeof(uint16_t);
    }
    return bytes;
  }

 private:
  void forward_few(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
                   ThreadPool& pool) const {
    const int64_t groups = units_ * kMixedSlots, k = in_features_;
    MixedLine* lines = scratch.take<MixedLine>(static_cast<size_t>(tokens * groups));
    const auto convert = [&](int64_t t, int) {
      kernels_.to_integers(x + t * k, k, groups, lines + t * groups);
    };
    if (tokens == 1) {
      convert(0, 0);
    } else {
      pool.parallel_for(tokens, convert);
    }
    // Whole cache lines for each thread.
    const int64_t second_floats = ceil_div(units_ * 8, 16) * 16;
    float* second = scratch.take<float>(static_cast<size_t>(pool.size() * second_floats));
    const int64_t gemv_tiles = std::max(std::clamp<int64_t>(kGemvTaskBytes / (units_ * 256), 1, 16),
                                        ceil_div(tiles_, kGemvTasks * pool.size()));
    int64_t tasks = 0;
    for (const Piece& piece : pieces_) tasks += ceil_div(piece.layout.tiles, gemv_tiles);
    pool.parallel_for(tasks, [&](int64_t task, int thread) {
      for (const Piece& piece : pieces_) {
        const int64_t here = ceil_div(piece.layout.tiles, gemv_tiles);
        if (task >= here) {
          task -= here;
          continue;
        }
        const int64_t end = std::min(piece.layout.tiles, (task + 1) * gemv_tiles);
        for (int64_t tile = task * gemv_tiles; tile < end; ++tile) {
          for (int64_t t = 0; t < tokens; t += kernels_.pass_tokens) {
            kernels_.gemv(piece.layout, tile, lines + t * groups, std::min(kernels_.pass_tokens, tokens - t),
                          x + t * k, piece.sparse_starts(), second + thread * second_floats,
                          y + t * y_stride + piece.column, y_stride);
          }
        }
        return;
      }
    });
  }

  void forward_many(const Piece& piece, const float* x, int64_t tokens, float* y, int64_t y_stride,
                    Scratch& scratch, ThreadPool& pool) const {
    constexpr int64_t kDepthUnits = kMixedDepth / kMixedUnit;
    const Scratch::Frame frame(scratch);
    const MixedLayout& layout = piece.layout;
    const int64_t rows = kernels_.pack_rows, blocks = ceil_div(tokens, rows);
    const int64_t depths = ceil_div(units_, kDepthUnits), block_floats = rows * kMixedRowStride;
    // Tokens in the order of the piece's places: [depth][block][rows][kMixedRowStride].
    float* packed = scratch.take<float>(static_cast<size_t>(depths * blocks * block_floats));
    pool.parallel_for(blocks, [&](int64_t block, int) {
      for (int64_t depth = 0; depth < depths; ++depth) {
        const int64_t unit = depth * kDepthUnits;
        kernels_.pack(layout, x + block * rows * in_features_, std::min(rows, tokens - block * rows), unit,
                      std::min(kDepthUnits, units_ - unit), packed + (depth * blocks + block) * block_floats);
      }
    });

    const int64_t panel_floats = kMixedDepth * kernels_.panel_rows;
    float* panels = scratch.take<float>(static_cast<size_t>(pool.size() * panel_floats));
    const int64_t chunk_blocks = std::max<int64_t>(1, kGemmTokens / rows),
                  chunks = ceil_div(blocks, chunk_blocks);
    const int64_t task_rows = kPanelsPerTask * kernels_.panel_rows;
    pool.parallel_for(ceil_div(layout.out_features, task_rows) * chunks, [&](int64_t task, int thread) {
      float* panel = panels + thread * panel_floats;
      const int64_t first_row = task / chunks * task_rows;
      const int64_t end_row = std::min(layout.out_features, first_row + task_rows);
      const int64_t first_block = task % chunks * chunk_blocks;
      const int64_t end_block = std::min(blocks, first_block + chunk_blocks);
      for (int64_t depth = 0; depth < depths; ++depth) {
        const int64_t unit = depth * kDepthUnits, count = std::min(kDepthUnits, units_ - unit);
        for (int64_t row = first_row; row < end_row; row += kernels_.panel_rows) {
          kernels_.decode(layout, row, unit, count, piece.sparse_starts(), piece.places.data(), panel);
          const int64_t columns = std::min(kernels_.panel_rows, end_row - row);
          for (int64_t block = first_block; block < end_block; ++block) {
            kernels_.multiply(packed + (depth * blocks + block) * block_floats,
                              std::min(rows, tokens - block * rows), count * kMixedUnit, panel, columns,
                              depth == 0, layout.bias == nullptr ? nullptr : layout.bias + row,
                              y + block * rows * y_stride + piece.column + row, y_stride);
          }
        }
      }
    });
  }

  const MixedKernels& kernels_;
  std::vector<Piece> pieces_;
  int64_t in_features_ = 0, units_ = 0, tiles_ = 0;
};

template <const MixedKernels& kKernels>
std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<CpuOp>(linears, kKernels);
}

}  // namespace

const LinearKernel kMixedAvx512 = {.name = "mixed_2_4_16-avx512",
                                   .refusal = cpu_refusal<CpuPath::kAvx512Vnni>,
                                   .prepare = prepare<avx512vnni::kMixedKernels>};
const LinearKernel kMixedAvxVnni = {.name = "mixed_2_4_16-avxvnni",
                                    .refusal = cpu_refusal<CpuPath::kAvxVnni>,
                                    .prepare = prepare<avxvnni::kMixedKernels>};
const LinearKernel kMixedAvx2 = {.name = "mixed_2_4_16-avx2",
                                 .refusal = cpu_refusal<CpuPath::kAvx2>,
                                 .prepare = prepare<avx2::kMixedKernels>};
const LinearKernel kMixedAvx512Sync = {.name = "mixed_2_4_16-avx512-sync",
                                       .refusal = cpu_refusal<CpuPath::kAvx512Vnni>,
                                       .prepare = prepare<avx512vnni::kMixedSyncKernels>};
const LinearKernel kMixedAvx2Sync = {.name = "mixed_2_4_16-avx2-sync",
                                     .refusal = cpu_refusal<CpuPath::kAvx2>,
                                     .prepare = prepare<avx2::kMixedSyncKernels>};

}  // namespace nibble
