// A model of Llama's family in GPU memory, and one pass of some tokens through it.
//
// All memory is planned before any is taken: weights, activations for a chunk of prompt tokens, one workspace
// that the linears share, logits. A sequence adds its cache. Per layer, over the tokens of a chunk:
//
//   residual += y; x = norm(residual)          y is what the layer before left
//   qkv = x Wqkv; rotate q and k; k, v -> cache; attended = attention(q, cache); y = attended Wo
//   residual += y; x = norm(residual); gate_up = x W; x = silu(gate) * up; y = x Wdown
//
// residual is FP32, everything else FP16. Linears that quantize their input take norms and silu over and
// quantize what these yield in FP32 (backend/cuda/input_step.h). Rotated models transform norms' and silu's
// values first.
#pragma once

#include <optional>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/device.h"
#include "backend/cuda/hadamard.h"
#include "backend/cuda/linear_group.h"
#include "backend/cuda/ranking.h"
#include "backend/cuda/token_table.h"
#include "runtime/device_model.h"

namespace nibble::cuda {

// Tokens of a prompt that run together: enough for the products to be bound by arithmetic.
inline constexpr int kPromptChunk = 2048;
// Rows of logits that are computed together.
inline constexpr int kLogitRows = 64;

struct DeviceLayer {
  Buffer attention_norm, mlp_norm;  // FP32 [hidden]
  Buffer query_norm, key_norm;      // FP32 [head_dim] or empty
  DeviceLinearGroup query_key_value, output, gate_up, down;
  int window = 0;
};

// Page-locked memory of the host, which copies reach without a detour.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

class CudaModel : public DeviceModel {
 public:
  // The parts of a model that are not in layers.
  struct Ends {
    std::unique_ptr<TokenTable> embedding, head;  // head null: the embedding's table
    Buffer final_norm;                            // FP32 [hidden]
    std::vector<float> frequencies;               // of rotation; empty: none
  };
  CudaModel(ModelSpec spec, Device device, int chunk, Ends ends, std::vector<DeviceLayer> layers,
            std::vector<DeviceLinearFacts> facts);

  std::unique_ptr<DeviceSequence> make_sequence(int64_t capacity, CacheType type) override;
  void logits(const float* hidden, int64_t count, float* out) override;
  const ModelSpec& spec() const override { return spec_; }
  std::string device_name() const override { return device_.name; }
  size_t weight_bytes() const override;
  size_t used_bytes() const override;
  const std::vector<DeviceLinearFacts>& linears() const override { return facts_; }

  // --- for sequences
  const Device& device() const { return device_; }
  const Stream& stream() const { return stream_; }
  int chunk() const { return chunk_; }
  // Control words on both sides: the position of the first token, then the ids of a chunk.
  int32_t* control() const { return control_.as<int32_t>(); }
  int32_t* host_control() const { return host_control_.as<int32_t>(); }
  float* residual() const { return residual_.as<float>(); }
  float* second_residual() const { return residual() + int64_t{chunk_} * spec_.hidden_size; }  // one row
  float* device_logits() const { return shared_.as<float>(); }
  float* host_logits() const { return host_logits_.as<float>(); }
  const RankKey* host_ranking() const { return host_ranking_.as<RankKey>(); }

  // The cache of a sequence: per layer, and how the copy engine sees it; of an 8-bit one only `expanded`, to
  // which layers expand in turn.
  struct Caches {
    std::vector<LayerCache> layers;
    std::vector<CacheMaps> maps;
    LayerCache expanded;
    int table_pages = 0;
  };
  // Enqueues `tokens` ids of the control words through all layers. Afterwards residual lacks what the last
  // layer has left in y.
  void enqueue_layers(const Caches& caches, int tokens) const;
  // residual += y for the states of a chunk.
  void enqueue_states(int tokens) const;
  // residual += y for token `token` alone, its final norm, and its logits.
  void enqueue_logits(int token) const;
  // The logits' best kRankedLogits to the host.
  void enqueue_ranking() const;
  // Throws Error when one of `count` logits is NaN or infinite.
  void require_finite(const float* logits, int64_t count) const;
  // For a token that the device chose.
  [[noreturn]] void fail_not_finite() const;

 private:
  void prepare();
  // y = `group` of what `step` yields, transformed by `rotation` (null: not). Linears that do not take the
  // step read it from `halves`.
  void enqueue_group(const InputStep& step, const std::optional<DeviceHadamard>& rotation,
                     const DeviceLinearGroup& group, int tokens, __half* halves, __half* y) const;
  // In place.
  NormStep final_norm(float* states, const __half* update) const;
  const TokenTable& head() const { return ends_.head ? *ends_.head : *ends_.embedding; }
  HeadsShape heads() const;
  int hidden() const { return static_cast<int>(spec_.hidden_size); }

  ModelSpec spec_;
  Device device_;
  int chunk_;
  Ends ends_;
  std::vector<DeviceLayer> layers_;
  std::vector<DeviceLinearFacts> facts_;
  Stream stream_;
  std::optional<DeviceHadamard> hidden_rotation_, down_rotation_;
  Buffer rotated_;  // FP32 [chunk, the widest rotated vector] or empty
  Buffer frequencies_, control_, residual_, x_, y_, workspace_, attention_workspace_;
  // Queries, keys and values, and what attention makes of them; later gate and up, and their product; at last
  // the logits.
  Buffer shared_;
  __half *qkv_ = nullptr, *attended_ = nullptr, *gate_up_ = nullptr, *activated_ = nullptr;
  Buffer ranking_;  // of the logits
  PinnedBuffer host_control_, host_logits_, host_ranking_;
};

// Device memory beside the weights for a chunk of `chunk` tokens; the linears' workspace counts as
// `workspace_bytes`.
size_t activation_bytes(const ModelSpec& spec, int chunk, size_t workspace_bytes);
// Throws Error when more is needed than free, saying for what.
void require_memory(const Device& device, size_t needed, const std::string& what);

}  // namespace nibble::cuda
