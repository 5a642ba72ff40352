// One sequence on the device: its cache, and the recorded graph of one token's pass.
#include <algorithm>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/interrupt.h"
#include "runtime/cuda/cuda_model.h"

namespace nibble::cuda {
namespace {

class CudaSequence final : public DeviceSequence {
 public:
  CudaSequence(CudaModel& model, int64_t capacity)
      : model_(model),
        capacity_(capacity),
        pages_((capacity + kPagePositions - 1) / kPagePositions),
        table_(sizeof(int32_t) * static_cast<size_t>(pages_)),
        history_(sizeof(int32_t) * static_cast<size_t>(capacity + 1)) {
    const ModelSpec& spec = model.spec();
    const int64_t part = pages_ * kPagePositions * spec.kv_size();  // keys or values of a layer
    const size_t bytes = 2 * sizeof(__half) * static_cast<size_t>(part * spec.layers);
    require_memory(model.device(), bytes, format_text("a cache of {} tokens", capacity));
    cache_ = Buffer(bytes);
    // What lies beyond a sequence is multiplied by zero: it must not be NaN.
    check(cudaMemset(cache_.data(), 0, bytes), "preparing a cache");
    std::vector<int32_t> pages(static_cast<size_t>(pages_));
    std::iota(pages.begin(), pages.end(), 0);
    table_.upload(pages.data(), table_.bytes());
    check(cudaDeviceSynchronize(), "preparing a cache");
    for (int64_t layer = 0; layer < spec.layers; ++layer) {
      __half* const keys = cache_.as<__half>() + 2 * layer * part;
      caches_.push_back({.keys = keys,
                         .values = keys + part,
                         .pages = table_.as<int32_t>(),
                         .kv_heads = static_cast<int>(spec.kv_heads),
                         .head_dim = static_cast<int>(spec.head_dim)});
      maps_.push_back(make_cache_maps(caches_.back(), pages_));
    }
  }

  int64_t capacity() const override { return capacity_; }
  int64_t length() const override { return length_; }
  void truncate(int64_t length) override {
    NIBBLE_CHECK(length >= 0 && length <= length_);
    length_ = length;
  }
  size_t bytes() const override { return cache_.bytes(); }

  void append(std::span<const int32_t> ids, float* hidden, float* logits) override {
    NIBBLE_CHECK(!ids.empty() && length_ + static_cast<int64_t>(ids.size()) <= capacity_);
    check(cudaSetDevice(model_.device().index), "opening the GPU");
    while (!ids.empty()) {
      throw_if_interrupted();
      const size_t count = std::min(ids.size(), static_cast<size_t>(model_.chunk()));
      const bool last = count == ids.size();
      run(ids.first(count), hidden, last ? logits : nullptr);
      if (hidden != nullptr) hidden += static_cast<int64_t>(count) * model_.spec().hidden_size;
      ids = ids.subspan(count);
    }
  }

  std::vector<int32_t> append_greedy(int32_t first, int64_t count) override {
    NIBBLE_CHECK(count >= 1 && length_ + count <= capacity_);
    check(cudaSetDevice(model_.device().index), "opening the GPU");
    send({&first, 1});
    record_step();
    for (int64_t i = 0; i < count; ++i) {
      step_->launch();
      if (i % 64 == 63) {
        model_.stream().synchronize();
        throw_if_interrupted();
      }
    }
    model_.stream().synchronize();
    std::vector<int32_t> ids(static_cast<size_t>(count));
    check(cudaMemcpy(ids.data(), history_.as<int32_t>() + length_ + 1, sizeof(int32_t) * ids.size(),
                     cudaMemcpyDeviceToHost),
          "fetching tokens");
    length_ += count;
    if (std::find(ids.begin(), ids.end(), -1) != ids.end()) model_.fail_not_finite();
    return ids;
  }

 private:
  void send(std::span<const int32_t> ids) const {
    int32_t* const words = model_.host_control();
    words[0] = static_cast<int32_t>(length_);
    std::copy(ids.begin(), ids.end(), words + 1);
    check(cudaMemcpyAsync(model_.control(), words, sizeof(int32_t) * (1 + ids.size()), cudaMemcpyHostToDevice,
                          model_.stream().get()),
          "sending tokens");
  }

  void enqueue_step() const {
    model_.enqueue_layers(caches_, maps_, 1);
    model_.enqueue_logits(0);
    launch_argmax(model_.device_logits(), static_cast<int>(model_.spec().vocabulary), model_.control() + 1,
                  model_.control(), history_.as<int32_t>(), model_.stream().get());
  }

  // The control words must have been sent. Kernels are loaded when first launched, which a recording does not
  // allow: the step runs once before, on the token and position that it will run on again.
  void record_step() {
    if (step_) return;
    const Buffer words(2 * sizeof(int32_t));
    const cudaStream_t stream = model_.stream().get();
    check(cudaMemcpyAsync(words.data(), model_.control(), words.bytes(), cudaMemcpyDeviceToDevice, stream),
          "recording a graph");
    enqueue_step();
    check(cudaMemcpyAsync(model_.control(), words.data(), words.bytes(), cudaMemcpyDeviceToDevice, stream),
          "recording a graph");
    model_.stream().synchronize();
    step_.emplace(model_.stream(), [&] { enqueue_step(); });
  }

  void run(std::span<const int32_t> ids, float* hidden, float* logits) {
    const int count = static_cast<int>(ids.size());
    const ModelSpec& spec = model_.spec();
    const cudaStream_t stream = model_.stream().get();
    send(ids);
    if (count == 1 && hidden == nullptr) {
      record_step();
      step_->launch();
    } else {
      model_.enqueue_layers(caches_, maps_, count);
      if (logits != nullptr) model_.enqueue_logits(count - 1);  // adds the last token's update to its state
      if (hidden != nullptr) model_.enqueue_states(logits != nullptr ? count - 1 : count);
    }
    if (logits != nullptr) {
      check(cudaMemcpyAsync(model_.host_logits(), model_.device_logits(),
                            sizeof(float) * static_cast<size_t>(spec.vocabulary), cudaMemcpyDeviceToHost,
                            stream),
            "fetching logits");
    }
    if (hidden != nullptr) {
      check(cudaMemcpyAsync(hidden, model_.residual(),
                            sizeof(float) * static_cast<size_t>(count * spec.hidden_size),
                            cudaMemcpyDeviceToHost, stream),
            "fetching hidden states");
    }
    model_.stream().synchronize();
    length_ += count;
    if (logits == nullptr) return;
    model_.require_finite(model_.host_logits(), spec.vocabulary);
    std::copy_n(model_.host_logits(), spec.vocabulary, logits);
  }

  CudaModel& model_;
  int64_t capacity_, pages_, length_ = 0;
  Buffer table_, cache_;
  Buffer history_;  // the token that was the most likely one at each position
  std::vector<LayerCache> caches_;
  std::vector<CacheMaps> maps_;
  std::optional<Graph> step_;
};

}  // namespace

std::unique_ptr<DeviceSequence> CudaModel::make_sequence(int64_t capacity) {
  check(cudaSetDevice(device_.index), "opening the GPU");
  return std::make_unique<CudaSequence>(*this, capacity);
}

}  // namespace nibble::cuda
