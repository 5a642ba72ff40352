#include "quantizers/lnq.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/interrupt.h"
#include "calibration/blas.h"
#include "quantizers/codebook_rows.h"
#include "quantizers/kmeans_1d.h"
#include "quantizers/row_vectors.h"
#include "quantizers/uniform_grid.h"

namespace nibble {
namespace {

constexpr int kMaxLevels = 16;
// Rows that pass over the Hessian together: each of its rows is read once for all of them.
constexpr int64_t kStripRows = 8;

using Square = std::array<std::array<double, kMaxLevels>, kMaxLevels>;
using Column = std::array<double, kMaxLevels>;

// x with a x = b for the symmetric positive definite a [n, n], by Cholesky; false where it is not (to
// rounding).
bool solve_small(Square a, Column b, int n, Column* x) {
  for (int j = 0; j < n; ++j) {
    double pivot = a[j][j];
    for (int i = 0; i < j; ++i) pivot -= a[j][i] * a[j][i];
    if (!(pivot > 1e-9 * a[j][j]) || !(pivot > 0)) return false;
    a[j][j] = std::sqrt(pivot);
    for (int row = j + 1; row < n; ++row) {
      double sum = a[row][j];
      for (int i = 0; i < j; ++i) sum -= a[row][i] * a[j][i];
      a[row][j] = sum / a[j][j];
    }
  }
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < j; ++i) b[j] -= a[j][i] * b[i];
    b[j] /= a[j][j];
  }
  for (int j = n - 1; j >= 0; --j) {
    for (int i = j + 1; i < n; ++i) b[j] -= a[i][j] * b[i];
    b[j] /= a[j][j];
  }
  *x = b;
  return true;
}

class Strip {
 public:
  Strip(const LnqProblem& problem, float* levels, int8_t* codes)
      : problem_(problem),
        k_(problem.in_features),
        count_(problem.levels),
        levels_(levels),
        codes_(codes),
        error_(static_cast<size_t>(problem.rows * k_)),
        gradient_(error_.size()),
        by_level_(static_cast<size_t>(problem.rows * count_ * k_)) {
    for (int64_t i = 0; i < problem.rows * k_; ++i) {
      if (!taken(i)) error_[i] = levels[i / k_ * count_ + codes[i]] - problem.weight[i];
    }
    gemm<float>(false, false, problem.rows, k_, k_, 1.0f, error_.data(), k_, problem.hessian, k_, 0.0f,
                gradient_.data(), k_);
    for (int64_t j = 0; j < k_; ++j) {
      for (int64_t row = 0; row < problem.rows; ++row) {
        if (!taken(row * k_ + j)) add_scaled(1.0f, hessian_row(j), k_, by_level(row, codes[row * k_ + j]));
      }
    }
  }

  double objective() const {
    double sum = 0;
    for (size_t i = 0; i < error_.size(); ++i)
      sum += static_cast<double>(error_[i]) * static_cast<double>(gradient_[i]);
    return sum;
  }

  // The least-squares levels of one row: with P the one-hot matrix of its codes, the change d of the levels
  // solves (P^T H P) d = -P^T H e. Levels without codes stay.
  void solve_levels(int64_t row) {
    std::array<bool, kMaxLevels> has_codes{};
    Square normal{};
    Column right{};
    for (int64_t j = 0; j < k_; ++j) {
      if (taken(row * k_ + j)) continue;
      const int code = codes_[row * k_ + j];
      has_codes[code] = true;
      right[code] -= gradient_[row * k_ + j];
      for (int level = 0; level < count_; ++level) normal[level][code] += by_level(row, level)[j];
    }
    std::array<int, kMaxLevels> place{};
    int used = 0;
    for (int level = 0; level < count_; ++level)
      if (has_codes[level]) place[used++] = level;
    for (int a = 0; a < used; ++a) {
      right[a] = right[place[a]];
      for (int b = 0; b < used; ++b) normal[a][b] = normal[place[a]][place[b]];
    }
    Column change;
    if (!solve_small(normal, right, used, &change)) return;
    for (int a = 0; a < used; ++a) {
      move_level(row, place[a], levels_[row * count_ + place[a]] + static_cast<float>(change[a]));
    }
    refresh_errors(row);
  }

