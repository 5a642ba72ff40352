// The backward pass through a model's sub-layers: from the gradient of the loss by a sub-layer's output to
// that by its input, and on the way, for each linear group, its input and the gradient by its outputs.
// Sequences are whole and start at position 0. Everything is F32, in the float weights of the source.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "base/scratch.h"
#include "base/thread_pool.h"
#include "models/model.h"

namespace nibble {

// Whole sequences of one length, one behind the other.
struct SequenceBatch {
  int64_t sequences = 0;
  int64_t length = 0;

  int64_t tokens() const { return sequences * length; }
};

// Sees, for each linear group, its input x [tokens, in_features] and the gradient of the loss by its outputs,
// dy [tokens, out_features()]. The gradient by member W of the group is the sum over tokens of dy_t x_t^T.
using GradientTap = std::function<void(const LinearGroup& group, const float* x, const float* dy)>;

class SubLayerBackward {
 public:
  virtual ~SubLayerBackward() = default;

  // Runs the sub-layer over `input` [tokens, hidden], which must stay as it is until backward() returns, and
  // keeps what backward() needs. `output` [tokens, hidden] gets input + f(norm(input)); nullptr where nobody
  // asks for it, which saves the last linear.
  virtual void recompute(const float* input, const SequenceBatch& batch, float* output, Scratch& scratch,
                         ThreadPool& pool) = 0;
  // In place, for the batch of the last recompute(): gradient [tokens, hidden] by the output becomes the one
  // by the input.
  virtual void backward(float* gradient, const GradientTap& tap, ThreadPool& pool) = 0;
};

// `model` and `sublayer` must outlive the result. Weights that are not F32 are held once more as F32.
std::unique_ptr<SubLayerBackward> make_backward(const Model& model, const SubLayer& sublayer,
                                                ThreadPool& pool);

// The two kinds, behind make_backward().
std::unique_ptr<SubLayerBackward> make_attention_backward(const Model& model, const AttentionParts& parts,
                                                          ThreadPool& pool);
std::unique_ptr<SubLayerBackward> make_mlp_backward(const Model& model, const MlpParts& parts,
                                                    ThreadPool& pool);

// gradient[t] += J(x[t])^T dy[t] for y = norm(x), rows of `size` floats.
void add_norm_backward(const ModelSpec& spec, const NormWeights& norm, const float* x, const float* dy,
                       int64_t tokens, int64_t size, float* gradient, ThreadPool& pool);
// The same for one row of an RMS norm, writing: dx = J(x)^T dy. dx may be dy.
void rms_norm_backward(const float* x, const float* weight, const float* dy, int64_t size, double epsilon,
                       float* dx);

// Mean cross-entropy of predicting ids[t + 1] from hidden[t], t in [0, ids - 1), through the final norm and
// the head; the states come from the last block. hidden [ids, hidden_size] becomes the gradient by them (0 in
// the last row). Needs two ids. The loss may be NaN or infinite where the model is broken; the caller looks.
double loss_gradient(const Model& model, std::span<const int32_t> ids, float* hidden, Scratch& scratch,
                     ThreadPool& pool);
// Bytes that loss_gradient() takes for the logits of a part of a sequence, and their copies.
double loss_gradient_bytes(const ModelSpec& spec);

}  // namespace nibble
