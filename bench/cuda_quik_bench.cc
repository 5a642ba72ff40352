// QUIK's linear with many tokens on the GPU, beside cuBLASLt's best FP16 product of the same shapes.
//
//   cuda_quik_bench [--tokens 2048,...] [--outliers 256]
//
// FP16 in and out, the quantization of the activations counted, weights as 8-bit codes (quik-8b, and quik-4b
// with its codes in bytes), random data, the four linears of a decoder block in one graph, medians. down has
// floor(in / hidden) times the outlier columns.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "backend/cuda/blas_lt.h"
#include "backend/cuda/device.h"
#include "backend/cuda/probes.h"
#include "base/error.h"
#include "formats/quik/cuda/product.h"

namespace nibble {
namespace {

using cuda::Buffer;

struct Linear {
  int n, k;
};
struct Block {
  const char* name;
  int hidden;
  std::vector<Linear> linears;
};

const std::vector<Block>& blocks() {
  static const std::vector<Block> all = {
      {"llama-2-7b", 4096, {{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}}},
      {"llama-2-13b", 5120, {{15360, 5120}, {5120, 5120}, {27648, 5120}, {5120, 13824}}},
      {"llama-2-70b", 8192, {{10240, 8192}, {8192, 8192}, {57344, 8192}, {8192, 28672}}},
  };
  return all;
}

constexpr int kSamples = 9, kReplays = 5;

// One linear with synthetic operands.
struct QuikLinear {
  quik_cuda::Weights weights;
  quik_cuda::Activations activations;
  std::vector<Buffer> buffers;
  std::vector<quik_cuda::Product> product;

  QuikLinear(const Linear& linear, int outliers, int tokens, const cuda::Stream& stream) {
    const auto keep = [&](size_t bytes) {
      buffers.emplace_back(bytes);
      cuda::check(cuda::fill_random_bytes(buffers.back().data(), bytes / 4 * 4, 9, stream.get()), "filling");
      return buffers.back().data();
    };
    const auto halves = [&](size_t count, float scale) {
      buffers.emplace_back(2 * count);
      cuda::check(cuda::fill_random_half(buffers.back().as<__half>(), count, scale, 4, stream.get()),
                  "filling");
      return buffers.back().as<__half>();
    };
    const auto upload = [&](const std::vector<int32_t>& values) {
      buffers.emplace_back(4 * values.size() + 4);
      buffers.back().upload(values.data(), 4 * values.size());
      return buffers.back().as<int32_t>();
    };
    const int k_int = linear.k - outliers;
    std::vector<int32_t> integer_columns, outlier_columns;
    for (int32_t column = 0; column < linear.k; ++column) {
      const bool outlier = outliers > 0 && column % (linear.k / outliers) == 3 &&
                           static_cast<int>(outlier_columns.size()) < outliers;
      (outlier ? outlier_columns : integer_columns).push_back(column);
    }
    const std::vector<int32_t> ones(static_cast<size_t>(linear.n), 0x3A83126F);  // the bits of 0.001
    weights = {.n = linear.n,
               .k_int = k_int,
               .outliers = outliers,
               .codes = static_cast<const int8_t*>(keep(static_cast<size_t>(linear.n) * k_int)),
               .code_stride = k_int,
               .scales = reinterpret_cast<const float*>(upload(ones)),
               .code_sums = upload(std::vector<int32_t>(static_cast<size_t>(linear.n), 17)),
               .outlier_weights = halves(static_cast<size_t>(linear.n) * outliers + 8, 0.05f),
               .outlier_stride = outliers,
               .integer_columns = upload(integer_columns),
               .outlier_columns = upload(outlier_columns)};
    activations = {.tokens = tokens,
                   .codes = static_cast<uint8_t*>(keep(static_cast<size_t>(tokens) * k_int)),
                   .code_stride = k_int,
                   .scales = static_cast<float*>(keep(4 * static_cast<size_t>(tokens))),
                   .zeros = static_cast<int32_t*>(keep(4 * static_cast<size_t>(tokens))),
                   .outliers = halves(static_cast<size_t>(tokens) * outliers + 8, 1.0f),
                   .outlier_stride = outliers};
    product.emplace_back(weights, activations);
  }
};

int run(const std::vector<int>& token_counts, int outliers) {
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  std::printf(
      "%s; driver %d, CUDA %d, cuBLASLt %zu; four linears in one graph, random data, medians of %d x %d\n\n",
      device.name.c_str(), device.driver_version, device.runtime_version, cuda::blas_lt_version(), kSamples,
      kReplays);
  std::printf("%-12s %6s %9s %10s %9s %8s %12s %14s\n", "model", "tokens", "outliers", "FP16 us", "QUIK us",
              "x FP16", "product us", "product TOP/s");
  for (const Block& block : blocks()) {
    for (const int tokens : token_counts) {
      double half = 0, quik = 0, product_only = 0, operations = 0;
      for (const Linear& linear : block.linears) {
        operations += 2.0 * tokens * linear.n * linear.k;
        Buffer x(2 * static_cast<size_t>(tokens) * linear.k), w(2 * static_cast<size_t>(linear.n) * linear.k),
            y(2 * static_cast<size_t>(tokens) * linear.n);
        cuda::check(cuda::fill_random_half(x.as<__half>(), x.bytes() / 2, 1.0f, 1, stream.get()), "filling");
        cuda::check(cuda::fill_random_half(w.as<__half>(), w.bytes() / 2, 0.05f, 2, stream.get()), "filling");
        {
          const cuda::HalfProduct product(tokens, linear.n, linear.k, x.as<__half>(), w.as<__half>(),
                                          y.as<__half>(), stream.get());
          const cuda::Graph graph(
              stream, [&] { product.enqueue(x.as<__half>(), w.as<__half>(), y.as<__half>(), stream.get()); });
          half += cuda::median_seconds(graph, stream, kSamples, kReplays);
        }
        const QuikLinear made(linear, outliers * std::max(1, linear.k / block.hidden), tokens, stream);
        const auto multiply = [&] {
          cuda::check(made.product[0].launch(y.as<__half>(), nullptr, device.multiprocessors, stream.get()),
                      "multiplying");
        };
        const cuda::Graph both(stream, [&] {
          cuda::check(
              quik_cuda::launch_quantize(x.as<__half>(), made.weights, 8, made.activations, stream.get()),
              "quantizing");
          multiply();
        });
        quik += cuda::median_seconds(both, stream, kSamples, kReplays);
        const cuda::Graph alone(stream, multiply);
        product_only += cuda::median_seconds(alone, stream, kSamples, kReplays);
      }
      std::printf("%-12s %6d %9d %10.1f %9.1f %8.2f %12.1f %14.0f\n", block.name, tokens, outliers,
                  1e6 * half, 1e6 * quik, half / quik, 1e6 * product_only, 1e-12 * operations / product_only);
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int count, char** arguments) {
  std::vector<int> tokens = {2048};
  int outliers = 256;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--outliers") == 0 && i + 1 < count) {
      outliers = std::atoi(arguments[++i]);
    } else if (std::strcmp(arguments[i], "--tokens") == 0 && i + 1 < count) {
      tokens.clear();
      for (char* at = arguments[++i]; *at != '\0';) {
        tokens.push_back(static_cast<int>(std::strtol(at, &at, 10)));
        if (*at == ',') ++at;
      }
    } else {
      std::fprintf(stderr, "usage: cuda_quik_bench [--tokens 2048,...] [--outliers 256]\n");
      return 2;
    }
  }
  try {
    return nibble::run(tokens, outliers);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_quik_bench: %s\n", error.what());
    return 1;
  }
}