  void round_levels(int64_t row) {
    std::array<float, kMaxLevels> rounded;
    std::copy_n(levels_ + row * count_, count_, rounded.begin());
    nibble::round_levels(rounded.data(), count_);
    for (int level = 0; level < count_; ++level) move_level(row, level, rounded[level]);
    refresh_errors(row);
  }

  // One visit of every column.
  void descend() {
    for (int64_t j = 0; j < k_; ++j) {
      const float curvature = hessian_row(j)[j];
      for (int64_t row = 0; row < problem_.rows; ++row) {
        const int64_t at = row * k_ + j;
        if (taken(at)) continue;
        const float* levels = levels_ + row * count_;
        const int old = codes_[at];
        const int best = nearest_level(levels, count_, levels[old] - gradient_[at] / curvature);
        const float change = levels[best] - levels[old];
        if (change == 0) continue;
        codes_[at] = static_cast<int8_t>(best);
        error_[at] += change;
        add_scaled(change, hessian_row(j), k_, gradient_.data() + row * k_);
        add_scaled(-1.0f, hessian_row(j), k_, by_level(row, old));
        add_scaled(1.0f, hessian_row(j), k_, by_level(row, best));
      }
    }
  }

  void sort_levels(int64_t row) {
    std::array<int, kMaxLevels> order, place;
    float* levels = levels_ + row * count_;
    std::iota(order.begin(), order.begin() + count_, 0);
    std::stable_sort(order.begin(), order.begin() + count_,
                     [&](int a, int b) { return levels[a] < levels[b]; });
    std::array<float, kMaxLevels> sorted;
    for (int i = 0; i < count_; ++i) {
      sorted[i] = levels[order[i]];
      place[order[i]] = i;
    }
    std::copy_n(sorted.begin(), count_, levels);
    for (int64_t j = 0; j < k_; ++j) codes_[row * k_ + j] = static_cast<int8_t>(place[codes_[row * k_ + j]]);
  }

 private:
  bool taken(int64_t at) const { return problem_.taken != nullptr && problem_.taken[at] != 0; }
  const float* hessian_row(int64_t j) const { return problem_.hessian + j * k_; }
  // Sum of the Hessian's rows whose columns have this code.
  float* by_level(int64_t row, int level) { return by_level_.data() + (row * count_ + level) * k_; }

  void move_level(int64_t row, int level, float to) {
    float& from = levels_[row * count_ + level];
    if (to == from || !std::isfinite(to)) return;
    add_scaled(to - from, by_level(row, level), k_, gradient_.data() + row * k_);
    from = to;
  }
  void refresh_errors(int64_t row) {
    for (int64_t i = row * k_; i < (row + 1) * k_; ++i) {
      if (!taken(i)) error_[i] = levels_[row * count_ + codes_[i]] - problem_.weight[i];
    }
  }

  const LnqProblem& problem_;
  const int64_t k_;
  const int count_;
  float* levels_;
  int8_t* codes_;
  std::vector<float> error_;     // [rows, k] e = q - w
  std::vector<float> gradient_;  // [rows, k] H e, kept up to date
  std::vector<float> by_level_;  // [rows, levels, k]
};

// H with settings.damping times the mean of its diagonal added: what makes least squares well posed where
// channels repeat each other or were never seen.
std::vector<float> damped(const float* hessian, int64_t k, double damping, const std::string& name) {
  std::vector<float> made(hessian, hessian + k * k);
  double mean = 0;
  for (int64_t j = 0; j < k; ++j) {
    const float value = hessian[j * k + j];
    if (!std::isfinite(value) || value < 0) {
      fail("{}: the Hessian's diagonal is {} at column {}; expected finite numbers of at least 0", name,
           value, j);
    }
    mean += value / static_cast<double>(k);
  }
  // Never quite 0, so that a column has a best code whatever the settings.
  const auto added = static_cast<float>(std::max(damping, 1e-7) * (mean > 0 ? mean : 1.0));
  for (int64_t j = 0; j < k; ++j) made[j * k + j] += added;
  return made;
}

