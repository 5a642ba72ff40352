#include "formats/group_int/cuda/choose.h"

#include <algorithm>

#include "base/format.h"
#include "formats/group_int/cuda/decode_shape.h"

namespace nibble::group_int_cuda {
namespace {

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

}  // namespace

std::string Choice::describe() const {
  if (method == Method::kExpand) return "expand to FP16";
  if (method == Method::kDecode) {
    return format_text("decode, {} stages, {} per SM", decode.stages, decode.blocks_per_multiprocessor);
  }
  const std::string size = format_text("tile {} x {}", tile.size.rows, tile.size.tokens);
  return tile.split == 1 ? size + ", balanced" : format_text("{}, split {}", size, tile.split);
}

int expand_slice_rows(int n, int k, size_t bytes) {
  const auto rows = static_cast<int>(
      std::min<size_t>(bytes / (sizeof(__half) * static_cast<size_t>(k)), static_cast<size_t>(n)));
  if (rows == n) return n;
  const int fit = std::max(rows / 128 * 128, 16), slices = ceil_divide(n, fit);
  return std::min(fit, ceil_divide(ceil_divide(n, slices), 128) * 128);
}

Choice choose(int tokens, int n, int k, int multiprocessors) {
  if (tokens <= 4) return {.method = Method::kDecode};
  Choice choice;
  const TileSize size = tokens <= 8 ? TileSize{128, 8} : tokens <= 16 ? TileSize{128, 16} : TileSize{128, 64};
  const int units = ceil_divide(n, size.rows) * ceil_divide(tokens, size.tokens);
  choice.tile = {size, std::clamp(multiprocessors / units, 1, std::min(8, ceil_divide(k, 128)))};
  return choice;
}

}  // namespace nibble::group_int_cuda
