// One model definition for reference inference, calibration and quantized inference. A model is an embedding,
// blocks made of sub-layers, a final norm and a head. A sub-layer is "normalise, first linears, core, last
// linear, add to the residual": attention and MLP are the two there are.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/scratch.h"
#include "base/thread_pool.h"
#include "models/kv_cache.h"
#include "models/linear_group.h"
#include "models/model_spec.h"

namespace nibble {

// Consecutive tokens of one sequence within a batch.
struct SequenceSpan {
  SequenceCache* cache = nullptr;
  int64_t first_row = 0;  // of the batch
  int64_t count = 0;
  int64_t first_position = 0;  // of the sequence
};

struct RunContext {
  std::span<const SequenceSpan> sequences;
  int64_t tokens = 0;  // of all sequences together
  Scratch* scratch = nullptr;
  ThreadPool* pool = nullptr;
};

// Sees the input x [tokens, in_features] of each linear group before it is multiplied. Returning false stops
// the sub-layer there (its residual is left unchanged): calibration needs no more than what it came for.
using InputTap = std::function<bool(const LinearGroup& group, const float* x, int64_t tokens)>;

struct AttentionParts;
struct MlpParts;
// What the linears behind a norm read: the norm, then the transform.
struct NormWeights {
  Tensor weight, bias;  // F32 [size]; the bias is undefined for an RMS norm
  std::string name;     // "model.layers.0.input_layernorm": of its tensors, without ".weight"
  std::shared_ptr<const Hadamard> hadamard;  // null: none
};

// A linear whose output channels become a group's input channels, up to factors that do not depend on them:
// dividing its row rows[c] by a factor divides input channel c by it.
struct ChannelSource {
  LinearGroup* group = nullptr;  // null: there is none
  size_t slot = 0;               // which of its linears
  std::vector<int64_t> rows;     // [in_features of the fed group]
};

class SubLayer {
 public:
  virtual ~SubLayer() = default;
  // What it is made of (models/layers.h), for code that walks it another way than forward() does: one of the
  // two.
  virtual const AttentionParts* attention_parts() const { return nullptr; }
  virtual const MlpParts* mlp_parts() const { return nullptr; }
  // In execution order; each one's input depends on the outputs of those before it and of earlier sub-layers
  // only.
  virtual std::span<LinearGroup* const> groups() = 0;
  // residual [tokens, hidden] += f(norm(residual)). Returns false when the tap stopped it.
  virtual bool forward(float* residual, const RunContext& context, const InputTap* tap) const = 0;
  virtual void prepare(ThreadPool& pool) = 0;

  // What stands in front of a group's input and could take up factors on its channels: the norm whose output
  // this input is and nothing else's, or null; or else a linear.
  virtual NormWeights* norm_before(const LinearGroup& group) = 0;
  virtual ChannelSource linear_before(const LinearGroup& group) = 0;
};

struct Block {
  std::vector<std::unique_ptr<SubLayer>> sublayers;
};

class RopeTable;

struct BuildOptions {
  int64_t context_length = 0;  // positions that can be used; 0: the model's own
  bool prepare = true;         // kernels; without, the model holds what the checkpoint has and cannot run
};

class Model {
 public:
  // Builds everything and prepares kernels: ready to run.
  static std::unique_ptr<Model> load(const Checkpoint& checkpoint, ThreadPool& pool,
                                     const BuildOptions& options = {});

  // Builds embedding, final norm and head only; blocks come one at a time from load_block(). For
  // quantization: throws Error naming the tensor where a float weight is NaN or infinite. The checkpoint must
  // outlive the model.
  static std::unique_ptr<Model> load_shell(const Checkpoint& checkpoint, ThreadPool& pool,
                                           const BuildOptions& options = {});
  // Block `layer` with the checkpoint's weights, prepared.
  Block load_block(int64_t layer, ThreadPool& pool) const;

  const ModelSpec& spec() const { return spec_; }
  std::vector<Block>& blocks() { return blocks_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  LinearGroup& head() { return *head_; }
  const LinearGroup& head() const { return *head_; }
  const NormWeights& final_norm() const { return final_norm_; }
  const RopeTable& rope() const { return *rope_; }
  // Embedding table [vocabulary, hidden] in any format that has dequantize_rows; the head's own when tied.
  const PackedLinear& embedding() const { return *embedding_; }

  // hidden [tokens, hidden_size] = embeddings of ids. Throws Error for an id outside the vocabulary.
  void embed(std::span<const int32_t> ids, float* hidden) const;
  // In place through all blocks.
  void run_blocks(float* hidden, const RunContext& context) const;
  // logits [rows, vocabulary] of the given rows of hidden (all `tokens` rows when `rows` is empty). Throws
  // Error, naming the tensor at fault where one is, when a logit is NaN or infinite.
  void logits(const float* hidden, std::span<const int64_t> rows, int64_t tokens, float* out,
              Scratch& scratch, ThreadPool& pool) const;

  // Every linear group with its quantizable linears, in execution order; the head is not among them.
  void for_each_group(const std::function<void(LinearGroup&)>& visit);
  size_t prepared_bytes() const;

  std::unique_ptr<SequenceCache> make_cache(int64_t capacity, CacheTypes types = CacheType::kF32) const;

 private:
  friend struct ModelBuilder;
  [[noreturn]] void fail_not_finite() const;

  ModelSpec spec_;
  std::string source_;                      // path of the checkpoint, for messages
  const Checkpoint* checkpoint_ = nullptr;  // of a shell
  std::shared_ptr<const PackedLinear> embedding_;
  std::vector<Block> blocks_;
  NormWeights final_norm_;
  std::unique_ptr<LinearGroup> head_;
  std::shared_ptr<const RopeTable> rope_;  // shared by all attention sub-layers
};

}  // namespace nibble
