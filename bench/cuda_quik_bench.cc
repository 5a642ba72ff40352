// QUIK's linears with many tokens on the GPU, beside cuBLASLt's best FP16 and INT8 products of the same
// shapes.
//
//   cuda_quik_bench [--tokens 2048,...] [--outliers 256] [--model llama-2-7b] [--configurations] [--lag 2]
//   [--load 1]
//
// FP16 in and out, the quantization of the activations counted, random data, the four linears of a decoder
// block in one graph, medians. down has floor(in / hidden) times the outlier columns. cuBLASLt's INT8 product
// is the bare one: INT8 in, INT32 out, over all columns. Each graph runs for --load seconds before it is
// timed, because at the power limit every load has a clock of its own. --configurations times every
// configuration of every linear instead, without such a run; --lag overrides that of the chosen ones.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/blas_lt.h"
#include "backend/cuda/device.h"
#include "backend/cuda/probes.h"
#include "base/error.h"
#include "formats/quik/cuda/product.h"

namespace nibble {
namespace {

using cuda::Buffer;
using quik_cuda::Configuration;

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

void fill_bytes(const Buffer& buffer, const cuda::Stream& stream) {
  cuda::check(cuda::fill_random_bytes(buffer.data(), buffer.bytes() / 4 * 4, 9, stream.get()), "filling");
}
void fill_halves(const Buffer& buffer, float scale, const cuda::Stream& stream) {
  cuda::check(cuda::fill_random_half(buffer.as<__half>(), buffer.bytes() / 2, scale, 4, stream.get()),
              "filling");
}

// One linear with synthetic weights.
struct QuikLinear {
  Linear linear;
  int outliers;
  group_int_a8_cuda::FewTokensOperand weights;
  Buffer slots, row_scales, code_sums, words, outlier_columns;

  QuikLinear(const Linear& of, int outlier_count, int weight_bits, const cuda::Stream& stream)
      : linear(of), outliers(outlier_count) {
    group_int_a8_cuda::FewTokensShape& shape = weights.shape;
    shape.n = linear.n;
    shape.columns = linear.k - outliers;
    shape.outliers = outliers;
    shape.weight_bits = weight_bits;
    slots = Buffer(static_cast<size_t>(shape.bytes()));
    fill_bytes(slots, stream);
    if (outliers > 0) {
      const auto width = static_cast<size_t>(shape.outlier_slots() * group_int_a8_cuda::kSlotCodeBytes);
      const Buffer halves(width * static_cast<size_t>(shape.tiles()));
      fill_halves(halves, 0.05f, stream);
      cuda::check(
          cudaMemcpy2DAsync(slots.as<uint8_t>() + shape.integer_slots() * shape.slot_bytes(),
                            static_cast<size_t>(shape.tile_bytes()), halves.data(), width, width,
                            static_cast<size_t>(shape.tiles()), cudaMemcpyDeviceToDevice, stream.get()),
          "filling");
      stream.synchronize();
    }
    const std::vector<float> scales(static_cast<size_t>(linear.n), 0.001f);
    const std::vector<int32_t> sums(static_cast<size_t>(linear.n), 17);
    std::vector<int32_t> columns;
    for (int o = 0; o < outliers; ++o) columns.push_back(3 + o * (linear.k / outliers));
    const std::vector<uint32_t> column_words = quik_cuda::column_words(linear.k, columns);
    row_scales = Buffer(4 * scales.size());
    row_scales.upload(scales.data(), 4 * scales.size());
    code_sums = Buffer(4 * sums.size());
    code_sums.upload(sums.data(), 4 * sums.size());
    words = Buffer(4 * column_words.size());
    words.upload(column_words.data(), 4 * column_words.size());
    outlier_columns = Buffer(4 * columns.size());
    outlier_columns.upload(columns.data(), 4 * columns.size());
    weights.slots = slots.as<uint8_t>();
    weights.row_scales = row_scales.as<float>();
    weights.code_sums = code_sums.as<int32_t>();
  }
  int integer_columns() const { return linear.k - outliers; }
  quik_cuda::Columns columns() const {
    return {linear.k, outliers, words.as<uint32_t>(), outlier_columns.as<int32_t>()};
  }
};

struct Bench {
  cuda::Device device = cuda::open_device(0);
  cuda::Stream stream;
  int lag = -1;             // of every product, where not negative
  double load_seconds = 1;  // that a graph runs before it is timed

  double seconds(const std::function<void()>& enqueue) const {
    const cuda::Graph graph(stream, enqueue);
    return cuda::median_seconds(graph, stream, kSamples, kReplays, load_seconds);
  }

