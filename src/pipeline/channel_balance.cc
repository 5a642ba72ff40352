#include "pipeline/channel_balance.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "pipeline/residual_stream.h"

namespace nibble {
namespace {

// Root mean squares settle long before second moments do.
constexpr int64_t kTokens = 8192;

struct SquareSums {
  std::vector<double> sums;
  int64_t tokens = 0;

  void add(const float* x, int64_t count, int64_t channels, ThreadPool& pool) {
    sums.resize(static_cast<size_t>(channels));
    tokens += count;
    constexpr int64_t kPiece = 256;
    pool.parallel_for((channels + kPiece - 1) / kPiece, [&](int64_t task, int) {
      const int64_t last = std::min(channels, (task + 1) * kPiece);
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t i = task * kPiece; i < last; ++i) {
          const double value = x[t * channels + i];
          sums[static_cast<size_t>(i)] += value * value;
        }
      }
    });
  }
  std::vector<float> root_mean_squares() const {
    std::vector<float> sizes(sums.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      sizes[i] = static_cast<float>(std::sqrt(sums[i] / static_cast<double>(std::max<int64_t>(1, tokens))));
    }
    return sizes;
  }
};

}  // namespace

std::vector<ChannelSizes> measure_channels(const Checkpoint& checkpoint, const CalibrationData& data,
                                           ThreadPool& pool) {
  CalibrationData sample = data;
  sample.sequences = std::clamp<int64_t>(kTokens / data.length, 1, data.sequences);
  sample.ids.resize(static_cast<size_t>(sample.sequences * sample.length));
  const std::unique_ptr<Model> model = Model::load_shell(checkpoint, pool, {.context_length = data.length});
  ResidualStream stream(*model, sample);
  std::vector<ChannelSizes> sizes;
  const int64_t layers = model->spec().layers;
  Progress progress("measuring channels", static_cast<double>(layers));
  for (int64_t layer = 0; layer < layers; ++layer) {
    throw_if_interrupted();
    Block block = model->load_block(layer, pool);
    stream.next_block(*model);
    SquareSums attended, down;
    const InputTap tap = [&](const LinearGroup& group, const float* x, int64_t tokens) {
      const LinearRole role = group.slots().front().role;
      if (role == LinearRole::kAttentionOutput) attended.add(x, tokens, group.in_features(), pool);
      if (role == LinearRole::kDown) down.add(x, tokens, group.in_features(), pool);
      return true;
    };
    for (const auto& sublayer : block.sublayers) stream.run(*sublayer, &tap, pool);
    sizes.push_back({attended.root_mean_squares(), down.root_mean_squares()});
    progress.update(static_cast<double>(layer + 1));
  }
  progress.finish();
  return sizes;
}

}  // namespace nibble
