#include "formats/group_int/cuda/choose.h"

#include <algorithm>
#include <array>

#include "base/format.h"
#include "formats/group_int/cuda/decode_shape.h"

namespace nibble::group_int_cuda {
namespace {

// Up to `tokens`, tiles of `size` whose columns are split so often that at most `blocks` blocks of threads
// per multiprocessor work; where that leaves fewer than two per three multiprocessors a row is skipped if
// another for as many tokens follows. From `cuda_decode_bench --sweep` on an H100 over the linears of LLaMA-2
// 7B and 70B, at 4, 16, 64, 128, 256, 1024 and 2048 tokens; within 10 % of the best plan for most of them.
struct Row {
  int tokens;
  TileSize size;
  double blocks;
  int least_tiles;  // fewer tiles of this size than this: the next row
};
constexpr std::array kRows = {
    Row{8, {128, 8}, 2.67, 0},    Row{16, {128, 16}, 2.67, 0},   Row{32, {128, 32}, 2.67, 0},
    Row{64, {256, 64}, 1.0, 200}, Row{64, {128, 64}, 1.5, 0},    Row{128, {256, 128}, 1.0, 32},
    Row{128, {128, 128}, 1.0, 0}, Row{256, {256, 128}, 1.0, 48}, Row{256, {128, 128}, 1.0, 0},
};
// More tokens: no split, all tiles are large enough to share out.
constexpr TileSize kMany = {128, 256};
// Expanding costs 2.5 bytes of traffic per weight, whatever the number of tokens; the tile kernel costs about
// a tenth of the product, whatever the shape.
constexpr int kExpandedTokens = 3072;
constexpr int kDecodeSharedBytes = 227 * 1024 - 5 * 1024;  // what the device has, less the static part

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

int tiles_of(int tokens, int n, const TileSize& size) {
  return ceil_divide(n, size.rows) * ceil_divide(tokens, size.tokens);
}

// The largest of 1, 2, 3, 4, 6 and 8 that `most` blocks of threads allow.
int split_of(int tiles, double most, int k) {
  int split = 1;
  for (const int next : {2, 3, 4, 6, 8}) {
    if (tiles * next <= most && next <= ceil_divide(k, 2 * static_cast<int>(kBlockColumns))) split = next;
  }
  return split;
}

}  // namespace

std::string Choice::describe() const {
  if (method == Method::kExpand) return "expand to FP16";
  if (method == Method::kDecode) {
    return format_text("decode, {} stages, {} per SM", decode.stages, decode.blocks_per_multiprocessor);
  }
  const std::string size = format_text("tile {} x {}", tile.size.rows, tile.size.tokens);
  return tile.split == 1 ? size + ", balanced" : format_text("{}, split {}", size, tile.split);
}

int least_expanded_tokens() { return kExpandedTokens; }

int expand_slice_rows(int n, int k, size_t bytes) {
  const auto rows =
      static_cast<int>(std::min(bytes / (sizeof(__half) * static_cast<size_t>(k)), static_cast<size_t>(n)));
  if (rows == n) return n;
  const int fit = std::max(rows / 128 * 128, 16), slices = ceil_divide(n, fit);
  return std::min(fit, ceil_divide(ceil_divide(n, slices), 128) * 128);  // slices alike
}

Choice choose_packed(int tokens, int n, int k, int scales_per_block, int multiprocessors) {
  if (tokens <= kMaximumDecodeTokens) {
    const DecodeProblem problem = {.n = n, .k = k, .tokens = tokens, .scales_per_block = scales_per_block};
    for (const DecodePlan& plan :
         {DecodePlan{}, DecodePlan{.stages = 5}, DecodePlan{12, 1}, DecodePlan{5, 1}}) {
      const size_t bytes =
          decode_shared_bytes(problem, plan) * static_cast<size_t>(plan.blocks_per_multiprocessor);
      if (bytes <= kDecodeSharedBytes) return {.method = Method::kDecode, .decode = plan, .tile = {}};
    }
  }
  for (const Row& row : kRows) {
    const int tiles = tiles_of(tokens, n, row.size);
    if (tokens > row.tokens || tiles < row.least_tiles) continue;
    return {.method = Method::kTile,
            .decode = {},
            .tile = {row.size, split_of(tiles, row.blocks * multiprocessors, k)}};
  }
  return {.method = Method::kTile, .decode = {}, .tile = {kMany, 1}};
}

Choice choose(int tokens, int n, int k, int scales_per_block, int multiprocessors) {
  if (tokens >= kExpandedTokens) return {.method = Method::kExpand, .decode = {}, .tile = {}};
  return choose_packed(tokens, n, k, scales_per_block, multiprocessors);
}

}  // namespace nibble::group_int_cuda