  // cuBLASLt's products of a block in one graph.
  double blas(const Block& block, int tokens, cuda::BlasNumbers numbers) const {
    const bool half = numbers == cuda::BlasNumbers::kHalf;
    const size_t from = half ? 2 : 1, to = half ? 2 : 4;
    std::vector<Buffer> x, w, y;
    std::vector<cuda::HalfProduct> products;
    for (const Linear& l : block.linears) {
      x.emplace_back(from * static_cast<size_t>(tokens) * l.k);
      w.emplace_back(from * static_cast<size_t>(l.n) * l.k);
      y.emplace_back(to * static_cast<size_t>(tokens) * l.n);
      if (half) {
        fill_halves(x.back(), 1.0f, stream);
        fill_halves(w.back(), 0.05f, stream);
      } else {
        fill_bytes(x.back(), stream);
        fill_bytes(w.back(), stream);
      }
      products.emplace_back(tokens, l.n, l.k, x.back().as<__half>(), w.back().as<__half>(),
                            y.back().as<__half>(), stream.get(), 0, numbers);
    }
    return seconds([&] {
      for (size_t i = 0; i < products.size(); ++i)
        products[i].enqueue(x[i].as<__half>(), w[i].as<__half>(), y[i].as<__half>(), stream.get());
    });
  }

  struct Times {
    double quik, product;
  };
  Times quik(const Block& block, int tokens, int outliers, int weight_bits) const {
    std::vector<std::unique_ptr<QuikLinear>> linears;
    std::vector<Buffer> x, memory, y;
    std::vector<quik_cuda::Activations> activations;
    std::vector<quik_cuda::Product> products;
    for (const Linear& l : block.linears) {
      linears.push_back(
          std::make_unique<QuikLinear>(l, outliers * std::max(1, l.k / block.hidden), weight_bits, stream));
      const QuikLinear& linear = *linears.back();
      x.emplace_back(2 * static_cast<size_t>(tokens) * l.k);
      fill_halves(x.back(), 1.0f, stream);
      memory.emplace_back(quik_cuda::activation_bytes(tokens, linear.integer_columns(), linear.outliers));
      activations.push_back(quik_cuda::place_activations(memory.back().data(), tokens,
                                                         linear.integer_columns(), linear.outliers));
      y.emplace_back(2 * static_cast<size_t>(tokens) * l.n);
      Configuration configuration = quik_cuda::choose(tokens, linear.weights.shape, device.multiprocessors);
      if (lag >= 0) configuration.lag = lag;
      products.emplace_back(linear.weights, activations.back(), tokens, y.back().as<__half>(), l.n,
                            configuration, device.multiprocessors);
    }
    const int activation_bits = weight_bits;
    const auto quantize = [&](size_t i) {
      cuda::check(
          quik_cuda::launch_quantize(x[i].as<__half>(), linears[i]->linear.k, tokens, linears[i]->columns(),
                                     activation_bits, activations[i], stream.get()),
          "quantizing");
    };
    const auto multiply = [&](size_t i) {
      cuda::check(products[i].launch(nullptr, stream.get()), "multiplying");
    };
    Times times = {};
    times.quik = seconds([&] {
      for (size_t i = 0; i < products.size(); ++i) {
        quantize(i);
        multiply(i);
      }
    });
    times.product = seconds([&] {
      for (size_t i = 0; i < products.size(); ++i) multiply(i);
    });
    return times;
  }

