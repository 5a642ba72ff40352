#include "quantizers/codebook_rows.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/half.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "formats/squeezellm/squeezellm.h"
#include "quantizers/kmeans_1d.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 8;

template <typename Body>
void for_rows(int64_t rows, ThreadPool& pool, Body&& body) {
  pool.parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int thread) {
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row, thread);
  });
}

bool counts(float value) { return std::isfinite(value) && value >= 0; }

}  // namespace

WeightImportance::WeightImportance(const QuantizerInput& input, ThreadPool& pool) {
  const int64_t n = input.out_features, k = input.in_features;
  const std::string& kind = input.settings->sensitivity;
  if (kind == "fisher") {
    if (input.sensitivity == nullptr) {
      fail(
          "{}: sensitivity \"fisher\" needs squared gradients of the loss, and none were measured; "
          "--set sensitivity=hessian_diagonal does without",
          input.name);
    }
    data_ = input.sensitivity;
    stride_ = k;
    for_rows(n, pool, [&](int64_t row, int) {
      for (int64_t j = 0; j < k; ++j) {
        if (counts(data_[row * k + j])) continue;
        fail("{}: the sensitivity in row {}, column {} is {}; expected finite numbers of at least 0",
             input.name, row, j, data_[row * k + j]);
      }
    });
    return;
  }
  shared_.assign(static_cast<size_t>(k), 1.0f);
  if (kind == "hessian_diagonal") {
    NIBBLE_CHECK(input.statistics != nullptr && input.statistics->hessian.defined());
    const float* hessian = input.statistics->hessian.data<float>();
    for (int64_t j = 0; j < k; ++j) {
      shared_[j] = hessian[j * k + j];
      if (!counts(shared_[j])) {
        fail("{}: the Hessian's diagonal is {} at column {}; expected finite numbers of at least 0",
             input.name, shared_[j], j);
      }
    }
  } else {
    NIBBLE_CHECK(kind == "uniform");
  }
  data_ = shared_.data();
}

CalibrationNeeds importance_needs(const LinearSettings& settings) {
  return {.hessian = settings.sensitivity == "hessian_diagonal",
          .sensitivity = settings.sensitivity == "fisher"};
}

SparseSelection select_sparse(const QuantizerInput& input, const WeightImportance& importance,
                              ThreadPool& pool) {
  const LinearSettings& settings = *input.settings;
  SparseSelection selection =
      select_sparse({.weight = input.weight,
                     .out_features = input.out_features,
                     .in_features = input.in_features,
                     .scores = settings.sensitivity == "uniform" ? nullptr : importance.data(),
                     .score_stride = importance.stride(),
                     .sensitive_percent = settings.sparse_sensitive_percent,
                     .outlier_percent = settings.sparse_outlier_percent,
                     .outlier_ratio = input.sparse_outlier_ratio},
                    pool);
  if (!selection.empty()) {
    log_debug("{}: {} sensitive values and {} outliers beside the codebooks; outliers by {}", input.name,
              selection.sensitive, selection.outliers,
              input.sparse_outlier_ratio ? format_text("quartiles, r = {:.4f}", *input.sparse_outlier_ratio)
                                         : "this matrix's own largest |w|");
  }
  return selection;
}

void round_levels(float* levels, int64_t count) {
  if (!f16_holds_levels(levels, count)) return;
  for (int64_t i = 0; i < count; ++i) levels[i] = f16_to_float(float_to_f16(levels[i]));
}

