// Weighted k-means of numbers: the levels of one row of a non-uniform codebook.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

enum class KmeansSolver {
  kExact,  // dynamic programming over the sorted numbers: the optimum
  kLloyd,  // alternating assignment and means from a deterministic start, at most 50 times: a local optimum
};

// Buffers of one thread, kept between rows.
class Kmeans1d {
 public:
  // Writes `clusters` levels, ascending, that minimise sum over i of weights[i] * (values[i] - nearest
  // level)^2. Fewer different values than clusters: each is a level, and the last one fills up the rest.
  // Values of weight 0 do not count, unless all are. No values at all: zeros. Values are finite, weights
  // finite and at least 0.
  void solve(std::span<const float> values, std::span<const float> weights, int clusters, KmeansSolver solver,
             float* levels);

 private:
  // Of the distinct values [begin, end): sum of weight * (value - mean)^2.
  double cost(int64_t begin, int64_t end) const;
  double mean(int64_t begin, int64_t end) const;
  void gather(std::span<const float> values, std::span<const float> weights, bool equal_weights);
  void solve_exact(int clusters, int64_t* begins);
  void split_layer(int64_t first, int64_t last, int64_t low, int64_t high, int32_t* split);
  void solve_lloyd(int clusters, int64_t* begins) const;

  struct Entry {
    float value, weight;
  };
  std::vector<Entry> entries_;
  std::vector<double> value_, weight_;  // distinct values, ascending and less shift_; sums of their weights
  std::vector<double> sum0_, sum1_, sum2_;  // of weight, weight * value, weight * value^2 before each
  double shift_ = 0;  // the weighted mean: what remains is small, and so are its squares' errors
  std::vector<double> before_, now_;  // least cost of the first i values in c - 1 and c clusters
  std::vector<int32_t> splits_;       // [clusters][distinct + 1]: where the last cluster begins
};

// The index of the level nearest to `value`, the lower one where two are equally near.
inline int nearest_level(const float* levels, int count, float value) {
  int best = 0;
  float distance = value < levels[0] ? levels[0] - value : value - levels[0];
  for (int i = 1; i < count; ++i) {
    const float other = value < levels[i] ? levels[i] - value : value - levels[i];
    if (other < distance) {
      distance = other;
      best = i;
    }
  }
  return best;
}

}  // namespace nibble
