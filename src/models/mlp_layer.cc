#include <algorithm>
#include <array>

#include "base/error.h"
#include "kernels/float_kernels.h"
#include "models/layers.h"

namespace nibble {
namespace {

class MlpLayer final : public SubLayer {
 public:
  MlpLayer(const ModelSpec& spec, MlpParts parts)
      : spec_(spec), parts_(std::move(parts)), groups_{parts_.gate_up.get(), parts_.down.get()} {
    NIBBLE_CHECK(spec.gated_mlp && spec.activation == ActivationKind::kSilu);
  }

  std::span<LinearGroup* const> groups() override { return groups_; }
  const MlpParts* mlp_parts() const override { return &parts_; }

  void prepare(ThreadPool& pool) override {
    for (LinearGroup* group : groups_) group->prepare(pool);
  }

  NormWeights* norm_before(const LinearGroup& group) override {
    return &group == parts_.gate_up.get() ? &parts_.norm : nullptr;
  }

  // silu(gate) * up is linear in up.
  ChannelSource linear_before(const LinearGroup& group) override {
    if (&group != parts_.down.get() || parts_.down_hadamard) return {};  // rotated in between
    ChannelSource source = {.group = parts_.gate_up.get()};
    while (source.group->slots()[source.slot].role != LinearRole::kUp) ++source.slot;
    for (int64_t channel = 0; channel < spec_.intermediate_size; ++channel) source.rows.push_back(channel);
    return source;
  }

  bool forward(float* residual, const RunContext& context, const InputTap* tap) const override {
    Scratch& scratch = *context.scratch;
    const Scratch::Frame frame(scratch);
    const int64_t tokens = context.tokens, hidden = spec_.hidden_size, width = spec_.intermediate_size;
    float* x = scratch.take<float>(static_cast<size_t>(tokens * hidden));
    apply_norm(spec_, parts_.norm, residual, tokens, hidden, x, *context.pool);
    if (tap != nullptr && !(*tap)(*parts_.gate_up, x, tokens)) return false;

    float* gate_up = scratch.take<float>(static_cast<size_t>(tokens * 2 * width));
    parts_.gate_up->forward(x, tokens, gate_up, scratch, *context.pool);
    float* activated = scratch.take<float>(static_cast<size_t>(tokens * width));
    activate(gate_up, tokens, activated, *context.pool);
    if (parts_.down_hadamard) parts_.down_hadamard->apply_rows(activated, tokens, scratch, *context.pool);
    if (tap != nullptr && !(*tap)(*parts_.down, activated, tokens)) return false;

    parts_.down->forward(activated, tokens, x, scratch, *context.pool);
    add_to_residual(x, tokens * hidden, residual, *context.pool);
    return true;
  }

 private:
  void activate(const float* gate_up, int64_t tokens, float* out, ThreadPool& pool) const {
    // Cut by rows and columns, so that a single token of a wide model spreads over threads too.
    constexpr int64_t kPiece = 8192;
    const FloatKernels& kernels = float_kernels();
    const int64_t width = spec_.intermediate_size;
    const int64_t pieces = (width + kPiece - 1) / kPiece;
    const int64_t rows = std::max<int64_t>(1, kPiece / width);
    const int64_t row_tasks = (tokens + rows - 1) / rows;
    pool.parallel_for(row_tasks * pieces, [&](int64_t task, int) {
      const int64_t first = task % pieces * kPiece, count = std::min(kPiece, width - first);
      const int64_t last_row = std::min(tokens, (task / pieces + 1) * rows);
      for (int64_t t = task / pieces * rows; t < last_row; ++t) {
        const float* gate = gate_up + t * 2 * width + first;
        kernels.silu_mul(gate, gate + width, count, out + t * width + first);
      }
    });
  }

  ModelSpec spec_;
  MlpParts parts_;
  std::array<LinearGroup*, 2> groups_;
};

}  // namespace

std::unique_ptr<SubLayer> make_mlp_layer(const ModelSpec& spec, MlpParts parts) {
  return std::make_unique<MlpLayer>(spec, std::move(parts));
}

}  // namespace nibble
