// Which configuration of the product a problem gets: the one that takes least time by a model of three
// numbers each, fitted to measurements on an H100 (cuda_integer_bench --prompts --configurations: LLaMA-2 7B,
// 64, 512 and 2048 tokens).
#include <algorithm>
#include <array>

#include "formats/group_int_a8/cuda/group_product_kernels.h"

namespace nibble::group_int_a8_cuda {
namespace {

// Microseconds.
struct Cost {
  GroupConfiguration configuration;
  double block;  // of 128 columns of a tile
  double tile;   // each further tile of a block
  double start;  // the whole product
};
constexpr std::array kCosts = {
    Cost{{128, 2, 1}, 0.43, 1.9, 3}, Cost{{128, 1, 1}, 0.44, 2.2, 3}, Cost{{128, 1, 2}, 0.46, 5.5, 0},
    Cost{{64, 1, 1}, 0.31, 3, 1.5},  Cost{{64, 1, 2}, 0.32, 3.8, 1},  Cost{{32, 1, 2}, 0.27, 2.9, 1.3},
};
constexpr std::array<GroupConfiguration, kCosts.size()> kAll = [] {
  std::array<GroupConfiguration, kCosts.size()> all = {};
  for (size_t i = 0; i < all.size(); ++i) all[i] = kCosts[i].configuration;
  return all;
}();
// What group_product_kernel.cuh instantiates for other groups than 128 columns with scales of 2 bytes.
constexpr std::array kFew = {GroupConfiguration{128, 1, 1}, GroupConfiguration{64, 1, 2}};

double microseconds(const Cost& cost, int tokens, const FewTokensShape& shape, int multiprocessors) {
  const GroupConfiguration& c = cost.configuration;
  const int64_t rounds = c.rounds(tokens, shape.n, multiprocessors);
  const int64_t blocks = products::divided_up(products::divided_up(shape.columns, kBlockColumns), c.split);
  return cost.start + static_cast<double>(rounds) * (cost.tile + cost.block * static_cast<double>(blocks));
}

}  // namespace

std::span<const GroupConfiguration> group_configurations(const FewTokensOperand& weights) {
  if (weights.shape.group == 128 && weights.shape.scale_bytes == 2) return kAll;
  return kFew;
}

GroupConfiguration choose_group_configuration(int tokens, const FewTokensOperand& weights,
                                              int multiprocessors) {
  const std::span<const GroupConfiguration> offered = group_configurations(weights);
  const Cost* best = nullptr;
  double least = 0;
  for (const Cost& cost : kCosts) {
    if (std::find(offered.begin(), offered.end(), cost.configuration) == offered.end()) continue;
    const double time = microseconds(cost, tokens, weights.shape, multiprocessors);
    if (best == nullptr || time < least) {
      best = &cost;
      least = time;
    }
  }
  return best->configuration;
}

}  // namespace nibble::group_int_a8_cuda
