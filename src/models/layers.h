// The two sub-layers there are, and what builds them: for the model builder and for the backward pass.
#pragma once

#include <memory>

#include "kernels/attention.h"
#include "models/model.h"
#include "models/rope.h"

namespace nibble {

// out[t] = norm of x[t] for t in [0, tokens), rows of `size` floats. out may be x.
void apply_norm(const ModelSpec& spec, const NormWeights& norm, const float* x, int64_t tokens, int64_t size,
                float* out, ThreadPool& pool);
// y += x, count floats.
void add_to_residual(const float* x, int64_t count, float* y, ThreadPool& pool);

struct AttentionParts {
  int64_t layer = 0;
  NormWeights norm;
  NormWeights query_norm, key_norm;  // per head, undefined unless spec.query_key_norm
  std::unique_ptr<LinearGroup> query_key_value, output;
};
// Heads, window and scale of layer `layer`; queries are read from rows of q, k and v side by side.
AttentionShape attention_shape(const ModelSpec& spec, int64_t layer);
std::unique_ptr<SubLayer> make_attention_layer(const ModelSpec& spec, AttentionParts parts,
                                               std::shared_ptr<const RopeTable> rope);

struct MlpParts {
  NormWeights norm;
  std::unique_ptr<LinearGroup> gate_up, down;
  std::shared_ptr<const Hadamard> down_hadamard;  // of the input of `down`; null: none
};
std::unique_ptr<SubLayer> make_mlp_layer(const ModelSpec& spec, MlpParts parts);

}  // namespace nibble
