// Turns a checkpoint's tensors into the parts of a model.
#pragma once

#include <memory>
#include <string>

#include "models/layers.h"
#include "models/model.h"

namespace nibble {

struct ModelBuilder {
  const Checkpoint& checkpoint;
  ThreadPool& pool;
  // Whether every weight is looked at for NaN and infinity: for quantization, which would spread them.
  bool check_finite = false;
  bool prepare = true;  // BuildOptions

  // Spec, embedding, final norm, head and rotary table; no blocks.
  std::unique_ptr<Model> build_shell(const BuildOptions& options);
  Block build_block(const ModelSpec& spec, const std::shared_ptr<const RopeTable>& rope, int64_t layer);
  void build_blocks(Model& model);

 private:
  ModelSpec read_spec();
  std::shared_ptr<const RopeTable> build_rope(const ModelSpec& spec);
  // The linear `name`; `n_key` and `k_key` say which settings of the config its shape comes from.
  std::shared_ptr<const PackedLinear> load_linear(const std::string& name, int64_t n, int64_t k, bool bias,
                                                  const std::string& n_key, const std::string& k_key);
  NormWeights load_norm(const ModelSpec& spec, const std::string& name, int64_t size, const std::string& key);
  void require_shape(const CheckpointTensor& tensor, const Shape& shape, const std::string& keys);
};

}  // namespace nibble
