#include "quantizers/sparse_selection.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int64_t kChunk = int64_t{1} << 16;

// Unsigned numbers in the order of the floats.
uint32_t sort_key(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

int64_t chunks_of(int64_t count) { return (count + kChunk - 1) / kChunk; }

// counts [bins] of bin(i) for i in [0, count), in as many parts as there are threads.
template <typename Bin>
void count_bins(int64_t count, int64_t bins, ThreadPool& pool, std::vector<int64_t>& counts, Bin&& bin) {
  std::vector<std::vector<int64_t>> parts(static_cast<size_t>(pool.size()));
  pool.parallel_for(chunks_of(count), [&](int64_t chunk, int thread) {
    std::vector<int64_t>& part = parts[thread];
    if (part.empty()) part.assign(static_cast<size_t>(bins), 0);
    const int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) ++part[bin(i)];
  });
  for (const std::vector<int64_t>& part : parts) {
    for (size_t i = 0; i < part.size(); ++i) counts[i] += part[i];
  }
}

// The order statistics `ranks` (from 0, ascending) of `count` values: a histogram of the upper halves of
// their keys finds the few values among which they are.
std::vector<float> order_statistics(const float* values, int64_t count, const std::vector<int64_t>& ranks,
                                    ThreadPool& pool) {
  constexpr int64_t kBins = int64_t{1} << 16;
  std::vector<int64_t> counts(kBins);
  count_bins(count, kBins, pool, counts, [&](int64_t i) { return sort_key(values[i]) >> 16; });
  std::vector<float> found, members;
  int64_t gathered = -1, before = 0, bin = 0;
  for (const int64_t rank : ranks) {
    while (before + counts[bin] <= rank) before += counts[bin++];
    if (gathered != bin) {
      gathered = bin;
      members.clear();
      for (int64_t i = 0; i < count; ++i) {
        if (sort_key(values[i]) >> 16 == bin) members.push_back(values[i]);
      }
    }
    const auto place = members.begin() + (rank - before);
    std::nth_element(members.begin(), place, members.end());
    found.push_back(*place);
  }
  return found;
}

// Marks the `wanted` weights of the highest score that are not taken yet, the first ones where scores are
// equal. `scores` is scratch: the score of what is taken is lowered.
void take_highest(std::vector<float> scores, int64_t wanted, std::vector<uint8_t>& taken) {
  if (wanted <= 0) return;
  const auto count = static_cast<int64_t>(scores.size());
  for (int64_t i = 0; i < count; ++i)
    if (taken[i] != 0) scores[i] = -1;  // below any score
  std::vector<float> sorted = scores;
  std::nth_element(sorted.begin(), sorted.begin() + (wanted - 1), sorted.end(), std::greater<>());
  const float least = sorted[wanted - 1];
  int64_t equal = wanted;
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] > least && taken[i] == 0) {
      taken[i] = 1;
      --equal;
    }
  }
  for (int64_t i = 0; i < count && equal > 0; ++i) {
    if (scores[i] == least && taken[i] == 0) {
      taken[i] = 1;
      --equal;
    }
  }
}

int64_t share_of(int64_t count, double percent) {
  return std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(count) * percent / 100), 0, count);
}

}  // namespace

Quartiles find_quartiles(const float* values, int64_t count, ThreadPool& pool) {
  NIBBLE_CHECK(count >= 1);
  std::vector<int64_t> ranks;
  double fraction[2];
  for (int q = 0; q < 2; ++q) {
    const double place = static_cast<double>(count - 1) * (q == 0 ? 0.25 : 0.75);
    const auto low = static_cast<int64_t>(place);
    fraction[q] = place - static_cast<double>(low);
    ranks.push_back(low);
    ranks.push_back(std::min(count - 1, low + 1));
  }
  // Ascending: with few values the upper neighbour of one quartile is past the other.
  std::vector<int64_t> ascending = ranks;
  std::sort(ascending.begin(), ascending.end());
  const std::vector<float> found = order_statistics(values, count, ascending, pool);
  const auto at = [&](int64_t rank) {
    return static_cast<double>(
        found[std::find(ascending.begin(), ascending.end(), rank) - ascending.begin()]);
  };
  const auto between = [&](int q) {
    const double low = at(ranks[2 * q]), high = at(ranks[2 * q + 1]);
    return static_cast<float>(low + fraction[q] * (high - low));
  };
  return {.first = between(0), .third = between(1)};
}

float outlier_threshold(const Quartiles& quartiles, double ratio) {
  const double spread = static_cast<double>(quartiles.third) - static_cast<double>(quartiles.first);
  if (!(spread > 0)) return HUGE_VALF;
  return static_cast<float>(
      std::max(-static_cast<double>(quartiles.first), static_cast<double>(quartiles.third)) + ratio * spread);
}

