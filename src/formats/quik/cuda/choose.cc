// Which configuration of the product a problem gets: the one that a small model of the chip finds fastest. The
// constants are measurements (bench/results/h100/quik_prompt.txt).
#include <algorithm>
#include <array>

#include "formats/quik/cuda/kernels.h"

namespace nibble::quik_cuda {
namespace {

// Microseconds of one block's work.
struct Cost {
  Configuration configuration;
  double block;  // 128 columns of a tile, from codes of either width
  double tile;   // what a tile costs besides
};
constexpr std::array<Cost, 5> kCosts = {{
    {{256, 2, 1}, 0.72, 1.2},
    {{160, 2, 1}, 0.49, 1.0},
    {{128, 2, 1}, 0.41, 1.0},
    {{128, 1, 1}, 0.46, 2.5},
    {{128, 1, 2}, 0.46, 3.5},
}};
constexpr std::array<Configuration, kCosts.size()> kConfigurations = [] {
  std::array<Configuration, kCosts.size()> all = {};
  for (size_t i = 0; i < all.size(); ++i) all[i] = kCosts[i].configuration;
  return all;
}();

}  // namespace

std::span<const Configuration> configurations() { return kConfigurations; }

Configuration choose(int tokens, int64_t n, int64_t columns, int /*weight_bits*/, int multiprocessors) {
  const auto up = [](int64_t value, int64_t unit) { return (value + unit - 1) / unit; };
  const Cost* best = nullptr;
  double least = 0;
  for (const Cost& cost : kCosts) {
    const Configuration& c = cost.configuration;
    const int64_t cluster = c.share * c.split;
    const int64_t tiles = up(tokens, c.tile_tokens) * up(n, int64_t{kTileOutputs} * c.share);
    const int64_t rounds = up(tiles, multiprocessors / cluster);
    const double seconds = static_cast<double>(rounds) *
                           (cost.tile + cost.block * static_cast<double>(up(columns, kBlockColumns)) / c.split);
    if (best == nullptr || seconds < least) {
      best = &cost;
      least = seconds;
    }
  }
  return best->configuration;
}

}  // namespace nibble::quik_cuda
