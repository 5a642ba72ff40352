// 4-bit weights times few FP16 tokens on the GPU, beside cuBLASLt's best FP16 product of the same shapes.
//
//   cuda_decode_bench [--tokens 1,2,4] [--sweep]
//
// The four linears of a decoder block (q|k|v, o, gate|up, down) run one after another in a graph over several
// copies of the weights, so that none is still in the L2 when its turn comes again. Random data; medians.
// Prints for each model the time of one block's linears, the ratio to FP16 in the same run, and the share of
// the read bandwidth measured first.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "backend/cuda/blas_lt.h"
#include "backend/cuda/device.h"
#include "backend/cuda/probes.h"
#include "base/error.h"
#include "formats/group_int/cuda/decode.h"
#include "formats/group_int/cuda/decode_shape.h"

namespace nibble {
namespace {

using cuda::Buffer;
using group_int_cuda::DecodePlan;
using group_int_cuda::DecodeShape;

struct Linear {
  int n, k;
};
struct Block {
  const char* name;
  std::vector<Linear> linears;
};

const std::vector<Block>& blocks() {
  static const std::vector<Block> all = {
      {"llama-2-7b", {{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}}},
      {"llama-2-13b", {{15360, 5120}, {5120, 5120}, {27648, 5120}, {5120, 13824}}},
      {"llama-2-70b", {{10240, 8192}, {8192, 8192}, {57344, 8192}, {8192, 28672}}},
      {"llama-3-8b", {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}}},
  };
  return all;
}

constexpr size_t kRotatedBytes = size_t{400} << 20;  // more than six times the L2
constexpr int kSamples = 15, kReplays = 20;

int copies_of(size_t bytes) { return static_cast<int>(kRotatedBytes / bytes) + 1; }

double read_bandwidth(const cuda::Device& device, const cuda::Stream& stream) {
  const Buffer data(size_t{4} << 30), sum(4);
  cuda::check(cuda::fill_random_bytes(data.data(), data.bytes(), 1, stream.get()), "filling");
  const cuda::Graph graph(stream, [&] {
    cuda::check(
        cuda::read_all(data.data(), data.bytes(), sum.as<uint32_t>(), device.multiprocessors, stream.get()),
        "reading");
  });
  return static_cast<double>(data.bytes()) / cuda::median_seconds(graph, stream, 7, 3);
}

struct Operands {
  std::vector<Buffer> x, y;
};

Operands make_operands(const Block& block, int tokens, const cuda::Stream& stream) {
  Operands made;
  for (const Linear& linear : block.linears) {
    made.x.emplace_back(sizeof(__half) * tokens * linear.k);
    made.y.emplace_back(sizeof(__half) * tokens * linear.n);
    cuda::check(cuda::fill_random_half(made.x.back().as<__half>(), static_cast<size_t>(tokens) * linear.k,
                                       1.0f, 2, stream.get()),
                "filling");
  }
  return made;
}

double time_half(const Block& block, int tokens, const cuda::Stream& stream) {
  const Operands operands = make_operands(block, tokens, stream);
  size_t bytes = 0;
  for (const Linear& linear : block.linears) bytes += sizeof(__half) * linear.n * linear.k;
  const int copies = copies_of(bytes);
  std::vector<Buffer> weights;
  std::vector<cuda::HalfProduct> products;
  for (int copy = 0; copy < copies; ++copy) {
    for (size_t i = 0; i < block.linears.size(); ++i) {
      const Linear& linear = block.linears[i];
      weights.emplace_back(sizeof(__half) * linear.n * linear.k);
      cuda::check(cuda::fill_random_half(weights.back().as<__half>(),
                                         static_cast<size_t>(linear.n) * linear.k, 0.05f, 3, stream.get()),
                  "filling");
      if (copy == 0) {
        products.emplace_back(tokens, linear.n, linear.k, operands.x[i].as<__half>(),
                              weights.back().as<__half>(), operands.y[i].as<__half>(), stream.get());
      }
    }
  }
  const cuda::Graph graph(stream, [&] {
    for (size_t i = 0; i < weights.size(); ++i) {
      const size_t which = i % block.linears.size();
      products[which].enqueue(operands.x[which].as<__half>(), weights[i].as<__half>(),
                              operands.y[which].as<__half>(), stream.get());
    }
  });
  return cuda::median_seconds(graph, stream, kSamples, kReplays) / copies;
}

size_t packed_bytes(const Block& block) {
  size_t bytes = 0;
  for (const Linear& linear : block.linears)
    bytes += static_cast<size_t>(DecodeShape{linear.n, linear.k}.bytes());
  return bytes;
}

// Random codes with scales of 2^-7: any bytes are codes, but not any bytes are scales.
Buffer synthetic_weights(const Linear& linear, const cuda::Stream& stream) {
  const DecodeShape shape = {linear.n, linear.k};
  Buffer weights(static_cast<size_t>(shape.bytes()));
  cuda::check(cuda::fill_random_bytes(weights.data(), weights.bytes(), 5, stream.get()), "filling");
  const int64_t chunk_groups = group_int_cuda::kChunkGroups;
  const int64_t group_bytes = group_int_cuda::kCodeBytes + group_int_cuda::kScaleBytes;
  const int64_t full = shape.groups() / chunk_groups, rest = shape.groups() % chunk_groups;
  std::vector<uint16_t> scales(static_cast<size_t>(chunk_groups * 16), 0x2000);
  for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
    uint8_t* const at = weights.as<uint8_t>() + tile * shape.tile_bytes();
    for (int64_t chunk = 0; chunk < full + (rest > 0 ? 1 : 0); ++chunk) {
      const int64_t groups = chunk < full ? chunk_groups : rest;
      cuda::check(
          cudaMemcpyAsync(at + chunk * chunk_groups * group_bytes + groups * group_int_cuda::kCodeBytes,
                          scales.data(), static_cast<size_t>(groups) * group_int_cuda::kScaleBytes,
                          cudaMemcpyHostToDevice, stream.get()),
          "filling");
    }
  }
  stream.synchronize();
  return weights;
}

