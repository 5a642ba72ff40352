// One sequence on the device: its cache, and the recorded graph of one token's pass.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/interrupt.h"
#include "runtime/cuda/cuda_model.h"

namespace nibble::cuda {
namespace {

class CudaSequence final : public DeviceSequence {
 public:
  CudaSequence(CudaModel& model, int64_t capacity, CacheType type)
      : model_(model),
        capacity_(capacity),
        pages_((capacity + kPagePositions - 1) / kPagePositions),
        table_(sizeof(int32_t) * static_cast<size_t>(pages_)),
        history_(sizeof(int32_t) * static_cast<size_t>(capacity + 1)) {
    NIBBLE_CHECK(type == CacheType::kF16 || type == CacheType::kQ8);
    std::vector<int32_t> pages(static_cast<size_t>(pages_));
    std::iota(pages.begin(), pages.end(), 0);
    table_.upload(pages.data(), table_.bytes());
    caches_.table_pages = static_cast<int>(pages_);
    if (type == CacheType::kF16) {
      place_halves();
    } else {
      place_codes();
    }
    check(cudaDeviceSynchronize(), "preparing a cache");
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
      run(ids.first(count), {.hidden = hidden, .logits = last ? logits : nullptr});
      if (hidden != nullptr) hidden += static_cast<int64_t>(count) * model_.spec().hidden_size;
      ids = ids.subspan(count);
    }
  }

  size_t append_ranked(std::span<const int32_t> ids, std::span<RankedLogit> best) override {
    static_assert(kMostRanked == kRankedLogits);
    NIBBLE_CHECK(!best.empty() && best.size() <= kMostRanked);
    const auto chunk = static_cast<size_t>(model_.chunk());
    const size_t last = ids.empty() ? 0 : (ids.size() - 1) % chunk + 1;
    if (last < ids.size()) append(ids.first(ids.size() - last), nullptr, nullptr);
    NIBBLE_CHECK(last > 0 && length_ + static_cast<int64_t>(last) <= capacity_);
    check(cudaSetDevice(model_.device().index), "opening the GPU");
    throw_if_interrupted();
    run(ids.last(last), {.ranked = true});
    size_t count = 0;
    for (const RankKey& key : std::span(model_.host_ranking(), best.size())) {
      if (key.any()) best[count++] = {key.logit(), key.token()};
    }
    if (!std::isfinite(best.front().first)) model_.fail_not_finite();
    return count;
  }

