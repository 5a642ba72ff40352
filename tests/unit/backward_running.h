// The backward pass of a whole model in a test, its weight gradients summed by plain loops.
#pragma once

#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gradients/backward.h"
#include "model_running.h"

namespace nibble::testing {

using Matrix = std::vector<double>;  // [n, k]

inline std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocabulary));
  return ids;
}

// The gradient of the mean loss of each sequence by each linear's weight: products summed by plain loops in
// double from what the tap shows.
struct BackwardRun {
  std::vector<double> losses;
  std::vector<std::map<std::string, Matrix>> gradients;  // per sequence
};

inline BackwardRun run_backward(const Model& model, ThreadPool& pool, std::span<const int32_t> ids,
                                const SequenceBatch& batch) {
  const int64_t hidden = model.spec().hidden_size, tokens = batch.tokens();
  Scratch scratch;
  std::vector<std::unique_ptr<SubLayerBackward>> passes;
  std::vector<std::vector<float>> states(1);
  states[0].resize(static_cast<size_t>(tokens * hidden));
  model.embed(ids, states[0].data());
  for (const Block& block : model.blocks()) {
    for (const auto& sublayer : block.sublayers) {
      passes.push_back(make_backward(model, *sublayer, pool));
      states.emplace_back(states.back().size());
      passes.back()->recompute(states[states.size() - 2].data(), batch, states.back().data(), scratch, pool);
    }
  }
  BackwardRun run;
  run.gradients.resize(static_cast<size_t>(batch.sequences));
  std::vector<float> gradient = states.back();
  for (int64_t s = 0; s < batch.sequences; ++s) {
    run.losses.push_back(loss_gradient(
        model, ids.subspan(static_cast<size_t>(s * batch.length), static_cast<size_t>(batch.length)),
        gradient.data() + s * batch.length * hidden, scratch, pool));
  }
  const GradientTap tap = [&](const LinearGroup& group, const float* x, const float* dy) {
    int64_t column = 0;
    for (const LinearSlot& slot : group.slots()) {
      for (int64_t s = 0; s < batch.sequences; ++s) {
        Matrix& sum = run.gradients[static_cast<size_t>(s)][slot.name];
        sum.assign(static_cast<size_t>(slot.out_features * group.in_features()), 0);
        for (int64_t t = s * batch.length; t < (s + 1) * batch.length; ++t) {
          for (int64_t i = 0; i < slot.out_features; ++i) {
            const double by_output = dy[t * group.out_features() + column + i];
            for (int64_t j = 0; j < group.in_features(); ++j) {
              sum[static_cast<size_t>(i * group.in_features() + j)] +=
                  by_output * x[t * group.in_features() + j];
            }
          }
        }
      }
      column += slot.out_features;
    }
  };
  for (size_t i = passes.size(); i-- > 0;) passes[i]->backward(gradient.data(), tap, pool);
  return run;
}

}  // namespace nibble::testing
