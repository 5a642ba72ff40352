#include "quantizers/mixed_selection.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "quantizers/mixed_grid.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 16;

int64_t group_count(int64_t k) { return (k + kGroupColumns - 1) / kGroupColumns; }
int64_t unit_count(int64_t k) { return (k + 4 * kGroupColumns - 1) / (4 * kGroupColumns); }

// [H^-1]_jj: with H^-1 = (L^-1)^T L^-1 the squared columns of L^-1.
std::vector<double> inverse_diagonal(const QuantizerInput& input, const HessianDiagonal& diagonal,
                                     ThreadPool& pool) {
  const int64_t k = input.in_features;
  std::vector<int32_t> order(static_cast<size_t>(k));
  std::iota(order.begin(), order.end(), 0);
  const std::vector<float> factor = damped_inverse_factor(input, order, diagonal, pool);
  std::vector<double> result(static_cast<size_t>(k));
  constexpr int64_t kColumnsPerTask = 64;
  pool.parallel_for((k + kColumnsPerTask - 1) / kColumnsPerTask, [&](int64_t task, int) {
    const int64_t first = task * kColumnsPerTask, end = std::min(k, first + kColumnsPerTask);
    for (int64_t i = first; i < k; ++i) {
      for (int64_t j = first; j < std::min(end, i + 1); ++j) {
        const double value = factor[i * k + j];
        result[j] += value * value;
      }
    }
  });
  return result;
}

// Squared errors of rounding up to 16 weights to `levels` + 1 levels from their least to their largest.
// `kept` (may be null) marks weights that are out of the range and have no error.
void rounding_errors(const float* weights, const uint8_t* kept, int64_t count, float levels, float* squares) {
  float low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (kept != nullptr && kept[i] != 0) continue;
    low = std::min(low, weights[i]);
    high = std::max(high, weights[i]);
  }
  const float scale = (high - low) / levels;
  if (!(scale > 0)) {
    std::fill(squares, squares + count, 0.0f);
    return;
  }
  const float zero = std::clamp(std::nearbyint(-low / scale), 0.0f, levels);
  for (int64_t i = 0; i < count; ++i) {
    const float error = weights[i] - (grid_code(weights[i], 1.0f / scale, zero, levels) - zero) * scale;
    squares[i] = kept != nullptr && kept[i] != 0 ? 0.0f : error * error;
  }
}

std::vector<double> group_scores(const QuantizerInput& input, const HessianDiagonal& diagonal,
                                 ThreadPool& pool) {
  const int64_t n = input.out_features, k = input.in_features, groups = group_count(k);
  const std::vector<double> inverse = inverse_diagonal(input, diagonal, pool);
  const bool loss = input.settings->group_ranking == "loss", range = input.settings->group_ranking == "range";
  std::vector<double> scores(static_cast<size_t>(groups));
  pool.parallel_for(groups, [&](int64_t group, int) {
    const int64_t first = group * kGroupColumns, count = std::min<int64_t>(kGroupColumns, k - first);
    double score = 0;
    float least = 0, most = 0;
    for (int64_t row = 0; row < n; ++row) {
      float weights[kGroupColumns], narrow[kGroupColumns], wide[kGroupColumns];
      for (int64_t i = 0; i < count; ++i) {
        // Columns without activations carry no information and become zero.
        weights[i] = diagonal.dead[first + i] ? 0.0f : input.weight[row * k + first + i];
        least = std::min(least, weights[i]);
        most = std::max(most, weights[i]);
      }
      if (loss) {
        rounding_errors(weights, nullptr, count, 3.0f, narrow);
        rounding_errors(weights, nullptr, count, 15.0f, wide);
      }
      for (int64_t i = 0; i < count; ++i) {
        const double gain =
            loss ? double{narrow[i]} - double{wide[i]} : double{weights[i]} * double{weights[i]};
        score += gain / inverse[first + i];
      }
    }
    const double span = double{most} - double{least};
    scores[group] = range ? score * span * span : score;
  });
  return scores;
}

