#include "runtime/cuda/cuda_model.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/float_kernels.h"

namespace nibble::cuda {
namespace {

// Bytes. Attention's activations, the MLP's and the logits are never alive at the same time: they share.
struct ActivationSizes {
  size_t control, residual, x, y, qkv, attended, gate_up, activated, rotated, logits;
  size_t shared() const { return std::max({qkv + attended, gate_up + activated, logits}); }
  size_t total() const { return control + residual + x + y + rotated + shared(); }
};

ActivationSizes activation_sizes(const ModelSpec& spec, int chunk) {
  constexpr size_t kAlignment = 256;
  const auto halves = [&](int64_t width) {
    return (sizeof(__half) * static_cast<size_t>(chunk * width) + kAlignment - 1) / kAlignment * kAlignment;
  };
  const int rows = std::min(kLogitRows, chunk);
  const int64_t rotated =
      std::max(spec.hidden_hadamard ? spec.hidden_size : 0, spec.down_hadamard ? spec.intermediate_size : 0);
  return {.control = sizeof(int32_t) * static_cast<size_t>(chunk + 1),
          .residual = sizeof(float) * static_cast<size_t>((chunk + 1) * spec.hidden_size),
          .x = halves(spec.hidden_size),
          .y = halves(spec.hidden_size),
          .qkv = halves(spec.query_size() + 2 * spec.kv_size()),
          .attended = halves(spec.query_size()),
          .gate_up = halves(2 * spec.intermediate_size),
          .activated = halves(spec.intermediate_size),
          .rotated = sizeof(float) * static_cast<size_t>(chunk * rotated),
          .logits = sizeof(float) * static_cast<size_t>(rows * spec.vocabulary)};
}

size_t free_bytes() {
  size_t available = 0, total = 0;
  check(cudaMemGetInfo(&available, &total), "asking for free GPU memory");
  return available;
}

}  // namespace

size_t activation_bytes(const ModelSpec& spec, int chunk, size_t workspace_bytes) {
  return activation_sizes(spec, chunk).total() + workspace_bytes;
}

void require_memory(const Device& device, size_t needed, const std::string& what) {
  const size_t available = free_bytes();
  if (needed <= available) return;
  fail("{} needs {} of GPU memory, but {} of {} are free on GPU {} ({})", what,
       format_bytes(static_cast<double>(needed)), format_bytes(static_cast<double>(available)),
       format_bytes(static_cast<double>(device.memory_bytes)), device.index, device.name);
}

PinnedBuffer::PinnedBuffer(size_t bytes) {
  check(cudaMallocHost(&data_, bytes), "allocating page-locked memory");
}
PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

CudaModel::CudaModel(ModelSpec spec, Device device, int chunk, Ends ends, std::vector<DeviceLayer> layers,
                     std::vector<DeviceLinearFacts> facts)
    : spec_(std::move(spec)),
      device_(std::move(device)),
      chunk_(chunk),
      ends_(std::move(ends)),
      layers_(std::move(layers)),
      facts_(std::move(facts)),
      host_control_(sizeof(int32_t) * static_cast<size_t>(chunk + 1)),
      host_logits_(sizeof(float) * static_cast<size_t>(spec_.vocabulary)),
      host_ranking_(sizeof(RankKey) * kRankedLogits) {
  const ActivationSizes sizes = activation_sizes(spec_, chunk);
  size_t workspace = head().workspace_bytes(std::min(kLogitRows, chunk));
  for (const DeviceLayer& layer : layers_) {
    for (const DeviceLinearGroup* group :
         {&layer.query_key_value, &layer.output, &layer.gate_up, &layer.down}) {
      workspace = std::max(workspace, group->workspace_bytes(chunk));
    }
  }
  const size_t attention_workspace = attention_workspace_bytes(heads(), device_.multiprocessors);
  require_memory(device_, sizes.total() + workspace + attention_workspace,
                 format_text("running {} tokens at a time", chunk));
  if (!ends_.frequencies.empty()) {
    frequencies_ = Buffer(sizeof(float) * ends_.frequencies.size());
    frequencies_.upload(ends_.frequencies.data(), frequencies_.bytes());
  }
  if (spec_.hidden_hadamard) hidden_rotation_.emplace(*spec_.hidden_hadamard);
  if (spec_.down_hadamard) down_rotation_.emplace(*spec_.down_hadamard);
  if (sizes.rotated > 0) rotated_ = Buffer(sizes.rotated);
  control_ = Buffer(sizes.control);
  residual_ = Buffer(sizes.residual);
  x_ = Buffer(sizes.x);
  y_ = Buffer(sizes.y);
  shared_ = Buffer(sizes.shared());
  qkv_ = gate_up_ = shared_.as<__half>();
  attended_ = qkv_ + sizes.qkv / sizeof(__half);
  activated_ = gate_up_ + sizes.gate_up / sizeof(__half);
  ranking_ = Buffer(ranking_bytes(static_cast<int>(spec_.vocabulary)));
  workspace_ = Buffer(workspace);
  attention_workspace_ = Buffer(attention_workspace);
  check(cudaMemset(attention_workspace_.data(), 0, attention_workspace), "preparing attention");
  check(cudaDeviceSynchronize(), "loading a model");
  prepare();
}

void CudaModel::prepare() {
  for (const int tokens : {1, chunk_}) {
    for (const DeviceLayer& layer : layers_) {
      for (const DeviceLinearGroup* group :
           {&layer.query_key_value, &layer.output, &layer.gate_up, &layer.down})
        group->prepare(tokens, workspace_.data(), stream_.get());
    }
  }
  for (const int rows : {1, std::min(kLogitRows, chunk_)})
    head().prepare(rows, workspace_.data(), stream_.get());
  stream_.synchronize();
}

HeadsShape CudaModel::heads() const {
  return {.heads = static_cast<int>(spec_.heads),
          .kv_heads = static_cast<int>(spec_.kv_heads),
          .head_dim = static_cast<int>(spec_.head_dim)};
}

void CudaModel::enqueue_layers(const Caches& caches, int tokens) const {
  NIBBLE_CHECK(tokens >= 1 && tokens <= chunk_ && caches.layers.size() == layers_.size());
  const cudaStream_t stream = stream_.get();
  const auto epsilon = static_cast<float>(spec_.norm_epsilon);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec_.head_dim)));
  __half *const x = x_.as<__half>(), *const y = y_.as<__half>(), *const qkv = qkv_;
  ends_.embedding->embed(control() + 1, tokens, residual(), stream);
  const __half* update = nullptr;
  // Of one token every block of a kernel may read the residual (NormStep): sums go to and fro between two
  // rows. A layer has two norms, so after each layer they are where they began.
  float* now = residual();
  const auto norm = [&](const __half* more, const Buffer& weight) {
    float* const sum = tokens == 1 && now == residual() ? second_residual() : residual();
    return NormStep{std::exchange(now, sum), more, sum, weight.as<float>(), epsilon};
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DeviceLayer& layer = layers_[i];
    enqueue_group(norm(update, layer.attention_norm), hidden_rotation_, layer.query_key_value, tokens, x,
                  qkv);
    update = y;
    launch_rotate_and_store({.shape = heads(),
                             .qkv = qkv,
                             .tokens = tokens,
                             .first_position = control(),
                             .frequencies = frequencies_.bytes() > 0 ? frequencies_.as<float>() : nullptr,
                             .interleaved = spec_.rope.interleaved,
                             .query_norm = layer.query_norm.as<float>(),
                             .key_norm = layer.key_norm.as<float>(),
                             .epsilon = epsilon,
                             .cache = caches.layers[i]},
                            stream);
    attention({.shape = heads(),
               .qkv = qkv,
               .out = attended_,
               .tokens = tokens,
               .first_position = control(),
               .window = layer.window,
               .scale = scale,
               .cache = caches.layers[i],
               .expanded = caches.expanded,
               .table_pages = caches.table_pages},
              caches.maps[std::min(i, caches.maps.size() - 1)], attention_workspace_.data(),
              device_.multiprocessors, stream);
    layer.output.forward(attended_, tokens, y, workspace_.data(), stream);
    enqueue_group(norm(y, layer.mlp_norm), hidden_rotation_, layer.gate_up, tokens, x, gate_up_);
    enqueue_group(GateStep{gate_up_}, down_rotation_, layer.down, tokens, activated_, y);
  }
}