  void configurations(const Block& block, int tokens, int outliers) const {
    for (const Linear& l : block.linears) {
      for (const int bits : {8, 4}) {
        const QuikLinear linear(l, outliers * std::max(1, l.k / block.hidden), bits, stream);
        const Buffer x(2 * static_cast<size_t>(tokens) * l.k), y(2 * static_cast<size_t>(tokens) * l.n),
            memory(quik_cuda::activation_bytes(tokens, linear.integer_columns(), linear.outliers));
        fill_halves(x, 1.0f, stream);
        const quik_cuda::Activations activations =
            quik_cuda::place_activations(memory.data(), tokens, linear.integer_columns(), linear.outliers);
        const auto quantize = [&] {
          cuda::check(quik_cuda::launch_quantize(x.as<__half>(), l.k, tokens, linear.columns(), bits,
                                                 activations, stream.get()),
                      "quantizing");
        };
        std::printf("%-12s %6d %6dx%-6d %d bits: quantize %.1f us;", block.name, tokens, l.n, l.k, bits,
                    1e6 * seconds(quantize));
        const Configuration chosen = quik_cuda::choose(tokens, linear.weights.shape, device.multiprocessors);
        for (Configuration c : quik_cuda::configurations()) {
          const bool is_chosen =
              c.tile_tokens == chosen.tile_tokens && c.share == chosen.share && c.split == chosen.split;
          std::printf(" %s%d/%d/%d", is_chosen ? "*" : "", c.tile_tokens, c.share, c.split);
          for (const int blocks_behind : {0, 1, 2, 3}) {
            c.lag = blocks_behind;
            const quik_cuda::Product product(linear.weights, activations, tokens, y.as<__half>(), l.n, c,
                                             device.multiprocessors);
            std::printf(" %.1f", 1e6 * seconds([&] {
                                   cuda::check(product.launch(nullptr, stream.get()), "multiplying");
                                 }));
          }
          std::printf(";");
        }
        std::printf("\n");
      }
    }
  }
};

int run(const std::vector<int>& token_counts, int outliers, const std::string& model, bool configurations,
        int lag, double load_seconds) {
  Bench bench;
  bench.lag = lag;
  bench.load_seconds = configurations ? 0 : load_seconds;
  const cuda::Device& device = bench.device;
  std::printf(
      "%s; driver %d, CUDA %d, cuBLASLt %zu; four linears in one graph, random data, each graph after "
      "%.1f s of itself, medians of %d x %d, %d outlier columns\n\n",
      device.name.c_str(), device.driver_version, device.runtime_version, cuda::blas_lt_version(),
      bench.load_seconds, kSamples, kReplays, outliers);
  if (!configurations) {
    std::printf("%-12s %6s %9s %9s %6s | %9s %6s %10s %6s | %9s %6s %10s %6s\n", "model", "tokens", "FP16 us",
                "INT8 us", "x FP16", "quik-8b", "x FP16", "product us", "TOP/s", "quik-4b", "x FP16",
                "product us", "TOP/s");
  }
  for (const Block& block : blocks()) {
    if (!model.empty() && model != block.name) continue;
    for (const int tokens : token_counts) {
      if (configurations) {
        bench.configurations(block, tokens, outliers);
        continue;
      }
      double operations = 0;
      for (const Linear& l : block.linears) operations += 2.0 * tokens * l.n * l.k;
      const double half = bench.blas(block, tokens, cuda::BlasNumbers::kHalf);
      const double int8 = bench.blas(block, tokens, cuda::BlasNumbers::kInt8);
      std::printf("%-12s %6d %9.1f %9.1f %6.2f", block.name, tokens, 1e6 * half, 1e6 * int8, half / int8);
      for (const int bits : {8, 4}) {
        const Bench::Times times = bench.quik(block, tokens, outliers, bits);
        std::printf(" | %9.1f %6.2f %10.1f %6.0f", 1e6 * times.quik, half / times.quik, 1e6 * times.product,
                    1e-12 * operations / times.product);
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int count, char** arguments) {
  std::vector<int> tokens = {2048};
  int outliers = 256;
  std::string model;
  bool configurations = false;
  int lag = -1;
  double load_seconds = 1;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--outliers") == 0 && i + 1 < count) {
      outliers = std::atoi(arguments[++i]);
    } else if (std::strcmp(arguments[i], "--lag") == 0 && i + 1 < count) {
      lag = std::atoi(arguments[++i]);
    } else if (std::strcmp(arguments[i], "--load") == 0 && i + 1 < count) {
      load_seconds = std::atof(arguments[++i]);
    } else if (std::strcmp(arguments[i], "--model") == 0 && i + 1 < count) {
      model = arguments[++i];
    } else if (std::strcmp(arguments[i], "--configurations") == 0) {
      configurations = true;
    } else if (std::strcmp(arguments[i], "--tokens") == 0 && i + 1 < count) {
      tokens.clear();
      for (char* at = arguments[++i]; *at != '\0';) {
        tokens.push_back(static_cast<int>(std::strtol(at, &at, 10)));
        if (*at == ',') ++at;
      }
    } else {
      std::fprintf(stderr,
                   "usage: cuda_quik_bench [--tokens 2048,...] [--outliers 256] [--model llama-2-7b] "
                   "[--configurations] [--lag 2] [--load 1]\n");
      return 2;
    }
  }
  try {
    return nibble::run(tokens, outliers, model, configurations, lag, load_seconds);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_quik_bench: %s\n", error.what());
    return 1;
  }
}
