// Which configuration of the product a problem gets: the one that takes least time by a model of three
// numbers each, fitted to measurements on an H100 (cuda_quik_bench --configurations: three models, 128 to
// 2048 tokens; typically within 10 %, and the choice costs 2 % more than the best one would).
#include <array>

#include "formats/quik/cuda/kernels.h"

namespace nibble::quik_cuda {
namespace {

// Microseconds.
struct Cost {
  int weight_bits;
  Configuration configuration;
  double block;  // of 128 integer columns of a tile, or 64 outliers
  double tile;   // each further tile of a block
  double start;  // the whole product
};
constexpr std::array kCosts = {
    Cost{8, {256, 2, 1, 0}, 0.63, 4, 3},   Cost{8, {160, 2, 1, 0}, 0.50, 1, 6},
    Cost{8, {128, 2, 1, 0}, 0.44, 1, 4},   Cost{8, {128, 1, 1, 0}, 0.47, 1.5, 1},
    Cost{8, {128, 1, 2, 0}, 0.54, 3, 1},   Cost{4, {256, 2, 1, 3}, 0.60, 6, 2},
    Cost{4, {160, 2, 1, 1}, 0.39, 3, 4},   Cost{4, {128, 2, 1, 0}, 0.30, 2.5, 5},
    Cost{4, {128, 1, 1, 0}, 0.31, 2.5, 3}, Cost{4, {128, 1, 2, 0}, 0.32, 6, 1},
};
constexpr std::array<Configuration, kCosts.size() / 2> kConfigurations = [] {
  std::array<Configuration, kCosts.size() / 2> all = {};
  for (size_t i = 0; i < all.size(); ++i) all[i] = kCosts[i].configuration;
  return all;
}();

double microseconds(const Cost& cost, int tokens, const group_int_a8_cuda::FewTokensShape& shape,
                    int multiprocessors) {
  const Configuration& c = cost.configuration;
  const int64_t rounds = c.rounds(tokens, shape.n, multiprocessors);
  const double blocks = static_cast<double>(products::divided_up(shape.columns, kBlockColumns)) / c.split +
                        static_cast<double>(shape.outliers) / 64;
  return cost.start + static_cast<double>(rounds) * (cost.tile + cost.block * blocks);
}

}  // namespace

std::span<const Configuration> configurations() { return kConfigurations; }

Configuration choose(int tokens, const group_int_a8_cuda::FewTokensShape& shape, int multiprocessors) {
  const Cost* best = nullptr;
  double least = 0;
  for (const Cost& cost : kCosts) {
    if (cost.weight_bits != shape.weight_bits) continue;
    const double time = microseconds(cost, tokens, shape, multiprocessors);
    if (best == nullptr || time < least) {
      best = &cost;
      least = time;
    }
  }
  return best->configuration;
}

}  // namespace nibble::quik_cuda
