// The linears of decoder blocks that the GPU benchmarks multiply, and what they compare with: read bandwidth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/probes.h"

namespace nibble::cuda_bench {

struct Linear {
  int n, k;
};
struct Block {
  const char* name;
  std::vector<Linear> linears;  // q|k|v, o, gate|up, down
};

inline const std::vector<Block>& blocks() {
  static const std::vector<Block> all = {
      {"llama-2-7b", {{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}}},
      {"llama-2-13b", {{15360, 5120}, {5120, 5120}, {27648, 5120}, {5120, 13824}}},
      {"llama-2-70b", {{10240, 8192}, {8192, 8192}, {57344, 8192}, {8192, 28672}}},
      {"llama-3-8b", {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}}},
  };
  return all;
}

// Copies of weights take turns that are so large together that none is still in the L2 when its turn comes
// again.
inline constexpr size_t kRotatedBytes = size_t{400} << 20;  // more than six times the L2

// Bytes per second.
inline double read_bandwidth(const cuda::Device& device, const cuda::Stream& stream) {
  const cuda::Buffer data(size_t{4} << 30), sum(4);
  cuda::check(cuda::fill_random_bytes(data.data(), data.bytes(), 1, stream.get()), "filling");
  const cuda::Graph graph(stream, [&] {
    cuda::check(
        cuda::read_all(data.data(), data.bytes(), sum.as<uint32_t>(), device.multiprocessors, stream.get()),
        "reading");
  });
  return static_cast<double>(data.bytes()) / cuda::median_seconds(graph, stream, 7, 3);
}

}  // namespace nibble::cuda_bench