double time_decode(const Block& block, int tokens, const DecodePlan& plan, const cuda::Device& device,
                   const cuda::Stream& stream, const std::vector<Buffer>& weights) {
  const Operands operands = make_operands(block, tokens, stream);
  const cuda::Graph graph(stream, [&] {
    for (size_t i = 0; i < weights.size(); ++i) {
      const size_t which = i % block.linears.size();
      cuda::check(group_int_cuda::launch_decode({.weights = weights[i].as<uint8_t>(),
                                                 .x = operands.x[which].as<__half>(),
                                                 .y = operands.y[which].as<__half>(),
                                                 .n = block.linears[which].n,
                                                 .k = block.linears[which].k,
                                                 .tokens = tokens},
                                                plan, device.multiprocessors, stream.get()),
                  "launching");
    }
  });
  return cuda::median_seconds(graph, stream, kSamples, kReplays) /
         (static_cast<double>(weights.size()) / static_cast<double>(block.linears.size()));
}

std::vector<Buffer> synthetic_block(const Block& block, const cuda::Stream& stream) {
  std::vector<Buffer> weights;
  for (int copy = 0; copy < copies_of(packed_bytes(block)); ++copy) {
    for (const Linear& linear : block.linears) weights.push_back(synthetic_weights(linear, stream));
  }
  return weights;
}

int run(const std::vector<int>& token_counts, bool sweep) {
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  const double bandwidth = read_bandwidth(device, stream);
  std::printf("%s, %d multiprocessors; driver %d, CUDA %d, cuBLASLt %zu; reading %.2f TB/s\n",
              device.name.c_str(), device.multiprocessors, device.driver_version, device.runtime_version,
              cuda::blas_lt_version(), 1e-12 * bandwidth);
  std::printf("four linears in one graph, weights rotated, random data, medians of %d x %d replays\n\n",
              kSamples, kReplays);
  std::printf("%-12s %6s %10s %10s %8s %8s %9s  %s\n", "model", "tokens", "FP16 us", "W4A16 us", "x FP16",
              "TB/s", "of read", "plan");
  const std::vector<DecodePlan> plans =
      sweep ? std::vector<DecodePlan>{{6, 1}, {8, 1}, {10, 1}, {12, 1}, {16, 1}, {20, 1},
                                      {4, 2}, {5, 2}, {6, 2},  {8, 2},  {10, 2}}
            : std::vector<DecodePlan>{DecodePlan{}};
  for (const Block& block : blocks()) {
    const std::vector<Buffer> weights = synthetic_block(block, stream);
    for (const int tokens : token_counts) {
      const double half = time_half(block, tokens, stream);
      for (const DecodePlan& plan : plans) {
        double seconds = 0;
        try {
          seconds = time_decode(block, tokens, plan, device, stream, weights);
        } catch (const Error& error) {
          std::printf("%-12s %6d  plan %dx%d: %s\n", block.name, tokens, plan.stages,
                      plan.blocks_per_multiprocessor, error.what());
          continue;
        }
        const double rate = static_cast<double>(packed_bytes(block)) / seconds;
        std::printf("%-12s %6d %10.1f %10.1f %8.2f %8.2f %7.0f %%  %d stages, %d per SM\n", block.name,
                    tokens, 1e6 * half, 1e6 * seconds, half / seconds, 1e-12 * rate, 100 * rate / bandwidth,
                    plan.stages, plan.blocks_per_multiprocessor);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int count, char** arguments) {
  std::vector<int> tokens = {1, 2, 4};
  bool sweep = false;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--sweep") == 0) {
      sweep = true;
    } else if (std::strcmp(arguments[i], "--tokens") == 0 && i + 1 < count) {
      tokens.clear();
      for (char* at = arguments[++i]; *at != '\0';) {
        tokens.push_back(static_cast<int>(std::strtol(at, &at, 10)));
        if (*at == ',') ++at;
      }
    } else {
      std::fprintf(stderr, "usage: cuda_decode_bench [--tokens 1,2,4] [--sweep]\n");
      return 2;
    }
  }
  try {
    return nibble::run(tokens, sweep);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_decode_bench: %s\n", error.what());
    return 1;
  }
}
