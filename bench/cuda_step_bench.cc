// What a decoder layer does beside its linears, on the GPU: microseconds per kernel in a graph of many, for
// one token at some depth and for a prompt; then quik's quantization behind a norm and behind a gate, in a
// kernel of its own and in the step's. Arguments: depth (2048), prompt tokens (2048).
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/dense_linear.h"
#include "backend/cuda/device.h"
#include "base/error.h"
#include "formats/quik/cuda/few_tokens.h"
#include "formats/quik/cuda/quantize_step.h"

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

double time(const std::function<void(int)>& enqueue, const Stream& stream) {
  enqueue(0);
  stream.synchronize();
  const Graph graph(stream, [&] {
    for (int layer = 0; layer < kLayers; ++layer) enqueue(layer);
  });
  return 1e6 * median_seconds(graph, stream, 9, 5) / kLayers;
}

void measure(const ModelShape& model, const Device& device, const Stream& stream, int first, int tokens) {
  const int64_t pages = (first + tokens + kPagePositions - 1) / kPagePositions;
  const int64_t part = pages * kPagePositions * model.heads.kv_heads * model.heads.head_dim;
  const int64_t scales = part / model.heads.head_dim * ((model.heads.head_dim + 31) / 32);
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
  // The same memory as codes: any bytes are codes, and scales are random too.
  std::vector<LayerCache> caches, int8_caches;
  std::vector<CacheMaps> maps;
  const Buffer cache_scales = random(2 * scales), expanded = random(2 * part);
  LayerCache expanded_cache = {expanded.as<__half>(), expanded.as<__half>() + part,
                               device_table.as<int32_t>(), model.heads.kv_heads, model.heads.head_dim};
  const CacheMaps expanded_maps = make_cache_maps(expanded_cache, pages);
  for (int layer = 0; layer < kLayers; ++layer) {
    __half* const keys = cache.as<__half>() + 2 * part * layer;
    caches.push_back(
        {keys, keys + part, device_table.as<int32_t>(), model.heads.kv_heads, model.heads.head_dim});
    maps.push_back(make_cache_maps(caches.back(), pages));
    auto* const codes = reinterpret_cast<uint8_t*>(keys);
    int8_caches.push_back({.pages = device_table.as<int32_t>(),
                           .kv_heads = model.heads.kv_heads,
                           .head_dim = model.heads.head_dim,
                           .key_codes = codes,
                           .value_codes = codes + part,
                           .key_scales = cache_scales.as<__half>(),
                           .value_scales = cache_scales.as<__half>() + scales});
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
  const auto attend_int8 = [&](int layer) {
    attention({.shape = model.heads,
               .qkv = qkv.as<__half>(),
               .out = out.as<__half>(),
               .tokens = tokens,
               .first_position = position.as<int32_t>(),
               .scale = 0.1f,
               .cache = int8_caches[static_cast<size_t>(layer)],
               .expanded = expanded_cache,
               .table_pages = static_cast<int>(pages)},
              expanded_maps, workspace.data(), device.multiprocessors, stream.get());
  };
  const auto norm = [&](int) {
    launch_norm({residual.as<float>(), x.as<__half>(), residual.as<float>(), weight.as<float>(), 1e-5f},
                tokens, model.hidden, gate_up.as<__half>(), stream.get());
  };
  const auto silu = [&](int) {
    launch_silu_multiply(gate_up.as<__half>(), tokens, model.intermediate, x.as<__half>(), stream.get());
  };
  const double attention_us = time(attend, stream);
  const double keys = tokens * (first + (tokens + 1) / 2.0);
  const double operations = 4.0 * keys * model.heads.heads * model.heads.head_dim;
  const double bytes = 4.0 * (first + tokens) * model.heads.kv_heads * model.heads.head_dim;
  std::printf("%-13s %6d %6d  %8.2f %8.2f %8.2f %10.2f  %7.0f GB/s %6.1f TFLOP/s %8.2f %8.2f\n", model.name,
              tokens, first, time(norm, stream), time(rotate, stream), time(silu, stream), attention_us,
              1e-3 * bytes / attention_us, 1e-6 * operations / attention_us,
              time(
                  [&](int layer) {
                    rotate(layer);
                    attend(layer);
                  },
                  stream),
              time(attend_int8, stream));
}

// An input of `k` columns with outliers spread over them, and memory for its codes.
struct QuantizedInput {
  QuantizedInput(int columns, int outlier_count, int tokens)
      : k(columns), outliers(outlier_count), memory(quik_cuda::activation_bytes(tokens, k, outliers)) {
    std::vector<int32_t> at, place(static_cast<size_t>(k));
    for (int i = 0; i < outliers; ++i) at.push_back(static_cast<int32_t>(int64_t{i} * k / outliers));
    for (int i = 0, o = 0; i < k; ++i) {
      const bool outlier = o < outliers && at[static_cast<size_t>(o)] == i;
      place[static_cast<size_t>(i)] = outlier ? ~o : i - o;
      o += outlier ? 1 : 0;
    }
    const std::vector<uint32_t> word = quik_cuda::column_words(k, at);
    words = Buffer(4 * word.size());
    words.upload(word.data(), words.bytes());
    places = Buffer(4 * place.size());
    places.upload(place.data(), places.bytes());
    columns_at = Buffer(4 * at.size());
    columns_at.upload(at.data(), columns_at.bytes());
    out = quik_cuda::place_activations(memory.data(), tokens, k, outliers);
  }
  quik_cuda::Columns columns() const { return {k, outliers, words.as<uint32_t>(), columns_at.as<int32_t>()}; }
  void quantize(const __half* x, int tokens, int bits, const Stream& stream) const {
    if (tokens > 32) {
      return check(quik_cuda::launch_quantize(x, k, tokens, columns(), bits, out, stream.get()),
                   "quantizing");
    }
    check(quik_cuda::launch_quantize_few(
              x, tokens, k, {places.as<int32_t>()}, bits,
              {out.codes, out.code_stride, out.scales, out.zeros, out.outliers, out.outlier_stride},
              stream.get()),
          "quantizing");
  }
  void quantize(const InputStep& step, int tokens, int bits, const Stream& stream) const {
    const auto order = tokens > 32 ? quik_cuda::CodeOrder::kPrompt : quik_cuda::CodeOrder::kColumns;
    check(quik_cuda::launch_quantize_step(step, tokens, columns(), bits, order, out, stream.get()),
          "quantizing");
  }
  int k, outliers;
  Buffer memory, words, places, columns_at;
  quik_cuda::Activations out;
};

void measure_quantization(const ModelShape& model, const Stream& stream, int tokens) {
  const int outliers = model.hidden < 4096 ? 64 : 256;
  const QuantizedInput hidden(model.hidden, outliers, tokens),
      down(model.intermediate, model.intermediate / model.hidden * outliers, tokens);
  const Buffer update = random(int64_t{tokens} * model.hidden),
               x = random(int64_t{tokens} * model.intermediate),
               gate_up = random(int64_t{tokens} * 2 * model.intermediate);
  const Buffer residual(sizeof(float) * static_cast<size_t>(tokens) * static_cast<size_t>(model.hidden));
  const Buffer weight(sizeof(float) * static_cast<size_t>(model.hidden));
  check(cudaMemset(residual.data(), 0, residual.bytes()), "preparing");
  check(cudaMemset(weight.data(), 0, weight.bytes()), "preparing");
  check(cudaDeviceSynchronize(), "preparing");
  const NormStep norm = {residual.as<float>(), update.as<__half>(), residual.as<float>(), weight.as<float>(),
                         1e-5f};
  const GateStep gate = {gate_up.as<__half>()};
  const double norm_apart = time(
      [&](int) {
        launch_norm(norm, tokens, model.hidden, x.as<__half>(), stream.get());
        hidden.quantize(x.as<__half>(), tokens, 4, stream);
      },
      stream);
  const double gate_apart = time(
      [&](int) {
        launch_silu_multiply(gate.gate_up, tokens, model.intermediate, x.as<__half>(), stream.get());
        down.quantize(x.as<__half>(), tokens, 8, stream);
      },
      stream);
  std::printf("%-13s %6d  %11.2f %9.2f  %11.2f %9.2f\n", model.name, tokens, norm_apart,
              time([&](int) { hidden.quantize(norm, tokens, 4, stream); }, stream), gate_apart,
              time([&](int) { down.quantize(gate, tokens, 8, stream); }, stream));
}

void run(int depth, int prompt) {
  const Device device = open_device(0);
  const Stream stream;
  std::printf("%s; microseconds per kernel in a graph of %d, medians of 9 x 5\n\n", device.name.c_str(),
              kLayers);
  std::printf("%-13s %6s %6s  %8s %8s %8s %10s  %33s %8s\n", "model", "tokens", "depth", "norm", "rotate",
              "silu", "attention", "rotate + attention", "of q8");
  for (const ModelShape& model : kModels) {
    measure(model, device, stream, depth, 1);
    measure(model, device, stream, 0, 1);
    measure(model, device, stream, 0, prompt);
  }
  std::printf("\n%-13s %6s  %11s %9s  %11s %9s\n", "model", "tokens", "norm, quant", "together",
              "silu, quant", "together");
  for (const ModelShape& model : kModels) {
    for (const int tokens : {1, 8, 32, prompt}) measure_quantization(model, stream, tokens);
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
