// The vector kernels of group_int: which work goes to which thread. The arithmetic is in cpu_kernels.isa.cc.
#include <algorithm>

#include "formats/format.h"
#include "formats/group_int/cpu_kernels.h"
#include "formats/group_int/kernels.h"
#include "formats/group_int/tile_kernels.h"

namespace nibble {
namespace {

// Tokens from which on tiles are faster than vectors, as measured on [1536, 576].
constexpr int64_t kTilesFrom = 9;
// Codes of one GEMV task: long enough to hide the start of a stream, small enough to balance two or more
// threads.
constexpr int64_t kGemvTaskBytes = 48 << 10;
// One GEMM task: its activations (at kGroupIntDepth) stay in a second-level cache while its rows pass by.
constexpr int64_t kGemmTokens = 128;
constexpr int64_t kGemmRows = 64;
// Tokens of one tile task: enough to make the decoding of its rows a small part.
constexpr int64_t kTileTaskTokens = 256;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Piece {
  PackedLinear linear;  // keeps the tensors alive
  GroupIntLayout layout;
  int64_t column;  // where its outputs start in y
};

class CpuOp final : public LinearOp {
 public:
  // `tiles` takes prompts where it is there.
  CpuOp(std::span<const PackedLinear* const> linears, const GroupIntKernels& kernels,
        const GroupIntTileKernels* tiles)
      : kernels_(kernels), tiles_(tiles) {
    int64_t column = 0;
    for (const PackedLinear* linear : linears) {
      pieces_.push_back({*linear, group_int_layout(*linear), column});
      column += linear->out_features;
    }
    in_features_ = linears.front()->in_features;
    bits_ = pieces_.front().layout.bits;
    const int64_t rows = kGemvTaskBytes / pieces_.front().layout.row_bytes / 8 * 8;
    gemv_rows_ = std::clamp<int64_t>(rows, 8, 256);
  }

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    if (tokens <= 0) return;
    const Scratch::Frame frame(scratch);
    if (tiles_ != nullptr && tokens >= kTilesFrom) {
      forward_tiles(x, tokens, y, y_stride, scratch, pool);
      return;
    }
    const int64_t stride = ceil_div(in_features_, kGroupIntUnit) * kGroupIntUnit;
    float* arranged = scratch.take<float>(static_cast<size_t>(tokens * stride));
    const auto arrange = [&](int64_t token) {
      kernels_.arrange(bits_, x + token * in_features_, in_features_, arranged + token * stride);
    };
    if (tokens <= kernels_.gemv_tokens) {
      for (int64_t t = 0; t < tokens; ++t) arrange(t);
      forward_few(arranged, tokens, y, y_stride, pool);
    } else {
      pool.parallel_for(ceil_div(tokens, 16), [&](int64_t task, int) {
        for (int64_t t = task * 16; t < std::min(tokens, (task + 1) * 16); ++t) arrange(t);
      });
      forward_many(arranged, stride, tokens, y, y_stride, scratch, pool);
    }
  }

  size_t prepared_bytes() const override { return 0; }

 private:
  // Calls body(piece, first row, rows, repeat, thread) for blocks of at most `rows_per_task` rows of every
  // piece.
  template <typename Body>
  void for_row_blocks(int64_t rows_per_task, int64_t repeats, ThreadPool& pool, Body&& body) const {
    int64_t blocks = 0;
    for (const Piece& piece : pieces_) blocks += ceil_div(piece.layout.out_features, rows_per_task);
    pool.parallel_for(blocks * repeats, [&](int64_t task, int thread) {
      int64_t block = task % blocks;
      for (const Piece& piece : pieces_) {
        const int64_t here = ceil_div(piece.layout.out_features, rows_per_task);
        if (block >= here) {
          block -= here;
          continue;
        }
        const int64_t first = block * rows_per_task;
        body(piece, first, std::min(rows_per_task, piece.layout.out_features - first), task / blocks, thread);
        return;
      }
    });
  }

  void forward_few(const float* x, int64_t tokens, float* y, int64_t y_stride, ThreadPool& pool) const {
    for_row_blocks(gemv_rows_, 1, pool, [&](const Piece& piece, int64_t first, int64_t rows, int64_t, int) {
      kernels_.gemv(piece.layout, first, rows, x, tokens, y + piece.column, y_stride);
    });
  }

