#include <algorithm>

#include "calibration/blas.h"
#include "quantizers/quantizer.h"

namespace nibble {
namespace {

constexpr int64_t kTile = 256;

// tr(D H D^T) of d [rows, k] with H symmetric: the product below the diagonal counts twice. `product` [rows,
// kTile].
double quadratic_form(const float* d, int64_t rows, const float* hessian, int64_t k, float* product) {
  double total = 0;
  for (int64_t first = 0; first < k; first += kTile) {
    const int64_t width = std::min(kTile, k - first), rest = first + width;
    const auto add = [&](int64_t from, int64_t to, double weight) {
      if (from >= to) return;
      gemm<float>(false, false, rows, width, to - from, 1.0f, d + from, k, hessian + from * k + first, k,
                  0.0f, product, width);
      double sum = 0;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = 0; j < width; ++j) {
          sum += static_cast<double>(product[row * width + j]) * static_cast<double>(d[row * k + first + j]);
        }
      }
      total += weight * sum;
    };
    add(first, rest, 1.0);
    add(rest, k, 2.0);
  }
  return total;
}

}  // namespace

QuantizationError quantization_error(const QuantizerInput& input, const float* dequantized,
                                     ThreadPool& pool) {
  struct Sums {
    double weight = 0, weight_error = 0, output = 0, output_error = 0;
  };
  const int64_t n = input.out_features, k = input.in_features;
  const bool with_output = input.statistics != nullptr && input.statistics->hessian.defined();
  const float* hessian = with_output ? input.statistics->hessian.data<float>() : nullptr;
  const int64_t rows_per_task = std::clamp<int64_t>(n / 8, 16, kTile);
  std::vector<Sums> parts(static_cast<size_t>((n + rows_per_task - 1) / rows_per_task));
  pool.parallel_for(static_cast<int64_t>(parts.size()), [&](int64_t task, int) {
    const int64_t first = task * rows_per_task, rows = std::min(rows_per_task, n - first);
    const float* weight = input.weight + first * k;
    std::vector<float> difference(static_cast<size_t>(rows * k));
    Sums& sums = parts[task];
    for (int64_t i = 0; i < rows * k; ++i) {
      difference[i] = weight[i] - dequantized[first * k + i];
      sums.weight += static_cast<double>(weight[i]) * static_cast<double>(weight[i]);
      sums.weight_error += static_cast<double>(difference[i]) * static_cast<double>(difference[i]);
    }
    if (!with_output) return;
    std::vector<float> product(static_cast<size_t>(rows * std::min(kTile, k)));
    sums.output = quadratic_form(weight, rows, hessian, k, product.data());
    sums.output_error = quadratic_form(difference.data(), rows, hessian, k, product.data());
  });
  Sums total;
  for (const Sums& part : parts) {
    total.weight += part.weight;
    total.weight_error += part.weight_error;
    total.output += part.output;
    total.output_error += part.output_error;
  }
  QuantizationError error;
  if (total.weight > 0) error.weight_relative = total.weight_error / total.weight;
  if (total.output > 0) error.output_relative = std::max(0.0, total.output_error / total.output);
  return error;
}

}  // namespace nibble