void CudaModel::enqueue_group(const InputStep& step, const std::optional<DeviceHadamard>& rotation,
                              const DeviceLinearGroup& group, int tokens, __half* halves, __half* y) const {
  const cudaStream_t stream = stream_.get();
  if (!rotation && group.takes(step, tokens))
    return group.forward_from(step, tokens, y, workspace_.data(), stream);
  if (rotation && group.takes(FloatStep{rotated_.as<float>()}, tokens)) {
    rotation->launch(step, tokens, rotated_.as<float>(), stream);
    return group.forward_from(FloatStep{rotated_.as<float>()}, tokens, y, workspace_.data(), stream);
  }
  if (rotation) {
    rotation->launch(step, tokens, halves, stream);
  } else if (const auto* norm = std::get_if<NormStep>(&step)) {
    launch_norm(*norm, tokens, hidden(), halves, stream);
  } else if (const auto* gate = std::get_if<GateStep>(&step)) {
    launch_silu_multiply(gate->gate_up, tokens, static_cast<int>(spec_.intermediate_size), halves, stream);
  }
  group.forward(halves, tokens, y, workspace_.data(), stream);
}

void CudaModel::enqueue_states(int tokens) const {
  if (tokens == 0) return;
  launch_add(residual(), y_.as<__half>(), int64_t{tokens} * hidden(), stream_.get());
}

