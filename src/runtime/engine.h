// A model ready to run: checkpoint, weights, tokenizer and threads; and one sequence being run through it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/scratch.h"
#include "base/thread_pool.h"
#include "io/checkpoint.h"
#include "models/model.h"
#include "runtime/device_model.h"
#include "tokenizers/tokenizer.h"

namespace nibble {

// Tokens of a prompt that run through the model together: enough to make every product compute-bound, small
// enough for the activations of wide models to stay in cache.
inline constexpr int64_t kPromptBatch = 512;

// Where a model runs.
struct EngineDevice {
  int gpu = -1;         // its number; -1: the CPU
  bool strict = false;  // refuse what runs on a slower path there
};

class Engine {
 public:
  // Throws Error for a path that is no model, a broken one, or one of an unknown architecture.
  // `context_length` 0 means the model's own. The position tables hold one position more: perplexity's
  // windows may fill the context with a BOS in front.
  // On a GPU the slower paths that linears take there are announced. Throws Error for a GPU that cannot be
  // used, has too little memory, or has no way of running the model.
  static std::unique_ptr<Engine> open(const std::filesystem::path& path, std::shared_ptr<ThreadPool> pool,
                                      int64_t context_length = 0, const EngineDevice& device = {});

  const Checkpoint& checkpoint() const { return checkpoint_; }
  // On a GPU it has no kernels: it only says what the model is.
  const Model& model() const { return *model_; }
  DeviceModel* device() const { return device_.get(); }  // null on the CPU
  // How keys and values are really kept when `wanted` is asked for: as that, on a GPU as device_cache_type()
  // says. Throws UsageError for types that it does not have.
  CacheTypes cache_types(CacheTypes wanted) const;
  const std::shared_ptr<ThreadPool>& pool() const { return pool_; }
  const std::filesystem::path& path() const { return checkpoint_.path(); }
  int64_t context_length() const { return context_length_; }
  int64_t vocabulary() const { return model_->spec().vocabulary; }
  double load_seconds() const { return load_seconds_; }

  // Opened on first use: a model can run on ids without one. Throws Error when the model has none.
  const Tokenizer& tokenizer() const;
  // The model's begin-of-text token: of its config, else of its tokenizer; -1 when it has none.
  int32_t bos_id() const;

 private:
  Engine(Checkpoint checkpoint, std::shared_ptr<ThreadPool> pool)
      : checkpoint_(std::move(checkpoint)), pool_(std::move(pool)) {}
  Checkpoint checkpoint_;
  std::shared_ptr<ThreadPool> pool_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<DeviceModel> device_;
  int64_t context_length_ = 0;
  double load_seconds_ = 0;
  mutable std::unique_ptr<Tokenizer> tokenizer_;
};

// One sequence and its keys and values. Ids are appended in batches of kPromptBatch.
class Session {
 public:
  // Room for `capacity` positions, kept as `types`; throws Error when the memory cannot be had or the
  // engine's context is shorter.
  Session(const Engine& engine, int64_t capacity, CacheTypes types);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  size_t cache_bytes() const { return sequence_ ? sequence_->bytes() : cache_->bytes(); }
  // Forgets all positions from `length` on.
  void truncate(int64_t length);

  // Appends ids and returns the logits [vocabulary] after the last one, valid until the next call. Throws
  // Error for ids outside the vocabulary, for none, or for more than fit; Interrupted between batches on
  // Ctrl-C.
  std::span<const float> append(std::span<const int32_t> ids);
  // Whether append_ranked() can be called for the `count` best logits: on a GPU, for few.
  bool ranks(size_t count) const { return sequence_ != nullptr && count <= DeviceSequence::kMostRanked; }
  // append() with the `count` best logits (or all of a smaller vocabulary), best first, instead of all.
  std::span<const RankedLogit> append_ranked(std::span<const int32_t> ids, size_t count);
  // The same with logits [ids, vocabulary] for every id.
  void append(std::span<const int32_t> ids, float* logits);

 private:
  // Runs one batch; its hidden states are then in hidden_.
  void run_batch(std::span<const int32_t> ids);
  void check_fits(size_t count) const;
  void check_ids(std::span<const int32_t> ids) const;
  const Engine& engine_;
  int64_t capacity_;
  int64_t length_ = 0;
  std::unique_ptr<SequenceCache> cache_;
  std::unique_ptr<DeviceSequence> sequence_;  // instead, on a GPU
  Scratch scratch_;
  std::vector<float> hidden_;  // [batch, hidden]
  std::vector<float> logits_;  // [vocabulary]
  std::vector<RankedLogit> ranked_;
};

}  // namespace nibble