  std::vector<int32_t> append_greedy(int32_t first, int64_t count) override {
    NIBBLE_CHECK(count >= 1 && length_ + count <= capacity_);
    check(cudaSetDevice(model_.device().index), "opening the GPU");
    send({&first, 1});
    record(greedy_step_, [&] { enqueue_greedy_step(); });
    for (int64_t i = 0; i < count; ++i) {
      greedy_step_->launch();
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

  LayerCache empty_layer() const {
    LayerCache layer;
    layer.pages = table_.as<int32_t>();
    layer.kv_heads = static_cast<int>(model_.spec().kv_heads);
    layer.head_dim = static_cast<int>(model_.spec().head_dim);
    return layer;
  }
  void allocate(size_t bytes) {
    require_memory(model_.device(), bytes, format_text("a cache of {} tokens", capacity_));
    cache_ = Buffer(bytes);
    // What lies beyond a sequence is multiplied by zero: it must not be NaN.
    check(cudaMemset(cache_.data(), 0, bytes), "preparing a cache");
  }
  // Keys or values of a layer.
  int64_t part() const { return pages_ * kPagePositions * model_.spec().kv_size(); }

  void place_halves() {
    const int64_t layers = model_.spec().layers;
    allocate(2 * sizeof(__half) * static_cast<size_t>(part() * layers));
    for (int64_t i = 0; i < layers; ++i) {
      LayerCache layer = empty_layer();
      layer.keys = cache_.as<__half>() + 2 * i * part();
      layer.values = layer.keys + part();
      caches_.layers.push_back(layer);
      caches_.maps.push_back(make_cache_maps(layer, pages_));
    }
  }

  // Codes of all layers, then their scales, then one layer in FP16.
  void place_codes() {
    const int64_t layers = model_.spec().layers;
    LayerCache layer = empty_layer();
    const int64_t scales = pages_ * kPagePositions * layer.kv_heads * layer.groups();
    const int64_t half_bytes = static_cast<int64_t>(sizeof(__half));
    allocate(static_cast<size_t>(2 * layers * (part() + half_bytes * scales) + 2 * half_bytes * part()));
    uint8_t* const codes = cache_.as<uint8_t>();
    auto* const all_scales = reinterpret_cast<__half*>(codes + 2 * layers * part());
    for (int64_t i = 0; i < layers; ++i) {
      layer.key_codes = codes + 2 * i * part();
      layer.value_codes = layer.key_codes + part();
      layer.key_scales = all_scales + 2 * i * scales;
      layer.value_scales = layer.key_scales + scales;
      caches_.layers.push_back(layer);
    }
    caches_.expanded = empty_layer();
    caches_.expanded.keys = all_scales + 2 * layers * scales;
    caches_.expanded.values = caches_.expanded.keys + part();
    caches_.maps.push_back(make_cache_maps(caches_.expanded, pages_));
  }

  // What a run leaves on the host; null or false: not wanted.
  struct Wanted {
    float *hidden = nullptr, *logits = nullptr;
    bool ranked = false;  // in the model's host_ranking()
  };

  void enqueue_step(bool ranked) const {
    model_.enqueue_layers(caches_, 1);
    model_.enqueue_logits(0);
    if (ranked) model_.enqueue_ranking();
  }
  void enqueue_greedy_step() const {
    enqueue_step(false);
    launch_argmax(model_.device_logits(), static_cast<int>(model_.spec().vocabulary), model_.control() + 1,
                  model_.control(), history_.as<int32_t>(), model_.stream().get());
  }

  // The control words must have been sent. Kernels are loaded when first launched, which a recording does not
  // allow: the step runs once before, on the token and position that it will run on again.
  template <typename Enqueue>
  void record(std::optional<Graph>& step, const Enqueue& enqueue) const {
    if (step) return;
    const Buffer words(2 * sizeof(int32_t));
    const cudaStream_t stream = model_.stream().get();
    check(cudaMemcpyAsync(words.data(), model_.control(), words.bytes(), cudaMemcpyDeviceToDevice, stream),
          "recording a graph");
    enqueue();
    check(cudaMemcpyAsync(model_.control(), words.data(), words.bytes(), cudaMemcpyDeviceToDevice, stream),
          "recording a graph");
    model_.stream().synchronize();
    step.emplace(model_.stream(), enqueue);
  }

  void run(std::span<const int32_t> ids, const Wanted& wanted) {
    const int count = static_cast<int>(ids.size());
    const ModelSpec& spec = model_.spec();
    const cudaStream_t stream = model_.stream().get();
    send(ids);
    if (count == 1 && wanted.hidden == nullptr) {
      std::optional<Graph>& step = wanted.ranked ? ranked_step_ : step_;
      record(step, [&] { enqueue_step(wanted.ranked); });
      step->launch();
    } else {
      const bool any_logits = wanted.logits != nullptr || wanted.ranked;
      model_.enqueue_layers(caches_, count);
      if (any_logits) model_.enqueue_logits(count - 1);  // adds the last token's update to its state
      if (wanted.ranked) model_.enqueue_ranking();
      if (wanted.hidden != nullptr) model_.enqueue_states(any_logits ? count - 1 : count);
    }
    if (wanted.logits != nullptr) {
      check(cudaMemcpyAsync(model_.host_logits(), model_.device_logits(),
                            sizeof(float) * static_cast<size_t>(spec.vocabulary), cudaMemcpyDeviceToHost,
                            stream),
            "fetching logits");
    }
    if (wanted.hidden != nullptr) {
      check(cudaMemcpyAsync(wanted.hidden, model_.residual(),
                            sizeof(float) * static_cast<size_t>(count * spec.hidden_size),
                            cudaMemcpyDeviceToHost, stream),
            "fetching hidden states");
    }
    model_.stream().synchronize();
    length_ += count;
    if (wanted.logits == nullptr) return;
    model_.require_finite(model_.host_logits(), spec.vocabulary);
    std::copy_n(model_.host_logits(), spec.vocabulary, wanted.logits);
  }

  CudaModel& model_;
  int64_t capacity_, pages_, length_ = 0;
  Buffer table_, cache_;
  Buffer history_;  // the token that was the most likely one at each position
  CudaModel::Caches caches_;
  // One token's pass: its logits, their ranking too, or the next token from them.
  std::optional<Graph> step_, ranked_step_, greedy_step_;
};

}  // namespace

std::unique_ptr<DeviceSequence> CudaModel::make_sequence(int64_t capacity, CacheType type) {
  check(cudaSetDevice(device_.index), "opening the GPU");
  return std::make_unique<CudaSequence>(*this, capacity, type);
}

}  // namespace nibble::cuda