NormStep CudaModel::final_norm(float* states, const __half* update) const {
  return {states, update, states, ends_.final_norm.as<float>(), static_cast<float>(spec_.norm_epsilon)};
}

void CudaModel::enqueue_logits(int token) const {
  const int64_t at = int64_t{token} * hidden();
  launch_norm(final_norm(residual() + at, y_.as<__half>() + at), 1, hidden(), x_.as<__half>(), stream_.get());
  head().logits(x_.as<__half>(), 1, device_logits(), workspace_.data(), stream_.get());
}

void CudaModel::enqueue_ranking() const {
  const RankKey* const best =
      launch_ranking(device_logits(), static_cast<int>(spec_.vocabulary), ranking_.data(), stream_.get());
  check(cudaMemcpyAsync(host_ranking_.as<RankKey>(), best, sizeof(RankKey) * kRankedLogits,
                        cudaMemcpyDeviceToHost, stream_.get()),
        "fetching logits");
}

void CudaModel::logits(const float* hidden_states, int64_t count, float* out) {
  check(cudaSetDevice(device_.index), "opening the GPU");
  for (int64_t first = 0; first < count; first += kLogitRows) {
    const int rows = static_cast<int>(std::min<int64_t>({kLogitRows, chunk_, count - first}));
    residual_.upload(hidden_states + first * hidden(), sizeof(float) * static_cast<size_t>(rows * hidden()));
    launch_norm(final_norm(residual(), nullptr), rows, hidden(), x_.as<__half>(), stream_.get());
    head().logits(x_.as<__half>(), rows, device_logits(), workspace_.data(), stream_.get());
    stream_.synchronize();
    float* const to = out + first * spec_.vocabulary;
    shared_.download(to, sizeof(float) * static_cast<size_t>(rows * spec_.vocabulary));
    require_finite(to, rows * spec_.vocabulary);
  }
}

void CudaModel::require_finite(const float* values, int64_t count) const {
  if (!float_kernels().all_finite(WeightType::kF32, values, count)) fail_not_finite();
}

void CudaModel::fail_not_finite() const {
  fail(
      "the logits are not finite: a weight is NaN or infinite, or an intermediate value was beyond FP16's "
      "range; "
      "--device cpu computes in FP32 and tells which");
}

size_t CudaModel::weight_bytes() const {
  size_t bytes = ends_.embedding->bytes() + (ends_.head ? ends_.head->bytes() : 0) + ends_.final_norm.bytes();
  for (const DeviceLayer& layer : layers_) {
    for (const DeviceLinearGroup* group :
         {&layer.query_key_value, &layer.output, &layer.gate_up, &layer.down})
      bytes += group->bytes();
    for (const Buffer* buffer : {&layer.attention_norm, &layer.mlp_norm, &layer.query_norm, &layer.key_norm})
      bytes += buffer->bytes();
  }
  return bytes;
}

size_t CudaModel::used_bytes() const {
  size_t available = 0, total = 0;
  check(cudaMemGetInfo(&available, &total), "asking for free GPU memory");
  return total - available;
}

}  // namespace nibble::cuda
