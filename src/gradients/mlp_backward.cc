#include <algorithm>
#include <vector>

#include "base/error.h"
#include "gradients/backward.h"
#include "gradients/group_weights.h"
#include "gradients/lanes.h"
#include "kernels/float_kernels.h"
#include "models/layers.h"

namespace nibble {
namespace {

class MlpBackward final : public SubLayerBackward {
 public:
  MlpBackward(const Model& model, const MlpParts& parts, ThreadPool& pool)
      : spec_(model.spec()), parts_(parts), gate_up_(*parts.gate_up, pool), down_(*parts.down, pool) {
    NIBBLE_CHECK(spec_.gated_mlp && spec_.activation == ActivationKind::kSilu);
  }

  void recompute(const float* input, const SequenceBatch& batch, float* output, Scratch& scratch,
                 ThreadPool& pool) override {
    input_ = input;
    tokens_ = batch.tokens();
    const int64_t hidden = spec_.hidden_size, width = spec_.intermediate_size;
    normed_.resize(static_cast<size_t>(tokens_ * hidden));
    products_.resize(static_cast<size_t>(tokens_ * 2 * width));
    activated_.resize(static_cast<size_t>(tokens_ * width));
    apply_norm(spec_, parts_.norm, input, tokens_, hidden, normed_.data(), pool);
    parts_.gate_up->forward(normed_.data(), tokens_, products_.data(), scratch, pool);
    pool.parallel_for(tokens_, [&](int64_t t, int) {
      const float* gate = products_.data() + t * 2 * width;
      float_kernels().silu_mul(gate, gate + width, width, activated_.data() + t * width);
    });
    if (parts_.down_hadamard) parts_.down_hadamard->apply_rows(activated_.data(), tokens_, scratch, pool);
    if (output == nullptr) return;
    parts_.down->forward(activated_.data(), tokens_, output, scratch, pool);
    add_to_residual(input, tokens_ * hidden, output, pool);
  }

  void backward(float* gradient, const GradientTap& tap, ThreadPool& pool) override {
    const int64_t hidden = spec_.hidden_size, width = spec_.intermediate_size;
    tap(*parts_.down, activated_.data(), gradient);
    by_activated_.resize(static_cast<size_t>(tokens_ * width));
    down_.gradient_by_input(gradient, tokens_, by_activated_.data(), pool);
    if (parts_.down_hadamard) {
      parts_.down_hadamard->apply_rows(by_activated_.data(), tokens_, scratch_, pool, /*inverse=*/true);
    }
    pool.parallel_for(tokens_, [&](int64_t t, int) {
      activation_backward(by_activated_.data() + t * width, width, products_.data() + t * 2 * width);
    });
    tap(*parts_.gate_up, normed_.data(), products_.data());
    by_normed_.resize(static_cast<size_t>(tokens_ * hidden));
    gate_up_.gradient_by_input(products_.data(), tokens_, by_normed_.data(), pool);
    add_norm_backward(spec_, parts_.norm, input_, by_normed_.data(), tokens_, hidden, gradient, pool);
  }

 private:
  // gate_up [2 * width], the products gate and up of one token, becomes the gradient by them. With s =
  // sigmoid(gate): d silu = s (1 + gate (1 - s)).
  static void activation_backward(const float* by_activated, int64_t width, float* gate_up) {
    constexpr int64_t kPiece = 256;
    float exponentials[kPiece];
    for (int64_t first = 0; first < width; first += kPiece) {
      const int64_t count = std::min(kPiece, width - first);
      float* gate = gate_up + first;
      float* up = gate + width;
      const float* dy = by_activated + first;
      lane_loop(count, [&](int64_t i) { exponentials[i] = -gate[i]; });
      float_kernels().exp(exponentials, count, exponentials);
      lane_loop(count, [&](int64_t i) {
        const float s = 1.0f / (1.0f + exponentials[i]);
        const float g = gate[i], u = up[i];
        gate[i] = dy[i] * u * s * (1.0f + g * (1.0f - s));
        up[i] = dy[i] * g * s;
      });
    }
  }

  const ModelSpec& spec_;
  const MlpParts& parts_;
  GroupWeights gate_up_, down_;
  const float* input_ = nullptr;
  int64_t tokens_ = 0;
  // [tokens, hidden], [tokens, 2 width], [tokens, width]; the products become the gradients by them.
  std::vector<float> normed_, products_, activated_;
  std::vector<float> by_activated_, by_normed_;
  Scratch scratch_;
};

}  // namespace

std::unique_ptr<SubLayerBackward> make_mlp_backward(const Model& model, const MlpParts& parts,
                                                    ThreadPool& pool) {
  return std::make_unique<MlpBackward>(model, parts, pool);
}

std::unique_ptr<SubLayerBackward> make_backward(const Model& model, const SubLayer& sublayer,
                                                ThreadPool& pool) {
  if (const AttentionParts* parts = sublayer.attention_parts())
    return make_attention_backward(model, *parts, pool);
  const MlpParts* parts = sublayer.mlp_parts();
  NIBBLE_CHECK(parts != nullptr);
  return make_mlp_backward(model, *parts, pool);
}

}  // namespace nibble
