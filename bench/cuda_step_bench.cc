// What a decoder layer does beside its linears, on the GPU: microseconds per kernel in a graph of many, for
// one token at some depth and for a prompt. Arguments: depth (2048), prompt tokens (2048).
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/dense_linear.h"
#include "backend/cuda/device.h"
#include "base/error.h"

namespace nibble::cuda {
namespace {

struct ModelShape {
  const char* name;
  int hidden, intermediate;
  HeadsShape heads;
};
constexpr ModelShape kModels[] = {{"llama-2-7b", 4096, 11008, {32, 32, 128}},
                                  {"llama-3-8b", 4096, 14336, {32, 8, 128}},
                                  {"llama-2-70b", 8192, 28672, {64, 8, 128}},
                                  {"smollm2-135m", 576, 1536, {9, 3, 64}}};
// Layers in rotation, so that caches come from memory and not from the L2.
constexpr int kLayers = 8;

Buffer random(int64_t halves) {
  Buffer buffer(sizeof(__half) * static_cast<size_t>(halves));
  launch_random_half(buffer.as<__half>(), halves, 1.0f, 7, nullptr);
  return buffer;
}

void measure(const ModelShape& model, const Device& device, const Stream& stream, int first, int tokens) {
  const int64_t pages = (first + tokens + kPagePositions - 1) / kPagePositions;
  const int64_t part = pages * kPagePositions * model.heads.kv_heads * model.heads.head_dim;
  const Buffer cache = random(2 * part * kLayers), qkv = random(tokens * model.heads.stride());
  const Buffer gate_up = random(int64_t{tokens} * 2 * model.intermediate),
               x = random(int64_t{tokens} * model.intermediate);
  const Buffer out = random(int64_t{tokens} * model.heads.heads * model.heads.head_dim);
  const Buffer residual(sizeof(float) * static_cast<size_t>(tokens) * static_cast<size_t>(model.hidden));
  const Buffer weight(sizeof(float) * static_cast<size_t>(model.hidden));
  check(cudaMemset(residual.data(), 0, residual.bytes()), "preparing");
  check(cudaMemset(weight.data(), 0, weight.bytes()), "preparing");
  std::vector<int32_t> table(static_cast<size_t>(pages));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  Buffer device_table(4 * table.size()), position(4);
  device_table.upload(table.data(), 4 * table.size());
  position.upload(&first, 4);
  const size_t workspace_bytes = attention_workspace_bytes(model.heads, device.multiprocessors);
  const Buffer workspace(workspace_bytes);
  check(cudaMemset(workspace.data(), 0, workspace_bytes), "preparing");
  std::vector<LayerCache> caches;
  std::vector<CacheMaps> maps;
  for (int layer = 0; layer < kLayers; ++layer) {
    __half* const keys = cache.as<__half>() + 2 * part * layer;
    caches.push_back(
        {keys, keys + part, device_table.as<int32_t>(), model.heads.kv_heads, model.heads.head_dim});
    maps.push_back(make_cache_maps(caches.back(), pages));
  }
  check(cudaDeviceSynchronize(), "preparing");

  const auto rotate = [&](int layer) {
    launch_rotate_and_store({.shape = model.heads,
                             .qkv = qkv.as<__half>(),
                             .tokens = tokens,
                             .first_position = position.as<int32_t>(),
                             .frequencies = weight.as<float>(),
                             .cache = caches[static_cast<size_t>(layer)]},
                            stream.get());
  };
  const auto attend = [&](int layer) {
    attention({.shape = model.heads,
               .qkv = qkv.as<__half>(),
               .out = out.as<__half>(),
               .tokens = tokens,
               .first_position = position.as<int32_t>(),
               .scale = 0.1f,
               .cache = caches[static_cast<size_t>(layer)]},
              maps[static_cast<size_t>(layer)], workspace.data(), device.multiprocessors, stream.get());
  };
  const auto norm = [&](int) {
    launch_add_norm(residual.as<float>(), x.as<__half>(), weight.as<float>(), 1e-5f, tokens, model.hidden,
                    gate_up.as<__half>(), stream.get());
  };
  const auto silu = [&](int) {
    launch_silu_multiply(gate_up.as<__half>(), tokens, model.intermediate, x.as<__half>(), stream.get());
  };
  const auto time = [&](const std::function<void(int)>& enqueue) {
    enqueue(0);
    stream.synchronize();
    const Graph graph(stream, [&] {
      for (int layer = 0; layer < kLayers; ++layer) enqueue(layer);
    });
    return 1e6 * median_seconds(graph, stream, 9, 5) / kLayers;
  };
  const double attention_us = time(attend);
  const double keys = tokens * (first + (tokens + 1) / 2.0);
  const double operations = 4.0 * keys * model.heads.heads * model.heads.head_dim;
  const double bytes = 4.0 * (first + tokens) * model.heads.kv_heads * model.heads.head_dim;
  std::printf("%-13s %6d %6d  %8.2f %8.2f %8.2f %10.2f  %7.0f GB/s %6.1f TFLOP/s %8.2f\n", model.name, tokens,
              first, time(norm), time(rotate), time(silu), attention_us, 1e-3 * bytes / attention_us,
              1e-6 * operations / attention_us, time([&](int layer) {
                rotate(layer);
                attend(layer);
              }));
}

void run(int depth, int prompt) {
  const Device device = open_device(0);
  const Stream stream;
  std::printf("%s; microseconds per kernel in a graph of %d, medians of 9 x 5\n\n", device.name.c_str(),
              kLayers);
  std::printf("%-13s %6s %6s  %8s %8s %8s %10s  %33s\n", "model", "tokens", "depth", "norm", "rotate", "silu",
              "attention", "rotate + attention");
  for (const ModelShape& model : kModels) {
    measure(model, device, stream, depth, 1);
    measure(model, device, stream, 0, 1);
    measure(model, device, stream, 0, prompt);
  }
}

}  // namespace
}  // namespace nibble::cuda

int main(int count, char** arguments) {
  try {
    nibble::cuda::run(count > 1 ? std::atoi(arguments[1]) : 2048, count > 2 ? std::atoi(arguments[2]) : 2048);
  } catch (const nibble::Error& error) {
    std::fprintf(stderr, "cuda_step_bench: %s\n", error.what());
    return 1;
  }
}
