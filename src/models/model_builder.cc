#include "models/model_builder.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "formats/dense/dense.h"
#include "formats/packed_checkpoint.h"
#include "io/printable.h"
#include "kernels/float_kernels.h"

namespace nibble {
namespace {

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

// The file and tensor, as messages name them.
std::string place_of(const CheckpointTensor& tensor) {
  return tensor.file.string() + ": tensor '" + printable(tensor.name) + "'";
}

void require_finite(const Tensor& tensor, const std::string& name, const Checkpoint& checkpoint) {
  const WeightType type = tensor.dtype() == DType::kF16    ? WeightType::kF16
                          : tensor.dtype() == DType::kBF16 ? WeightType::kBF16
                                                           : WeightType::kF32;
  if (float_kernels().all_finite(type, tensor.raw(), tensor.elements())) return;
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  copy_to_float(tensor, 0, tensor.elements(), values.data());
  const auto bad =
      std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  fail("{}: tensor '{}' has {} at element {}, expected finite weights", checkpoint.path().string(), name,
       std::isnan(*bad) ? "NaN" : "infinity", bad - values.begin());
}

}  // namespace

void ModelBuilder::require_shape(const CheckpointTensor& tensor, const Shape& shape,
                                 const std::string& keys) {
  if (tensor.shape == shape) return;
  fail("{} has shape {}, but the config says {} ({})", place_of(tensor), to_string(tensor.shape),
       to_string(shape), keys);
}

std::shared_ptr<const PackedLinear> ModelBuilder::load_linear(const std::string& name, int64_t n, int64_t k,
                                                              bool bias, const std::string& n_key,
                                                              const std::string& k_key) {
  const CheckpointTensor* weight = checkpoint.find(name + ".weight");
  const CheckpointTensor* found_bias = checkpoint.find(name + ".bias");
  // The tensors of a quantized linear have shapes of their format's own, checked by the format.
  if (checkpoint.kind() != CheckpointKind::kNibble && weight != nullptr) {
    require_shape(*weight, {n, k}, n_key + ", " + k_key);
  }
  if (found_bias != nullptr) require_shape(*found_bias, {n}, n_key);
  if (bias && found_bias == nullptr) {
    fail("{}: tensor '{}.bias' is missing, though the config asks for a bias", checkpoint.path().string(),
         name);
  }
  if (!bias && found_bias != nullptr) {
    fail("{}: tensor '{}.bias' is there, but the config says that this linear has no bias",
         checkpoint.path().string(), name);
  }
  auto linear = std::make_shared<PackedLinear>(load_packed_linear(checkpoint, name, n, k));
  if (const Tensor* values = linear->find("bias")) require_finite(*values, name + ".bias", checkpoint);
  if (check_finite && linear->format == &kDenseFormat) {
    require_finite(linear->tensors.at("weight"), name + ".weight", checkpoint);
  }
  return linear;
}

NormWeights ModelBuilder::load_norm(const ModelSpec& spec, const std::string& name, int64_t size,
                                    const std::string& key) {
  NormWeights norm;
  norm.name = name;
  const CheckpointTensor& weight = checkpoint.require(name + ".weight");
  require_shape(weight, {size}, key);
  norm.weight = weight.read_f32();
  require_finite(norm.weight, name + ".weight", checkpoint);
  if (spec.norm == NormKind::kLayer) {
    const CheckpointTensor& bias = checkpoint.require(name + ".bias");
    require_shape(bias, {size}, key);
    norm.bias = bias.read_f32();
    require_finite(norm.bias, name + ".bias", checkpoint);
  }
  return norm;
}

ModelSpec ModelBuilder::read_spec() {
  if (checkpoint.kind() == CheckpointKind::kNibble) check_nibble_config(checkpoint);
  ModelSpec spec = read_model_spec(checkpoint);
  // GGUF, and what was made from it, has one flag for the biases of attention; whether the output has one
  // shows in the tensors only.
  if (checkpoint.kind() != CheckpointKind::kHuggingFace) {
    spec.attention_output_bias = checkpoint.find("model.layers.0.self_attn.o_proj.bias") != nullptr;
  }
  const std::string beyond = layer_prefix(spec.layers);
  const auto extra = checkpoint.tensors().lower_bound(beyond);
  if (extra != checkpoint.tensors().end() && extra->first.compare(0, beyond.size(), beyond) == 0) {
    fail("{}: tensor '{}' belongs to layer {}, but the config has 'num_hidden_layers' {}",
         extra->second.file.string(), printable(extra->first), spec.layers, spec.layers);
  }
  // Both ends of the stack, so that an absurd number of layers is refused before anything is built.
  checkpoint.require(layer_prefix(0) + "input_layernorm.weight");
  if (checkpoint.find(layer_prefix(spec.layers - 1) + "input_layernorm.weight") == nullptr) {
    fail("{}: tensor '{}input_layernorm.weight' is missing: the config has 'num_hidden_layers' {}",
         checkpoint.path().string(), layer_prefix(spec.layers - 1), spec.layers);
  }
  return spec;
}

std::shared_ptr<const RopeTable> ModelBuilder::build_rope(const ModelSpec& spec) {
  std::vector<float> factors;
  const Json& config = checkpoint.config();
  if (json_bool(config, "nibble_rope_factors", false, checkpoint.path().string())) {
    const CheckpointTensor& tensor = checkpoint.require("rope_freqs.weight");
    const int64_t rotary = spec.rope.rotary_dim == 0 ? spec.head_dim : spec.rope.rotary_dim;
    require_shape(tensor, {rotary / 2}, "half of the head size");
    const Tensor values = tensor.read_f32();
    factors.assign(values.values<float>().begin(), values.values<float>().end());
    for (const float factor : factors) {
      if (!(factor > 0) || !std::isfinite(factor)) {
        fail("{} has the value {}, expected positive numbers", place_of(tensor), factor);
      }
    }
  }
  return std::make_shared<RopeTable>(rope_frequencies(spec.rope, spec.head_dim, factors),
                                     spec.context_length);
}

std::unique_ptr<Model> ModelBuilder::build_shell(const BuildOptions& options) {
  auto model = std::make_unique<Model>();
  model->checkpoint_ = &checkpoint;
  model->source_ = checkpoint.path().string();
  ModelSpec& spec = model->spec_;
  spec = read_spec();
  if (options.context_length > 0) spec.context_length = options.context_length;
  model->rope_ = build_rope(spec);
  model->embedding_ = load_linear("model.embed_tokens", spec.vocabulary, spec.hidden_size, false,
                                  "vocab_size", "hidden_size");
  model->final_norm_ = load_norm(spec, "model.norm", spec.hidden_size, "hidden_size");
  model->head_ = std::make_unique<LinearGroup>("lm_head.input", spec.hidden_size);
  model->head_->slots().push_back({.name = "lm_head",
                                   .role = LinearRole::kHead,
                                   .out_features = spec.vocabulary,
                                   .packed = spec.tied_embeddings
                                                 ? model->embedding_
                                                 : load_linear("lm_head", spec.vocabulary, spec.hidden_size,
                                                               false, "vocab_size", "hidden_size")});
  if (prepare) model->head_->prepare(pool);
  return model;
}

Block ModelBuilder::build_block(const ModelSpec& spec, const std::shared_ptr<const RopeTable>& rope,
                                int64_t layer) {
  const std::string prefix = layer_prefix(layer), attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const std::string q_key = "num_attention_heads * head_dim", kv_key = "num_key_value_heads * head_dim";
  const auto add = [&](LinearGroup& group, const std::string& name, LinearRole role, int64_t n, bool bias,
                       const std::string& n_key, const std::string& k_key) {
    group.slots().push_back({.name = name,
                             .role = role,
                             .out_features = n,
                             .packed = load_linear(name, n, group.in_features(), bias, n_key, k_key)});
  };

  std::shared_ptr<const Hadamard> hidden_hadamard;
  if (spec.hidden_hadamard) hidden_hadamard = std::make_shared<Hadamard>(*spec.hidden_hadamard);
  AttentionParts a;
  a.layer = layer;
  a.norm = load_norm(spec, prefix + "input_layernorm", spec.hidden_size, "hidden_size");
  a.norm.hadamard = hidden_hadamard;
  if (spec.query_key_norm) {
    a.query_norm = load_norm(spec, attention + "q_norm", spec.head_dim, "head_dim");
    a.key_norm = load_norm(spec, attention + "k_norm", spec.head_dim, "head_dim");
  }
  a.query_key_value = std::make_unique<LinearGroup>(attention + "input", spec.hidden_size);
  const bool bias = spec.query_key_value_bias;
  add(*a.query_key_value, attention + "q_proj", LinearRole::kQuery, spec.query_size(), bias, q_key,
      "hidden_size");
  add(*a.query_key_value, attention + "k_proj", LinearRole::kKey, spec.kv_size(), bias, kv_key,
      "hidden_size");
  add(*a.query_key_value, attention + "v_proj", LinearRole::kValue, spec.kv_size(), bias, kv_key,
      "hidden_size");
  a.output = std::make_unique<LinearGroup>(attention + "o_proj.input", spec.query_size());
  add(*a.output, attention + "o_proj", LinearRole::kAttentionOutput, spec.hidden_size,
      spec.attention_output_bias, "hidden_size", q_key);

  MlpParts m;
  m.norm = load_norm(spec, prefix + "post_attention_layernorm", spec.hidden_size, "hidden_size");
  m.norm.hadamard = hidden_hadamard;
  m.gate_up = std::make_unique<LinearGroup>(mlp + "input", spec.hidden_size);
  add(*m.gate_up, mlp + "gate_proj", LinearRole::kGate, spec.intermediate_size, spec.mlp_bias,
      "intermediate_size", "hidden_size");
  add(*m.gate_up, mlp + "up_proj", LinearRole::kUp, spec.intermediate_size, spec.mlp_bias,
      "intermediate_size", "hidden_size");
  if (spec.down_hadamard) m.down_hadamard = std::make_shared<Hadamard>(*spec.down_hadamard);
  m.down = std::make_unique<LinearGroup>(mlp + "down_proj.input", spec.intermediate_size);
  add(*m.down, mlp + "down_proj", LinearRole::kDown, spec.hidden_size, spec.mlp_bias, "hidden_size",
      "intermediate_size");

  Block block;
  block.sublayers.push_back(make_attention_layer(spec, std::move(a), rope));
  block.sublayers.push_back(make_mlp_layer(spec, std::move(m)));
  if (prepare) {
    for (const std::unique_ptr<SubLayer>& sublayer : block.sublayers) sublayer->prepare(pool);
  }
  return block;
}

void ModelBuilder::build_blocks(Model& model) {
  model.blocks_.resize(static_cast<size_t>(model.spec_.layers));
  pool.parallel_for(model.spec_.layers, [&](int64_t layer, int) {
    model.blocks_[static_cast<size_t>(layer)] = build_block(model.spec_, model.rope_, layer);
  });
}

}  // namespace nibble
