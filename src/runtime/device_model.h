// A model that runs on a GPU, as the rest of the program sees it: nothing here needs CUDA to compile.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_pool.h"
#include "models/model.h"
#include "runtime/ranked_logit.h"

namespace nibble {

// One sequence and its keys and values in device memory.
class DeviceSequence {
 public:
  virtual ~DeviceSequence() = default;
  virtual int64_t capacity() const = 0;
  virtual int64_t length() const = 0;
  virtual void truncate(int64_t length) = 0;
  virtual size_t bytes() const = 0;

  // Appends ids that are within the vocabulary and fit. Hidden states [ids, hidden_size] of all of them,
  // before the final norm, go to `hidden`, and the logits [vocabulary] after the last to `logits`, each
  // unless null. Throws Interrupted between chunks on Ctrl-C, Error when logits are not finite.
  virtual void append(std::span<const int32_t> ids, float* hidden, float* logits) = 0;
  // The same with the best logits after the last token instead of all: fills `best`, at most kMostRanked,
  // best first, and returns how many the vocabulary had.
  static constexpr size_t kMostRanked = 128;
  virtual size_t append_ranked(std::span<const int32_t> ids, std::span<RankedLogit> best) = 0;
  // Appends `first` and `count` - 1 more tokens, each the most likely one after those before it, without
  // waiting for any; returns the `count` tokens that follow. Throws Error when logits are not finite.
  virtual std::vector<int32_t> append_greedy(int32_t first, int64_t count) = 0;
};

// How a run of fused linears is computed, for reports.
struct DeviceLinearFacts {
  std::vector<std::string> names;
  std::string format, kernel;  // of the table: "cuda-w4a16"
  bool slower = false;
  std::string decode, prompt;  // "w4a16-decode, int4xf16->f32": at 1 and 512 tokens
  std::vector<std::pair<std::string, std::string>> refused;  // faster kernels and why they do not run it
};

class DeviceModel {
 public:
  virtual ~DeviceModel() = default;
  // Keys and values are kept as `type`, kF16 or kQ8. Throws Error when the memory does not suffice, before
  // any is taken.
  virtual std::unique_ptr<DeviceSequence> make_sequence(int64_t capacity,
                                                        CacheType type = CacheType::kF16) = 0;
  // Logits [count, vocabulary] of hidden states [count, hidden_size].
  virtual void logits(const float* hidden, int64_t count, float* out) = 0;

  virtual const ModelSpec& spec() const = 0;
  virtual std::string device_name() const = 0;  // "NVIDIA H100 80GB HBM3"
  virtual size_t weight_bytes() const = 0;      // on the device
  virtual size_t used_bytes() const = 0;        // of the device's memory now, by everyone
  // Of the blocks in execution order, then the head.
  virtual const std::vector<DeviceLinearFacts>& linears() const = 0;
};

// "cpu", "auto", "cuda" or "cuda:N" -> the GPU's number, or -1 for the CPU. UsageError for anything else.
int parse_device(const std::string& name);

// How keys and values are kept on a GPU when `wanted` is asked for: both as F16, also for F32, or both as Q8.
// UsageError for types that it does not have.
CacheType device_cache_type(CacheTypes wanted);

// Throws Error unless this program can use that GPU: before anything is read.
void require_device(int device);

// How a model's linears would run on that GPU, as DeviceModel::linears() tells of one that is loaded, but for
// what depends on the number of tokens. Throws Error as require_device() does.
std::vector<DeviceLinearFacts> describe_device_linears(const Model& model, int device);

// Uploads a model (built without prepared kernels) for up to `context_length` positions. Throws Error when
// this program was built without CUDA, there is no such GPU, its memory does not suffice (before any is
// taken), or the model has something that the GPU cannot run.
std::unique_ptr<DeviceModel> load_device_model(const Model& model, int device, int64_t context_length,
                                               ThreadPool& pool);

// A model of `spec` whose layers all have the weights `layer` (q, k, v, o, gate, up, down; null: uniform
// random FP16 made on the device), each in memory of its own; embedding and head are random FP16. For
// measurements.
std::unique_ptr<DeviceModel> make_synthetic_device_model(const ModelSpec& spec,
                                                         std::span<const PackedLinear* const> layer,
                                                         int device, int64_t context_length,
                                                         ThreadPool& pool);

}  // namespace nibble
