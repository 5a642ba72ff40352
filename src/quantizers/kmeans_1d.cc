// The exact solver: an optimal cluster is a run of the sorted values, so the least cost of the first i values
// in c clusters is the least over j < i of that of the first j in c - 1 plus one cluster [j, i). The best j
// does not fall as i grows, which divide and conquer uses: O(c m log m) for m distinct values (Wu, "Optimal
// quantization by matrix searching", 1991).
#include "quantizers/kmeans_1d.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int kMaxClusters = 256;
constexpr int kLloydIterations = 50;

}  // namespace

void Kmeans1d::gather(std::span<const float> values, std::span<const float> weights, bool equal_weights) {
  entries_.clear();
  for (size_t i = 0; i < values.size(); ++i) {
    const float weight = equal_weights ? 1.0f : weights[i];
    // Adding 0 makes -0 a 0, which is the same value.
    if (weight > 0) entries_.push_back({values[i] + 0.0f, weight});
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return a.value != b.value ? a.value < b.value : a.weight < b.weight;
  });
  value_.clear();
  weight_.clear();
  double total = 0, moment = 0;
  for (const Entry& entry : entries_) {
    const double value = entry.value, weight = entry.weight;
    if (value_.empty() || value_.back() != value) {
      value_.push_back(value);
      weight_.push_back(0);
    }
    weight_.back() += weight;
    total += weight;
    moment += weight * value;
  }
  shift_ = total > 0 ? moment / total : 0;
  const size_t count = value_.size();
  sum0_.resize(count + 1);
  sum1_.resize(count + 1);
  sum2_.resize(count + 1);
  sum0_[0] = sum1_[0] = sum2_[0] = 0;
  for (size_t i = 0; i < count; ++i) {
    value_[i] -= shift_;
    sum0_[i + 1] = sum0_[i] + weight_[i];
    sum1_[i + 1] = sum1_[i] + weight_[i] * value_[i];
    sum2_[i + 1] = sum2_[i] + weight_[i] * value_[i] * value_[i];
  }
}

double Kmeans1d::cost(int64_t begin, int64_t end) const {
  const double weight = sum0_[end] - sum0_[begin], moment = sum1_[end] - sum1_[begin];
  const double cost = (sum2_[end] - sum2_[begin]) - moment * moment / weight;
  // Rounding may leave less than nothing, or 0/0 where weights vanish beside those before them.
  return cost > 0 ? cost : 0;
}

// Summed anew: the difference of two prefix sums would have lost the digits of light values.
double Kmeans1d::mean(int64_t begin, int64_t end) const {
  double weight = 0, moment = 0;
  for (int64_t i = begin; i < end; ++i) {
    weight += weight_[i];
    moment += weight_[i] * value_[i];
  }
  return moment / weight;
}

// now_[i] for i in [first, last], whose best splits lie in [low, high].
void Kmeans1d::split_layer(int64_t first, int64_t last, int64_t low, int64_t high, int32_t* split) {
  while (first <= last) {
    const int64_t middle = first + (last - first) / 2;
    double best = std::numeric_limits<double>::infinity();
    int64_t best_at = std::min(high, middle - 1);
    for (int64_t j = std::min(high, middle - 1); j >= low; --j) {
      const double run = cost(j, middle);
      if (run > best) break;  // it only grows from here
      const double total = before_[j] + run;
      if (total <= best) {
        best = total;
        best_at = j;
      }
    }
    now_[middle] = best;
    split[middle] = static_cast<int32_t>(best_at);
    split_layer(first, middle - 1, low, best_at, split);
    first = middle + 1;
    low = best_at;
  }
}

void Kmeans1d::solve_exact(int clusters, int64_t* begins) {
  const auto count = static_cast<int64_t>(value_.size());
  const int64_t stride = count + 1;
  before_.assign(static_cast<size_t>(stride), 0);
  now_.assign(static_cast<size_t>(stride), 0);
  splits_.assign(static_cast<size_t>(stride * clusters), 0);
  for (int64_t i = 1; i <= count; ++i) before_[i] = cost(0, i);
  for (int c = 2; c < clusters; ++c) {
    // c clusters need c values, and leave as many as the clusters that follow.
    split_layer(c, count - (clusters - c), c - 1, count, splits_.data() + (c - 1) * stride);
    std::swap(before_, now_);
  }
  if (clusters > 1) split_layer(count, count, clusters - 1, count, splits_.data() + (clusters - 1) * stride);
  int64_t end = count;
  for (int c = clusters - 1; c >= 0; --c) {
    begins[c] = c == 0 ? 0 : splits_[c * stride + end];
    end = begins[c];
  }
}

// Starts from the mean and adds the value that is worst off, weight times squared distance, again and again:
// k-means++ without its dice.
void Kmeans1d::solve_lloyd(int clusters, int64_t* begins) const {
  const size_t count = value_.size();
  std::vector<double> levels = {0.0};  // the mean, after the shift
  std::vector<double> distance(count, std::numeric_limits<double>::infinity());
  while (static_cast<int>(levels.size()) < clusters) {
    size_t worst = 0;
    double most = -1;
    for (size_t i = 0; i < count; ++i) {
      const double d = value_[i] - levels.back();
      distance[i] = std::min(distance[i], d * d);
      if (distance[i] > 0 && weight_[i] * distance[i] > most) {
        most = weight_[i] * distance[i];
        worst = i;
      }
    }
    levels.push_back(value_[worst]);
  }
  std::sort(levels.begin(), levels.end());
  std::vector<int64_t> last;
  for (int iteration = 0; iteration < kLloydIterations; ++iteration) {
    begins[0] = 0;
    for (int c = 1; c < clusters; ++c) {
      const double border = 0.5 * (levels[c - 1] + levels[c]);
      begins[c] = std::upper_bound(value_.begin() + begins[c - 1], value_.end(), border) - value_.begin();
    }
    const std::vector<int64_t> now(begins, begins + clusters);
    if (now == last) break;
    last = now;
    for (int c = 0; c < clusters; ++c) {
      const int64_t end = c + 1 < clusters ? begins[c + 1] : static_cast<int64_t>(count);
      if (begins[c] < end) levels[c] = mean(begins[c], end);
    }
  }
}

void Kmeans1d::solve(std::span<const float> values, std::span<const float> weights, int clusters,
                     KmeansSolver solver, float* levels) {
  NIBBLE_CHECK(clusters >= 1 && clusters <= kMaxClusters && weights.size() == values.size());
  gather(values, weights, false);
  if (entries_.empty()) gather(values, weights, true);
  const auto count = static_cast<int64_t>(value_.size());
  if (count == 0) {
    std::fill_n(levels, clusters, 0.0f);
    return;
  }
  const auto used = static_cast<int>(std::min<int64_t>(clusters, count));
  int64_t begins[kMaxClusters + 1];
  if (count <= clusters) {
    for (int c = 0; c < used; ++c) begins[c] = c;
  } else if (solver == KmeansSolver::kExact) {
    solve_exact(clusters, begins);
  } else {
    solve_lloyd(clusters, begins);
  }
  begins[used] = count;
  int made = 0;
  for (int c = 0; c < used; ++c) {
    if (begins[c] == begins[c + 1]) continue;  // Lloyd may leave a cluster empty
    levels[made++] = static_cast<float>(mean(begins[c], begins[c + 1]) + shift_);
  }
  std::fill(levels + made, levels + clusters, levels[made - 1]);
}

}  // namespace nibble
