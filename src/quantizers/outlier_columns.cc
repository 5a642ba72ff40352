#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "quantizers/quantizer.h"

namespace nibble {

std::vector<int32_t> select_outlier_columns(const InputStatistics& statistics, const LinearSettings& settings,
                                            int64_t hidden_size, bool is_down_projection) {
  NIBBLE_CHECK(hidden_size > 0 && statistics.in_features > 0);
  NIBBLE_CHECK(static_cast<int64_t>(statistics.max_abs.size()) == statistics.in_features);
  const std::vector<float>& max_abs = statistics.max_abs;

  int64_t count = settings.outlier_columns;
  if (count < 0) count = std::min<int64_t>(256, 32 * ((hidden_size + 511) / 512));
  if (settings.outlier_scaling) count *= std::max<int64_t>(1, statistics.in_features / hidden_size);
  count = std::min(count, statistics.in_features / 2);

  if (settings.outlier_threshold > 0) {
    const double threshold = settings.outlier_threshold * (is_down_projection ? 2 : 1);
    const float largest = *std::max_element(max_abs.begin(), max_abs.end());
    if (largest <= threshold) count = 0;
  }

  std::vector<int32_t> columns(max_abs.size());
  std::iota(columns.begin(), columns.end(), 0);
  std::stable_sort(columns.begin(), columns.end(),
                   [&](int32_t a, int32_t b) { return max_abs[a] > max_abs[b]; });
  columns.resize(static_cast<size_t>(count));
  std::sort(columns.begin(), columns.end());
  return columns;
}

}  // namespace nibble