  void forward_many(const float* x, int64_t x_stride, int64_t tokens, float* y, int64_t y_stride,
                    Scratch& scratch, ThreadPool& pool) const {
    constexpr int64_t kPanel = kGroupIntPanelRows * kGroupIntDepth;
    float* panels = scratch.take<float>(static_cast<size_t>(pool.size() * kPanel));
    for_row_blocks(kGemmRows, ceil_div(tokens, kGemmTokens), pool,
                   [&](const Piece& piece, int64_t first, int64_t rows, int64_t token_block, int thread) {
                     const int64_t token = token_block * kGemmTokens;
                     kernels_.gemm(piece.layout, first, rows, x + token * x_stride,
                                   std::min(kGemmTokens, tokens - token), panels + thread * kPanel,
                                   y + token * y_stride + piece.column, y_stride);
                   });
  }

  void forward_tiles(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
                     ThreadPool& pool) const {
    const int64_t steps = ceil_div(in_features_, kGroupIntStep),
                  tiles = ceil_div(tokens, kGroupIntTileTokens);
    const int64_t tile_bytes = steps * 3 * kGroupIntTileBytes;
    const int64_t buffer_floats = kGroupIntTileTokens * steps * kGroupIntStep;
    uint8_t* packed = scratch.take<uint8_t>(static_cast<size_t>(tiles * tile_bytes));
    float* scales = scratch.take<float>(static_cast<size_t>(tiles * kGroupIntTileTokens));
    {
      const Scratch::Frame packing(scratch);
      float* buffers = scratch.take<float>(static_cast<size_t>(pool.size() * buffer_floats));
      pool.parallel_for(tiles, [&](int64_t tile, int thread) {
        const int64_t token = tile * kGroupIntTileTokens;
        tiles_->pack_tokens(bits_, x + token * in_features_, std::min(kGroupIntTileTokens, tokens - token),
                            in_features_, packed + tile * tile_bytes, scales + token,
                            buffers + thread * buffer_floats);
      });
    }
    uint8_t* work = scratch.take<uint8_t>(static_cast<size_t>(pool.size() * kGroupIntTileScratch));
    for_row_blocks(kGroupIntTileRows, ceil_div(tokens, kTileTaskTokens), pool,
                   [&](const Piece& piece, int64_t first, int64_t rows, int64_t token_block, int thread) {
                     const int64_t token = token_block * kTileTaskTokens;
                     tiles_->multiply(
                         piece.layout, first, rows, packed + token / kGroupIntTileTokens * tile_bytes,
                         scales + token, std::min(kTileTaskTokens, tokens - token),
                         work + thread * kGroupIntTileScratch, y + token * y_stride + piece.column, y_stride);
                   });
  }

  const GroupIntKernels& kernels_;
  const GroupIntTileKernels* tiles_;
  std::vector<Piece> pieces_;
  int64_t in_features_ = 0;
  int64_t gemv_rows_ = 0;  // per task
  int bits_ = 0;
};

// Empty, or why a kernel of `path` whose groups must be whole numbers of `granularity` columns cannot run it.
std::string refusal(const Problem& problem, CpuPath path, int64_t granularity) {
  if (!cpu_path_enabled(path)) return format_text("needs {}", cpu_path_name(path));
  const GroupIntLayout layout = group_int_layout(*problem.linear);
  if (layout.groups > 1 && layout.group_size % granularity != 0) {
    return format_text("group size {} is no multiple of {}", layout.group_size, granularity);
  }
  return {};
}

std::string refusal_amx(const Problem& problem) {
  std::string reason = refusal(problem, CpuPath::kAmx, kGroupIntStep);
  if (reason.empty() && group_int_layout(*problem.linear).zeros_f32 != nullptr)
    return "zero points are no integers";
  return reason;
}

std::unique_ptr<LinearOp> prepare_avx2(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<CpuOp>(linears, avx2::kGroupIntKernels, nullptr);
}
std::unique_ptr<LinearOp> prepare_avx512(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<CpuOp>(linears, avx512vnni::kGroupIntKernels, nullptr);
}
std::unique_ptr<LinearOp> prepare_amx(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<CpuOp>(linears, avx512vnni::kGroupIntKernels, &amx::kGroupIntTileKernels);
}

}  // namespace

const LinearKernel kGroupIntAvx2 = {
    .name = "group_int-avx2",
    .refusal = [](const Problem& problem) { return refusal(problem, CpuPath::kAvx2, kGroupIntUnit); },
    .prepare = prepare_avx2,
};
const LinearKernel kGroupIntAvx512 = {
    .name = "group_int-avx512",
    .refusal = [](const Problem& problem) { return refusal(problem, CpuPath::kAvx512Vnni, kGroupIntUnit); },
    .prepare = prepare_avx512,
};
const LinearKernel kGroupIntAmx = {
    .name = "group_int-amx",
    .refusal = refusal_amx,
    .prepare = prepare_amx,
};

}  // namespace nibble
