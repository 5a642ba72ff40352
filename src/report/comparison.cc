#include "report/comparison.h"

#include <algorithm>

namespace nibble {

Baseline baseline_of_recipe(const std::string& name) {
  if (name.starts_with("rtn-")) return Baseline::kRtn;
  if (name.starts_with("gptq-")) return Baseline::kGptq;
  return Baseline::kNone;
}

std::optional<GapClosed> gap_closed(const Comparison& comparison, const ComparisonRow& row,
                                    Baseline baseline) {
  if (row.failed() || row.kind == RowKind::kSource || row.baseline == baseline) return std::nullopt;
  if (!std::isfinite(row.kl_divergence.value) || !std::isfinite(row.bits_per_weight)) return std::nullopt;
  // Plain rounding is not measured against GPTQ: its gap would be negative by construction.
  if (row.baseline == Baseline::kRtn) return std::nullopt;
  const ComparisonRow* nearest = nullptr;
  for (const ComparisonRow& other : comparison.rows) {
    if (other.baseline != baseline || other.failed() || other.activation_bits != row.activation_bits)
      continue;
    if (!std::isfinite(other.bits_per_weight) || !(other.kl_divergence.value > 0)) continue;
    if (nearest == nullptr) {
      nearest = &other;
      continue;
    }
    const double distance = std::fabs(other.bits_per_weight - row.bits_per_weight);
    const double best = std::fabs(nearest->bits_per_weight - row.bits_per_weight);
    if (distance < best || (distance == best && other.bits_per_weight > nearest->bits_per_weight))
      nearest = &other;
  }
  if (nearest == nullptr) return std::nullopt;
  const double theirs = nearest->kl_divergence.value;
  return GapClosed{.baseline = nearest, .share = (theirs - row.kl_divergence.value) / theirs};
}

void sort_rows(Comparison* comparison, RowOrder order) {
  // What has no number goes behind what has one.
  const auto key = [order](const ComparisonRow& row) {
    if (order == RowOrder::kGiven) return 0.0;
    const double value = order == RowOrder::kBits ? -row.bits_per_weight : row.kl_divergence.value;
    return std::isfinite(value) ? value : std::numeric_limits<double>::infinity();
  };
  const auto rank = [](const ComparisonRow& row) {
    return row.failed() ? 2 : row.kind == RowKind::kSource ? 0 : 1;
  };
  std::stable_sort(comparison->rows.begin(), comparison->rows.end(),
                   [&](const ComparisonRow& a, const ComparisonRow& b) {
                     if (rank(a) != rank(b)) return rank(a) < rank(b);
                     return key(a) < key(b);
                   });
}

}  // namespace nibble