std::vector<float> kmeans_levels(const QuantizerInput& input, const WeightImportance& importance,
                                 const SparseSelection& selection, ThreadPool& pool) {
  const int64_t k = input.in_features;
  const int count = 1 << input.settings->weight_bits;
  const KmeansSolver solver =
      input.settings->kmeans_solver == "lloyd" ? KmeansSolver::kLloyd : KmeansSolver::kExact;
  std::vector<float> levels(static_cast<size_t>(input.out_features * count));
  struct Buffers {
    Kmeans1d kmeans;
    std::vector<float> values, weights;
  };
  std::vector<Buffers> buffers(static_cast<size_t>(pool.size()));
  for_rows(input.out_features, pool, [&](int64_t row, int thread) {
    throw_if_interrupted();
    Buffers& own = buffers[thread];
    own.values.clear();
    own.weights.clear();
    const float* weight = input.weight + row * k;
    const float* counted = importance.row(row);
    for (int64_t j = 0; j < k; ++j) {
      if (selection.is_taken(row * k + j)) continue;
      own.values.push_back(weight[j]);
      own.weights.push_back(counted[j]);
    }
    own.kmeans.solve(own.values, own.weights, count, solver, levels.data() + row * count);
    round_levels(levels.data() + row * count, count);
  });
  return levels;
}

std::vector<int8_t> nearest_codes(const QuantizerInput& input, const std::vector<float>& levels,
                                  ThreadPool& pool) {
  const int64_t k = input.in_features;
  const int count = 1 << input.settings->weight_bits;
  std::vector<int8_t> codes(static_cast<size_t>(input.out_features * k));
  for_rows(input.out_features, pool, [&](int64_t row, int) {
    const float* own = levels.data() + row * count;
    for (int64_t j = 0; j < k; ++j)
      codes[row * k + j] = static_cast<int8_t>(nearest_level(own, count, input.weight[row * k + j]));
  });
  return codes;
}

QuantizedWeight codebook_result(const QuantizerInput& input, std::vector<int8_t> codes,
                                std::vector<float> levels, const SparseSelection& selection) {
  const int64_t k = input.in_features;
  const int count = 1 << input.settings->weight_bits;
  QuantizedWeight result = {.out_features = input.out_features,
                            .in_features = k,
                            .weight_bits = static_cast<int>(input.settings->weight_bits),
                            .activation_bits = static_cast<int>(input.settings->activation_bits),
                            .group_size = input.settings->group_size,
                            .codes = std::move(codes),
                            .codebooks = std::move(levels),
                            .sparse = sparse_part(selection, input.out_features, k)};
  for (int64_t row = 0; row < input.out_features && !result.sparse.empty(); ++row) {
    const float* own = result.codebooks.data() + row * count;
    for (int64_t i = result.sparse.row_offsets[row]; i < result.sparse.row_offsets[row + 1]; ++i) {
      const int64_t at = row * k + result.sparse.columns[i];
      const int code = nearest_level(own, count, input.weight[at]);
      result.codes[at] = static_cast<int8_t>(code);
      result.sparse.values[i] = input.weight[at] - own[code];
    }
  }
  return result;
}

QuantizedWeight codebook_sample(const LinearSettings& settings, int64_t out_features, int64_t in_features,
                                std::vector<int32_t> outlier_columns) {
  QuantizedWeight sample = {.out_features = out_features,
                            .in_features = in_features,
                            .weight_bits = static_cast<int>(settings.weight_bits),
                            .activation_bits = static_cast<int>(settings.activation_bits),
                            .group_size = settings.group_size,
                            .outlier_columns = std::move(outlier_columns)};
  sample.codes.assign(static_cast<size_t>(out_features * in_features), 0);
  sample.codebooks.assign(static_cast<size_t>(out_features << settings.weight_bits), 0.0f);
  const double share =
      std::min(1.0, (settings.sparse_sensitive_percent + settings.sparse_outlier_percent) / 100);
  const auto wanted = static_cast<int64_t>(static_cast<double>(out_features * in_features) * share);
  if (wanted == 0) return sample;
  sample.sparse.row_offsets.push_back(0);
  for (int64_t row = 0; row < out_features; ++row) {
    const int64_t count = wanted * (row + 1) / out_features - wanted * row / out_features;
    for (int64_t i = 0; i < count; ++i)
      sample.sparse.columns.push_back(static_cast<int32_t>(i * in_features / count));
    sample.sparse.row_offsets.push_back(static_cast<int64_t>(sample.sparse.columns.size()));
  }
  sample.sparse.values.assign(sample.sparse.columns.size(), 0.0f);
  return sample;
}

}  // namespace nibble
