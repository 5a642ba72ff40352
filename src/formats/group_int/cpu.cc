// The vector and tile kernels of group_int: which work goes to which thread. The arithmetic is in
// cpu_kernels.isa.cc and tile_kernels.isa.cc.
#include <algorithm>

#include "formats/format.h"
#include "formats/group_int/cpu_kernels.h"
#include "formats/group_int/kernels.h"
#include "formats/group_int/row_op.h"
#include "formats/group_int/tile_kernels.h"

namespace nibble {
namespace {

// Tokens from which on tiles are faster than vectors, as measured on [1536, 576].
constexpr int64_t kTilesFrom = 9;
// Tokens of one tile task: enough to make the decoding of its rows a small part.
constexpr int64_t kTileTaskTokens = 256;

// Vectors for few tokens, tiles for prompts.
class TileOp final : public RowOp<GroupIntLayout> {
 public:
  TileOp(std::span<const PackedLinear* const> linears, const GroupIntKernels& kernels,
         const GroupIntTileKernels& tiles, const IntegerKernels<GroupIntLayout>* integers)
      : RowOp(linears, kernels, group_int_layout, integers), tiles_(tiles) {}

  void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
               ThreadPool& pool) const override {
    if (tokens < kTilesFrom) {
      RowOp::forward(x, tokens, y, y_stride, scratch, pool);
      return;
    }
    const Scratch::Frame frame(scratch);
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
        tiles_.pack_tokens(bits_, x + token * in_features_, std::min(kGroupIntTileTokens, tokens - token),
                           in_features_, packed + tile * tile_bytes, scales + token,
                           buffers + thread * buffer_floats);
      });
    }
    uint8_t* work = scratch.take<uint8_t>(static_cast<size_t>(pool.size() * kGroupIntTileScratch));
    for_row_blocks(kGroupIntTileRows, ceil_div(tokens, kTileTaskTokens), pool,
                   [&](const Piece& piece, int64_t first, int64_t rows, int64_t token_block, int thread) {
                     const int64_t token = token_block * kTileTaskTokens;
                     tiles_.multiply(
                         piece.layout, first, rows, packed + token / kGroupIntTileTokens * tile_bytes,
                         scales + token, std::min(kTileTaskTokens, tokens - token),
                         work + thread * kGroupIntTileScratch, y + token * y_stride + piece.column, y_stride);
                   });
  }

 private:
  const GroupIntTileKernels& tiles_;
};

// Empty, or why a kernel of `path` whose groups must be whole numbers of `granularity` columns cannot run it.
std::string refusal(const Problem& problem, CpuPath path, int64_t granularity) {
  if (std::string reason = cpu_path_refusal(path); !reason.empty()) return reason;
  const GroupIntLayout layout = group_int_layout(*problem.linear);
  if (layout.groups > 1 && layout.group_size % granularity != 0) {
    return format_text("group size {} is no multiple of {}", layout.group_size, granularity);
  }
  return {};
}

std::string refusal_vbmi(const Problem& problem) {
  std::string reason = refusal(problem, CpuPath::kAvx512Vbmi, kGroupIntUnit);
  const GroupIntLayout layout = group_int_layout(*problem.linear);
  if (reason.empty() && avx512vbmi::kGroupIntIntegerKernels.segment(layout) == 0) {
    return format_text(
        "{} bits in groups of {} of {} in-features: no whole loads of codes (128 columns at 4 bits, 64 at 3, "
        "256 at 2) with integer zero points",
        layout.bits, layout.group_size, layout.in_features);
  }
  return reason;
}

std::string refusal_amx(const Problem& problem) {
  std::string reason = refusal(problem, CpuPath::kAmx, kGroupIntStep);
  if (reason.empty() && group_int_layout(*problem.linear).zeros_f32 != nullptr)
    return "zero points are no integers";
  return reason;
}

std::unique_ptr<LinearOp> prepare_avx2(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowOp<GroupIntLayout>>(linears, avx2::kGroupIntKernels, group_int_layout,
                                                 &avx2::kGroupIntIntegerKernels);
}
std::unique_ptr<LinearOp> prepare_avx512(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowOp<GroupIntLayout>>(linears, avx512vnni::kGroupIntKernels, group_int_layout);
}
std::unique_ptr<LinearOp> prepare_vbmi(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowOp<GroupIntLayout>>(linears, avx512vnni::kGroupIntKernels, group_int_layout,
                                                 &avx512vbmi::kGroupIntIntegerKernels);
}
std::unique_ptr<LinearOp> prepare_amx(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<TileOp>(linears, avx512vnni::kGroupIntKernels, amx::kGroupIntTileKernels,
                                  &avx512vbmi::kGroupIntIntegerKernels);
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
const LinearKernel kGroupIntAvx512Vbmi = {
    .name = "group_int-avx512vbmi",
    .refusal = refusal_vbmi,
    .prepare = prepare_vbmi,
};
const LinearKernel kGroupIntAmx = {
    .name = "group_int-amx",
    .refusal = refusal_amx,
    .prepare = prepare_amx,
};

}  // namespace nibble