// Rows [first, first + rows) and the Hessian they share.
struct Run {
  int64_t first, rows;
  const float* hessian;
};

// By settings.lnq_hessian: one Hessian for all rows, or those weighted by the gradients of each run's
// outputs.
std::vector<Run> hessian_runs(const QuantizerInput& input) {
  if (input.settings->lnq_hessian == "guided") {
    std::vector<Run> runs;
    int64_t rows = 0;
    for (const GuidedHessian& guided : input.guided_hessians) {
      NIBBLE_CHECK(guided.first_row == rows && guided.hessian != nullptr);
      runs.push_back({guided.first_row, guided.rows, guided.hessian});
      rows += guided.rows;
    }
    NIBBLE_CHECK(rows == input.out_features);
    return runs;
  }
  NIBBLE_CHECK(input.statistics != nullptr && input.statistics->hessian.defined());
  return {{0, input.out_features, input.statistics->hessian.data<float>()}};
}

QuantizedWeight quantize_lnq(const QuantizerInput& input, ThreadPool& pool) {
  check_quantizer_input(input, pool);
  const int64_t k = input.in_features;
  const WeightImportance importance(input, pool);
  const SparseSelection selection = select_sparse(input, importance, pool);
  std::vector<float> levels = kmeans_levels(input, importance, selection, pool);
  std::vector<int8_t> codes = nearest_codes(input, levels, pool);
  const int count = 1 << input.settings->weight_bits;
  for (const Run& run : hessian_runs(input)) {
    const std::vector<float> hessian = damped(run.hessian, k, input.settings->damping, input.name);
    pool.parallel_for((run.rows + kStripRows - 1) / kStripRows, [&](int64_t strip, int) {
      throw_if_interrupted();
      const int64_t first = run.first + strip * kStripRows;
      refine_rows({.weight = input.weight + first * k,
                   .hessian = hessian.data(),
                   .rows = std::min(kStripRows, run.first + run.rows - first),
                   .in_features = k,
                   .levels = count,
                   .taken = selection.empty() ? nullptr : selection.taken.data() + first * k,
                   .iterations = input.settings->lnq_iterations},
                  levels.data() + first * count, codes.data() + first * k, nullptr);
    });
  }
  return codebook_result(input, std::move(codes), std::move(levels), selection);
}

}  // namespace

void refine_rows(const LnqProblem& problem, float* levels, int8_t* codes, std::vector<double>* objectives) {
  NIBBLE_CHECK(problem.levels >= 1 && problem.levels <= kMaxLevels);
  Strip strip(problem, levels, codes);
  const auto note = [&] {
    if (objectives != nullptr) objectives->push_back(strip.objective());
  };
  note();
  for (int64_t iteration = 0; iteration < problem.iterations; ++iteration) {
    strip.descend();
    note();
    for (int64_t row = 0; row < problem.rows; ++row) strip.solve_levels(row);
    note();
  }
  for (int64_t row = 0; row < problem.rows; ++row) strip.round_levels(row);
  note();
  strip.descend();
  note();
  for (int64_t row = 0; row < problem.rows; ++row) strip.sort_levels(row);
}

extern const Quantizer kLnqQuantizer;
const Quantizer kLnqQuantizer = {.name = "lnq",
                                 .needs =
                                     [](const LinearSettings& settings) {
                                       CalibrationNeeds needs = importance_needs(settings);
                                       const bool guided = settings.lnq_hessian == "guided";
                                       needs.hessian = needs.hessian || !guided;
                                       needs.guided_hessian = guided;
                                       return needs;
                                     },
                                 .quantize = quantize_lnq,
                                 .sample = codebook_sample};

}  // namespace nibble