// Marks the `count` largest keys above 0 of a matrix [n, k], the earlier one first where equal. keys_of_row
// fills one row; it is called twice for each.
template <typename KeysOfRow>
void mark_largest(int64_t n, int64_t k, int64_t count, KeysOfRow&& keys_of_row, std::vector<uint8_t>& marks,
                  ThreadPool& pool) {
  // Positive floats order as their bits do: a histogram over the upper half finds where the cut is.
  constexpr int64_t kBins = 1 << 15;
  const auto bin_of = [](float key) { return std::bit_cast<uint32_t>(key) >> 16; };
  const int64_t tasks = (n + kRowsPerTask - 1) / kRowsPerTask;
  std::vector<std::vector<int64_t>> histograms(static_cast<size_t>(pool.size()));
  pool.parallel_for(tasks, [&](int64_t task, int thread) {
    std::vector<int64_t>& histogram = histograms[thread];
    histogram.resize(kBins);
    std::vector<float> keys(static_cast<size_t>(k));
    for (int64_t row = task * kRowsPerTask; row < std::min(n, (task + 1) * kRowsPerTask); ++row) {
      keys_of_row(row, keys.data());
      for (const float key : keys) histogram[bin_of(key)] += key > 0;
    }
  });
  int64_t above = 0, cut = kBins;  // keys in bins from `cut` on are all taken
  const auto in_bin = [&](int64_t bin) {
    int64_t sum = 0;
    for (const auto& histogram : histograms) sum += histogram.empty() ? 0 : histogram[bin];
    return sum;
  };
  while (cut > 0 && above + in_bin(cut - 1) <= count) above += in_bin(--cut);

  std::vector<std::vector<std::pair<float, int64_t>>> candidates(static_cast<size_t>(tasks));
  pool.parallel_for(tasks, [&](int64_t task, int) {
    std::vector<float> keys(static_cast<size_t>(k));
    for (int64_t row = task * kRowsPerTask; row < std::min(n, (task + 1) * kRowsPerTask); ++row) {
      keys_of_row(row, keys.data());
      for (int64_t j = 0; j < k; ++j) {
        if (!(keys[j] > 0)) continue;
        if (bin_of(keys[j]) >= cut) {
          marks[row * k + j] = 1;
        } else if (bin_of(keys[j]) + 1 == cut) {
          candidates[task].emplace_back(-keys[j], row * k + j);
        }
      }
    }
  });
  std::vector<std::pair<float, int64_t>> all;
  for (const auto& some : candidates) all.insert(all.end(), some.begin(), some.end());
  std::sort(all.begin(), all.end());
  for (int64_t i = 0; i < std::min<int64_t>(count - above, static_cast<int64_t>(all.size())); ++i) {
    marks[all[i].second] = 1;
  }
}

}  // namespace

std::vector<int32_t> order_groups(const QuantizerInput& input, const HessianDiagonal& diagonal,
                                  ThreadPool& pool) {
  const int64_t groups = group_count(input.in_features), units = unit_count(input.in_features);
  const std::vector<double> scores = group_scores(input, diagonal, pool);
  std::vector<int32_t> ranked(static_cast<size_t>(groups));
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  std::vector<bool> wide(static_cast<size_t>(4 * units));
  for (int64_t i = 0; i < units; ++i) wide[ranked[i]] = true;

  // Both kinds in their own order; padding, of 2 bits, comes last.
  std::vector<int32_t> order(static_cast<size_t>(4 * units));
  int64_t narrow_place = 0, wide_place = 3;
  for (int32_t group = 0; group < 4 * units; ++group) {
    if (wide[group]) {
      order[wide_place] = group;
      wide_place += 4;
    } else {
      order[narrow_place] = group;
      narrow_place += narrow_place % 4 == 2 ? 2 : 1;
    }
  }
  return order;
}

std::vector<uint8_t> choose_sparse(const QuantizerInput& input, const std::vector<int32_t>& order,
                                   ThreadPool& pool) {
  const int64_t n = input.out_features, k = input.in_features;
  const float* hessian = input.statistics->hessian.data<float>();
  std::vector<uint8_t> marks(static_cast<size_t>(n * k));
  std::vector<bool> narrow(static_cast<size_t>(group_count(k)));
  for (size_t place = 0; place < order.size(); ++place) {
    if (place % 4 != 3 && order[place] < group_count(k)) narrow[order[place]] = true;
  }
  const auto total = static_cast<int64_t>(input.settings->sparse_percent / 100 * static_cast<double>(n * k));
  const auto keys_of_row = [&](int64_t row, float* keys) {
    for (int64_t group = 0; group < group_count(k); ++group) {
      const int64_t first = group * kGroupColumns, count = std::min<int64_t>(kGroupColumns, k - first);
      if (!narrow[group]) {
        std::fill(keys + first, keys + first + count, 0.0f);
        continue;
      }
      rounding_errors(input.weight + row * k + first, marks.data() + row * k + first, count, 3.0f,
                      keys + first);
      for (int64_t i = first; i < first + count; ++i) keys[i] *= hessian[i * k + i];
    }
  };
  const auto pass = [&](int64_t count) {
    // Marks of this pass must not change its own keys.
    std::vector<uint8_t> chosen(marks.size());
    mark_largest(n, k, count, keys_of_row, chosen, pool);
    for (size_t i = 0; i < marks.size(); ++i) marks[i] |= chosen[i];
  };
  if (total > 1) pass(total / 2);
  if (total > 0) pass(total - total / 2);
  return marks;
}

}  // namespace nibble
