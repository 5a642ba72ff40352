#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "gradients/backward.h"
#include "gradients/group_weights.h"
#include "kernels/float_kernels.h"
#include "models/layers.h"

namespace nibble {
namespace {

// Logits held at once, in floats, and rows of a 16-bit head converted at once.
constexpr int64_t kLogits = int64_t{1} << 25;
constexpr int64_t kHeadRows = 8192;

int64_t rows_at_once(const ModelSpec& spec) {
  return std::clamp<int64_t>(kLogits / std::max<int64_t>(1, spec.vocabulary), 64, 1024);
}

// One row: logits become `factor` times the gradient of -log softmax(logits)[target], which is returned.
double cross_entropy_row(float* logits, int64_t vocabulary, int32_t target, float factor) {
  const FloatKernels& kernels = float_kernels();
  const float* top = std::max_element(logits, logits + vocabulary);
  const double largest = *top, wanted = logits[target];
  kernels.softmax(logits, vocabulary);
  // The largest probability is at least 1 / vocabulary, so that its logarithm is exact where others
  // underflow.
  const double loss = largest - std::log(static_cast<double>(*top)) - wanted;
  logits[target] -= 1.0f;
  for (int64_t i = 0; i < vocabulary; ++i) logits[i] *= factor;
  return loss;
}

}  // namespace

double loss_gradient_bytes(const ModelSpec& spec) {
  // The logits and the packed copy of them that a product makes; the part of the head.
  const auto vocabulary = static_cast<double>(spec.vocabulary);
  return 2 * 4.0 * static_cast<double>(rows_at_once(spec)) * vocabulary +
         4.0 * std::min(vocabulary, static_cast<double>(kHeadRows)) * static_cast<double>(spec.hidden_size);
}

double loss_gradient(const Model& model, std::span<const int32_t> ids, float* hidden, Scratch& scratch,
                     ThreadPool& pool) {
  const ModelSpec& spec = model.spec();
  const int64_t size = spec.hidden_size, vocabulary = spec.vocabulary;
  const int64_t scored = static_cast<int64_t>(ids.size()) - 1;
  NIBBLE_CHECK(scored >= 1 && model.head().slots().size() == 1);
  const PackedLinear& head = *model.head().slots().front().packed;
  const auto factor = static_cast<float>(1.0 / static_cast<double>(scored));

  const Scratch::Frame frame(scratch);
  const int64_t step = std::min(scored, rows_at_once(spec));
  float* x = scratch.take<float>(static_cast<size_t>(step * size));
  float* by_x = scratch.take<float>(static_cast<size_t>(step * size));
  float* gradient = scratch.take<float>(static_cast<size_t>(step * size));
  float* logits = scratch.take<float>(static_cast<size_t>(step * vocabulary));
  Tensor converted;
  double total = 0;
  for (int64_t first = 0; first < scored; first += step) {
    const int64_t rows = std::min(step, scored - first);
    float* states = hidden + first * size;
    apply_norm(spec, model.final_norm(), states, rows, size, x, pool);
    model.head().forward(x, rows, logits, scratch, pool);
    std::vector<double> losses(static_cast<size_t>(rows));
    pool.parallel_for(rows, [&](int64_t row, int) {
      losses[static_cast<size_t>(row)] = cross_entropy_row(logits + row * vocabulary, vocabulary,
                                                           ids[static_cast<size_t>(first + row + 1)], factor);
    });
    for (const double loss : losses) total += loss;

    for (int64_t part = 0; part < vocabulary; part += kHeadRows) {
      const int64_t count = std::min(kHeadRows, vocabulary - part);
      const float* weight = float_rows(head, part, count, &converted, pool);
      multiply(logits + part, vocabulary, weight, size, rows, size, count, part > 0, by_x, size, pool);
    }
    std::fill(gradient, gradient + rows * size, 0.0f);
    add_norm_backward(spec, model.final_norm(), states, by_x, rows, size, gradient, pool);
    std::copy_n(gradient, rows * size, states);
  }
  std::fill(hidden + scored * size, hidden + (scored + 1) * size, 0.0f);
  return total / static_cast<double>(scored);
}

}  // namespace nibble
