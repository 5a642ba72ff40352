// Random linears with inputs for the tests of quantizers.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "calibration/statistics.h"
#include "quantizers/quantizer.h"

namespace nibble {

struct CaseOptions {
  int64_t tokens = 0;          // 0: 4 * in_features + 16
  int64_t dead_columns = 0;    // columns without any activation, spread evenly
  int64_t strong_columns = 0;  // columns with 30 times the activations of the others
  double drift = 0;            // the float model's input differs by this share of the input's size
  unsigned seed = 1;
};

struct QuantizerCase {
  std::vector<float> weight;  // [n, k]
  InputStatistics statistics;
  LinearSettings settings;
  QuantizerInput input;
  std::vector<float> x, x_float;  // [tokens, k], the latter only with drift
};

// Activations are mixtures of k/2 + 1 shared directions with noise, so that columns are correlated as in real
// layers.
inline QuantizerCase make_case(int64_t n, int64_t k, const CaseOptions& options = {}) {
  QuantizerCase made;
  std::mt19937 engine(options.seed * 7919u + static_cast<unsigned>(n * 31 + k));
  std::normal_distribution<float> normal;
  made.weight.resize(static_cast<size_t>(n * k));
  for (float& value : made.weight) value = 0.05f * normal(engine);

  const int64_t tokens = options.tokens > 0 ? options.tokens : 4 * k + 16, sources = k / 2 + 1;
  std::vector<float> mixing(static_cast<size_t>(sources * k)), x(static_cast<size_t>(tokens * k));
  for (float& value : mixing) value = normal(engine) / std::sqrt(static_cast<float>(sources));
  std::vector<float> scale(static_cast<size_t>(k));
  for (int64_t j = 0; j < k; ++j) scale[j] = std::exp(0.5f * normal(engine));
  for (int64_t i = 0; i < options.strong_columns; ++i) scale[(i * 37 + 5) % k] *= 30.0f;
  for (int64_t i = 0; i < options.dead_columns; ++i) scale[i * k / options.dead_columns] = 0.0f;
  std::vector<float> source(static_cast<size_t>(sources));
  for (int64_t t = 0; t < tokens; ++t) {
    for (float& value : source) value = normal(engine);
    for (int64_t j = 0; j < k; ++j) {
      float sum = 0.5f * normal(engine);
      for (int64_t s = 0; s < sources; ++s) sum += source[s] * mixing[s * k + j];
      x[t * k + j] = sum * scale[j];
    }
  }
  ThreadPool pool(1);
  StatisticsCollector collector(k, true, options.drift > 0);
  collector.add(x.data(), tokens, pool, "case");
  if (options.drift > 0) {
    // Part of the drift follows from the input, as errors of earlier layers do; part is noise.
    made.x_float = x;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < k; ++j) {
        const float neighbour = scale[(j + 1) % k] > 0 ? x[t * k + (j + 1) % k] / scale[(j + 1) % k] : 0.0f;
        made.x_float[t * k + j] +=
            static_cast<float>(options.drift) * scale[j] * (neighbour + 0.5f * normal(engine));
      }
    }
    collector.add_cross(made.x_float.data(), x.data(), tokens, pool, "case");
  }
  made.x = std::move(x);
  made.statistics = collector.finish();
  made.input.name = "layers.7.test";
  made.input.out_features = n;
  made.input.in_features = k;
  return made;
}

// The input of a case, its pointers refreshed after copies and moves.
inline const QuantizerInput& input_of(QuantizerCase& made) {
  made.input.weight = made.weight.data();
  made.input.statistics = &made.statistics;
  made.input.settings = &made.settings;
  return made.input;
}

// scales * (codes - zeros), and the outlier weights as they are; [n, k].
inline std::vector<float> dequantize(const QuantizedWeight& weight) {
  const int64_t integers = weight.integer_columns(),
                outliers = static_cast<int64_t>(weight.outlier_columns.size());
  const int64_t group_size = weight.group_size > 0 ? weight.group_size : integers;
  const int64_t groups = (integers + group_size - 1) / group_size;
  std::vector<float> made(static_cast<size_t>(weight.out_features * weight.in_features));
  for (int64_t n = 0; n < weight.out_features; ++n) {
    int64_t integer = 0, outlier = 0;
    for (int64_t j = 0; j < weight.in_features; ++j) {
      float& out = made[n * weight.in_features + j];
      if (outlier < outliers && weight.outlier_columns[outlier] == j) {
        out = weight.outlier_weights[n * outliers + outlier++];
      } else {
        const int64_t group = n * groups + integer / group_size;
        const float zero = weight.zeros.empty() ? 0.0f : weight.zeros[group];
        out = weight.scales[group] * (weight.codes[n * integers + integer] - zero);
        ++integer;
      }
    }
  }
  return made;
}

}  // namespace nibble
