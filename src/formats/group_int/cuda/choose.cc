#include "formats/group_int/cuda/choose.h"

#include <algorithm>
#include <array>

#include "base/format.h"
#include "formats/group_int/cuda/decode_shape.h"

namespace nibble::group_int_cuda {
namespace {

constexpr double kWhole = 1e9;       // a row's least_blocks: never split
constexpr int kOnlySplit = 1 << 30;  // its least_tiles: never whole
// Up to `tokens`, tiles of `size`, each split as often as `blocks` blocks of threads per multiprocessor
// allow, provided that at least `least_blocks` come of it. Where nothing is split and there are fewer than
// `least_tiles` tiles the next row counts. From `cuda_decode_bench --sweep` on an H100 over the linears of
// LLaMA-2 7B, 13B and 70B (bench/results/h100/w4a16_sweep.txt, w4a16_prompt_sweep.txt); within 10 % of the
// best plan for most of them.
struct Row {
  int tokens;
  TileSize size;
  double blocks, least_blocks;
  int least_tiles;
  int least_k = 0;
  int share = 1;  // TilePlan's, of tiles that are not split
};
constexpr std::array kRows = {
    Row{16, {128, 16}, 2.67, 0, 0},
    Row{32, {128, 32}, 2.67, 0, 0},
    Row{64, {256, 64}, 1.0, 0.6, 200, 8192},
    Row{64, {128, 64}, 1.5, 0, 0},
    Row{128, {256, 128}, 1.0, 0.85, 108},
    Row{128, {128, 128}, 1.0, 0.7, 0},
    Row{512, {256, 128}, 1.0, 0.85, kOnlySplit},
    Row{256, {128, 256}, 1.0, kWhole, 80, 0, 2},
    Row{256, {128, 128}, 1.0, 0.7, 0, 0, 2},
};
// What part of the multiprocessors clusters of so many blocks find place on, one block on each.
struct Placed {
  int split;
  double part;
};
constexpr Placed kPlaced[] = {{2, 1.0}, {3, 0.88}, {4, 0.9}, {6, 0.77}, {8, 0.9}};
// A tile of the few-token kernel costs as much besides as this many blocks of columns.
constexpr double kFewTileBlocks = 1.5;
// More tokens: no split, all tiles are large enough to share out.
constexpr TilePlan kMany = {.size = {128, 256}, .share = 2};
// An odd row tile out of fewer is too much to compute in vain.
constexpr int kManyRowTiles = 16;
// Expanding costs 2.5 bytes of traffic per weight, whatever the number of tokens; the tile kernel multiplies
// as fast as FP16 up to 4096 tokens and is some 5 % slower at 8192.
constexpr int kExpandedTokens = 6144;
constexpr int kDecodeSharedBytes = 227 * 1024 - 5 * 1024;  // what the device has, less the static part

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

int tiles_of(int tokens, int n, const TileSize& size) {
  return ceil_divide(n, size.rows) * ceil_divide(tokens, size.tokens);
}

// The largest split that the row allows, or 1.
int split_of(int tiles, const Row& row, int k, int multiprocessors) {
  int split = 1;
  for (const Placed& next : kPlaced) {
    const double part = row.blocks > 1.0 ? row.blocks : next.part;
    const int blocks = tiles * next.split;
    if (blocks <= part * multiprocessors && blocks >= row.least_blocks * multiprocessors &&
        next.split <= ceil_divide(k, 2 * static_cast<int>(kBlockColumns))) {
      split = next.split;
    }
  }
  return split;
}

// Pairs of row tiles, where none is left over.
TilePlan whole(TilePlan plan, int n) {
  const int row_tiles = ceil_divide(n, plan.size.rows);
  if (row_tiles % 2 != 0 && row_tiles < kManyRowTiles) plan.share = 1;
  return plan;
}

// The plan whose busiest warp has least to do; split 0 where none fits.
FewPlan few_plan(const DecodeProblem& problem, int multiprocessors) {
  const int blocks = ceil_divide(problem.k, static_cast<int>(kBlockColumns)),
            tiles = ceil_divide(problem.n, static_cast<int>(kBlockRows));
  FewPlan best = {.split = 0};
  double least = 0;
  for (const int split : {2, 4, 8}) {
    if (!few_fits(problem, {split})) continue;
    const int rounds = ceil_divide(tiles, few_clusters(split, multiprocessors) * kFewWarps);
    const double cost = rounds * (ceil_divide(blocks, split) + kFewTileBlocks);
    if (best.split > 0 && cost >= least) continue;
    best.split = split;
    least = cost;
  }
  return best;
}

}  // namespace

std::string Choice::describe() const {
  if (method == Method::kExpand) return "expand to FP16";
  if (method == Method::kDecode) {
    return format_text("decode, {} stages, {} per SM", decode.stages, decode.blocks_per_multiprocessor);
  }
  if (method == Method::kFew) {
    return format_text("few, split {}", few.split);
  }
  const std::string size = format_text("tile {} x {}", tile.size.rows, tile.size.tokens);
  if (tile.split > 1) return format_text("{}, split {}", size, tile.split);
  return size + (tile.share == 1 ? ", balanced" : ", balanced, shared tokens");
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
      if (bytes <= kDecodeSharedBytes) return {.method = Method::kDecode, .decode = plan};
    }
  }
  if (tokens <= kMaximumFewTokens) {
    const FewPlan plan =
        few_plan({.n = n, .k = k, .tokens = tokens, .scales_per_block = scales_per_block}, multiprocessors);
    if (plan.split > 0) return {.method = Method::kFew, .few = plan};
  }
  for (const Row& row : kRows) {
    if (tokens > row.tokens || k < row.least_k) continue;
    const int tiles = tiles_of(tokens, n, row.size), split = split_of(tiles, row, k, multiprocessors);
    if (split == 1 && tiles < row.least_tiles) continue;
    const TilePlan plan =
        split > 1 ? TilePlan{row.size, split} : whole({.size = row.size, .share = row.share}, n);
    return {.method = Method::kTile, .tile = plan};
  }
  return {.method = Method::kTile, .tile = whole(kMany, n)};
}

Choice choose(int tokens, int n, int k, int scales_per_block, int multiprocessors) {
  if (tokens >= kExpandedTokens) return {.method = Method::kExpand};
  return choose_packed(tokens, n, k, scales_per_block, multiprocessors);
}

}  // namespace nibble::group_int_cuda