// Bins by the leading bits of ratio + 1 as a float: fine where ratios are small, without end where they are
// not.
namespace {
constexpr int kDroppedBits = 11;
constexpr int64_t kRatioBins = int64_t{1} << (31 - kDroppedBits);
}  // namespace

int64_t OutlierRatio::bin_of(double ratio) {
  const auto shifted = static_cast<float>(ratio + 1);
  return shifted > 0 ? std::bit_cast<uint32_t>(shifted) >> kDroppedBits : 0;
}

double OutlierRatio::lower_edge(int64_t bin) {
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bin << kDroppedBits))) - 1;
}

OutlierRatio::OutlierRatio() : bins_(kRatioBins) {}

void OutlierRatio::add(const float* weight, int64_t count, ThreadPool& pool) {
  weights_ += count;
  const Quartiles quartiles = find_quartiles(weight, count, pool);
  const double spread = static_cast<double>(quartiles.third) - static_cast<double>(quartiles.first);
  if (!(spread > 0)) return;  // no outliers, whatever r
  const double base = std::max(-static_cast<double>(quartiles.first), static_cast<double>(quartiles.third));
  count_bins(count, kRatioBins, pool, bins_,
             [&](int64_t i) { return bin_of((std::fabs(static_cast<double>(weight[i])) - base) / spread); });
}

double OutlierRatio::ratio(double percent) const {
  const auto wanted = static_cast<double>(weights_) * percent / 100;
  int64_t above = 0, bin = kRatioBins;
  while (bin > 0 && static_cast<double>(above + bins_[bin - 1]) <= wanted) above += bins_[--bin];
  // Bin 0 holds everything up to a ratio of -1.
  return bin == 0 ? -HUGE_VAL : bin == kRatioBins ? HUGE_VAL : lower_edge(bin);
}

double OutlierRatio::percent_at(double ratio) const {
  if (ratio == HUGE_VAL || weights_ == 0) return 0;
  int64_t above = 0;
  for (int64_t bin = ratio == -HUGE_VAL ? 0 : bin_of(ratio); bin < kRatioBins; ++bin) above += bins_[bin];
  return 100 * static_cast<double>(above) / static_cast<double>(weights_);
}

SparseSelection select_sparse(const SparseRequest& request, ThreadPool& pool) {
  const int64_t n = request.out_features, k = request.in_features, count = n * k;
  SparseSelection selection;
  const auto marked = [&] {
    return static_cast<int64_t>(std::count(selection.taken.begin(), selection.taken.end(), 1));
  };
  const int64_t sensitive =
      request.scores != nullptr ? share_of(count, request.sensitive_percent) : int64_t{0};
  if (sensitive > 0) {
    selection.taken.assign(static_cast<size_t>(count), 0);
    std::vector<float> scores(static_cast<size_t>(count));
    pool.parallel_for(n, [&](int64_t row, int) {
      const float* score = request.scores + row * request.score_stride;
      for (int64_t j = 0; j < k; ++j) {
        const float weight = request.weight[row * k + j];
        scores[row * k + j] = request.score_stride == 0 ? score[j] * weight * weight : score[j];
      }
    });
    take_highest(std::move(scores), sensitive, selection.taken);
    selection.sensitive = marked();
  }
  if (request.outlier_percent > 0) {
    selection.taken.resize(static_cast<size_t>(count), 0);
    if (request.outlier_ratio) {
      const float threshold =
          outlier_threshold(find_quartiles(request.weight, count, pool), *request.outlier_ratio);
      for (int64_t i = 0; i < count; ++i)
        if (std::fabs(request.weight[i]) >= threshold) selection.taken[i] = 1;
    } else {
      std::vector<float> magnitudes(request.weight, request.weight + count);
      for (float& value : magnitudes) value = std::fabs(value);
      take_highest(std::move(magnitudes),
                   std::min(share_of(count, request.outlier_percent), count - selection.sensitive),
                   selection.taken);
    }
    selection.outliers = marked() - selection.sensitive;
  }
  if (selection.sensitive + selection.outliers == 0) selection.taken.clear();
  return selection;
}

SparsePart sparse_part(const SparseSelection& selection, int64_t out_features, int64_t in_features) {
  SparsePart part;
  if (selection.empty()) return part;
  part.row_offsets.push_back(0);
  for (int64_t row = 0; row < out_features; ++row) {
    for (int64_t j = 0; j < in_features; ++j) {
      if (selection.is_taken(row * in_features + j)) part.columns.push_back(static_cast<int32_t>(j));
    }
    part.row_offsets.push_back(static_cast<int64_t>(part.columns.size()));
  }
  part.values.assign(part.columns.size(), 0.0f);
  return part;
}

}  // namespace nibble
