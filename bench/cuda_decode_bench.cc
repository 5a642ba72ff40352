// 4-bit weights times FP16 tokens on the GPU, beside cuBLASLt's best FP16 product of the same shapes.
//
//   cuda_decode_bench [--models 7b,13b,70b,8b] [--tokens 1,2,4] [--sweep] [--load 1]
//
// The four linears of a decoder block (q|k|v, o, gate|up, down) run one after another in a graph over several
// copies of the weights, so that none is still in the L2 when its turn comes again. Random data; medians.
// Prints for each model the time of one block's linears, the ratio to FP16 in the same run, and the share of
// the read bandwidth measured first. Each graph runs for --load seconds before it is timed, because at the
// power limit every load has a clock of its own. --sweep times each linear by itself with every plan instead,
// without such a load unless one is asked for: what the table in choose.cc is made from.
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
#include "cuda_decoder_linears.h"
#include "formats/group_int/cuda/choose.h"
#include "formats/group_int/cuda/decode_shape.h"
#include "formats/group_int/cuda/expand.h"

namespace nibble {
namespace {

using cuda::Buffer;
using cuda_bench::Block;
using cuda_bench::blocks;
using cuda_bench::kRotatedBytes;
using cuda_bench::Linear;
using group_int_cuda::Choice;
using group_int_cuda::DecodeShape;
using group_int_cuda::Method;

constexpr size_t kSliceBytes = size_t{256} << 20;  // of an expansion

// Random weights that every shape takes its own from, one after another: as FP16, and as packed blocks.
class Pool {
 public:
  Pool(size_t half_bytes, size_t packed_bytes, const cuda::Stream& stream)
      : half_(half_bytes), packed_(packed_bytes / kBlock * kBlock) {
    cuda::check(cuda::fill_random_half(half_.as<__half>(), half_bytes / 2, 0.05f, 3, stream.get()),
                "filling");
    cuda::check(cuda::fill_random_bytes(packed_.data(), packed_.bytes(), 5, stream.get()), "filling");
    // Any bytes are codes, but not any bytes are scales: 0x2020 is 0.0081.
    cuda::check(cudaMemset2DAsync(packed_.as<uint8_t>() + group_int_cuda::kCodeBytes, kBlock, 0x20,
                                  group_int_cuda::kScaleBytes, packed_.bytes() / kBlock, stream.get()),
                "filling");
    stream.synchronize();
  }
  void restart() { half_at_ = packed_at_ = 0; }
  const __half* half(const Linear& linear) {
    return reinterpret_cast<const __half*>(take(half_, half_at_, size_t{2} * linear.n * linear.k));
  }
  const uint8_t* packed(const Linear& linear) {
    return take(packed_, packed_at_, static_cast<size_t>(DecodeShape{linear.n, linear.k}.bytes()));
  }

 private:
  static constexpr size_t kBlock = group_int_cuda::kCodeBytes + group_int_cuda::kScaleBytes;
  static const uint8_t* take(const Buffer& buffer, size_t& at, size_t bytes) {
    if (at + bytes > buffer.bytes()) at = 0;
    const uint8_t* const taken = buffer.as<uint8_t>() + at;
    at += bytes;
    return taken;
  }
  Buffer half_, packed_;
  size_t half_at_ = 0, packed_at_ = 0;
};

size_t packed_bytes(const std::vector<Linear>& linears) {
  size_t bytes = 0;
  for (const Linear& linear : linears) bytes += static_cast<size_t>(DecodeShape{linear.n, linear.k}.bytes());
  return bytes;
}

struct Tokens {
  std::vector<Buffer> x, y;
  Tokens(const std::vector<Linear>& linears, int tokens, const cuda::Stream& stream) {
    for (const Linear& linear : linears) {
      x.emplace_back(sizeof(__half) * tokens * linear.k);
      y.emplace_back(sizeof(__half) * tokens * linear.n);
      cuda::check(cuda::fill_random_half(x.back().as<__half>(), static_cast<size_t>(tokens) * linear.k, 1.0f,
                                         2, stream.get()),
                  "filling");
    }
  }
};

struct Timing {
  int samples;
  double seconds;       // of all samples, about
  double load_seconds;  // that a graph runs before
};
constexpr Timing kCareful = {.samples = 15, .seconds = 60e-3, .load_seconds = 1};
constexpr Timing kQuick = {.samples = 3, .seconds = 3e-3, .load_seconds = 0};

// Median time of one pass over the linears.
double time_passes(const cuda::Stream& stream, int copies, const Timing& timing,
                   const std::function<void()>& enqueue) {
  const cuda::Graph graph(stream, enqueue);
  const double once = cuda::median_seconds(graph, stream, 1, 1);
  const int replays = std::clamp(static_cast<int>(timing.seconds / once / timing.samples), 1, 20);
  return cuda::median_seconds(graph, stream, once > 2e-2 ? 3 : timing.samples, replays, timing.load_seconds) /
         copies;
}

double time_half(const std::vector<Linear>& linears, int tokens, const Timing& timing, Pool& pool,
                 const cuda::Stream& stream) {
  const Tokens operands(linears, tokens, stream);
  size_t bytes = 0;
  for (const Linear& linear : linears) bytes += size_t{2} * linear.n * linear.k;
  const int copies = static_cast<int>(kRotatedBytes / bytes) + 1;
  std::vector<cuda::HalfProduct> products;
  pool.restart();
  for (size_t i = 0; i < linears.size(); ++i) {
    products.emplace_back(tokens, linears[i].n, linears[i].k, operands.x[i].as<__half>(),
                          pool.half(linears[i]), operands.y[i].as<__half>(), stream.get());
  }
  pool.restart();
  return time_passes(stream, copies, timing, [&] {
    for (int copy = 0; copy < copies; ++copy) {
      for (size_t i = 0; i < linears.size(); ++i) {
        products[i].enqueue(operands.x[i].as<__half>(), pool.half(linears[i]), operands.y[i].as<__half>(),
                            stream.get());
      }
    }
  });
}

// What kernels need beside their operands.
struct Scratch {
  Buffer workspace, flags, slice;
  Scratch(size_t slice_bytes, const cuda::Device& device)
      : workspace(group_int_cuda::tile_workspace_bytes(device.multiprocessors)),
        flags(sizeof(uint32_t) * group_int_cuda::kTileFlags),
        slice(slice_bytes) {
    cuda::check(cudaMemset(flags.data(), 0, flags.bytes()), "filling");
  }
};

// One linear's way through the kernels; the same calls as a model makes.
class Product {
 public:
  Product(const Linear& linear, int tokens, const Choice& choice, const Buffer& x, const Buffer& y,
          const Scratch& scratch, const cuda::Device& device, const cuda::Stream& stream)
      : linear_(linear), tokens_(tokens), choice_(choice), x_(x), y_(y), scratch_(scratch), device_(device) {
    if (choice.method != Method::kExpand) return;
    rows_ = group_int_cuda::expand_slice_rows(linear.n, linear.k, scratch.slice.bytes());
    for (int rows : {rows_, linear.n % rows_}) {
      if (rows == 0) continue;
      slices_.emplace_back(tokens, rows, linear.k, x.as<__half>(), scratch.slice.as<__half>(), y.as<__half>(),
                           stream.get(), linear.n);
    }
  }
  void enqueue(const uint8_t* weights, const cuda::Stream& stream) const {
    const auto [n, k] = linear_;
    switch (choice_.method) {
      case Method::kDecode:
        cuda::check(group_int_cuda::launch_decode(problem(weights), choice_.decode, device_.multiprocessors,
                                                  stream.get()),
                    "launching");
        break;
      case Method::kFew:
        cuda::check(
            group_int_cuda::launch_few(problem(weights), choice_.few, device_.multiprocessors, stream.get()),
            "launching");
        break;
      case Method::kTile:
        cuda::check(group_int_cuda::launch_tile({.weights = weights,
                                                 .x = x_.as<__half>(),
                                                 .y = y_.as<__half>(),
                                                 .n = n,
                                                 .k = k,
                                                 .tokens = tokens_,
                                                 .workspace = scratch_.workspace.data(),
                                                 .flags = scratch_.flags.as<uint32_t>()},
                                                choice_.tile, device_.multiprocessors, stream.get()),
                    "launching");
        break;
      case Method::kExpand:
        for (int first = 0; first < n; first += rows_) {
          const int rows = std::min(rows_, n - first);
          cuda::check(group_int_cuda::launch_expand({.weights = weights,
                                                     .w = scratch_.slice.as<__half>(),
                                                     .n = n,
                                                     .k = k,
                                                     .first_row = first,
                                                     .rows = rows},
                                                    device_.multiprocessors, stream.get()),
                      "launching");
          slices_[rows == rows_ ? 0 : 1].enqueue(x_.as<__half>(), scratch_.slice.as<__half>(),
                                                 y_.as<__half>() + first, stream.get());
        }
        break;
    }
  }

 private:
  group_int_cuda::DecodeProblem problem(const uint8_t* weights) const {
    return {.weights = weights,
            .x = x_.as<__half>(),
            .y = y_.as<__half>(),
            .n = linear_.n,
            .k = linear_.k,
            .tokens = tokens_};
  }
  Linear linear_;
  int tokens_;
  Choice choice_;
  const Buffer &x_, &y_;
  const Scratch& scratch_;
  const cuda::Device& device_;
  int rows_ = 0;
  std::vector<cuda::HalfProduct> slices_;
};

double time_packed(const std::vector<Linear>& linears, int tokens, const std::vector<Choice>& choices,
                   const Timing& timing, Pool& pool, const Scratch& scratch, const cuda::Device& device,
                   const cuda::Stream& stream) {
  const Tokens operands(linears, tokens, stream);
  const int copies = static_cast<int>(kRotatedBytes / packed_bytes(linears)) + 1;
  std::vector<Product> products;
  for (size_t i = 0; i < linears.size(); ++i) {
    products.emplace_back(linears[i], tokens, choices[i], operands.x[i], operands.y[i], scratch, device,
                          stream);
  }
  pool.restart();
  return time_passes(stream, copies, timing, [&] {
    for (int copy = 0; copy < copies; ++copy) {
      for (size_t i = 0; i < linears.size(); ++i) products[i].enqueue(pool.packed(linears[i]), stream);
    }
  });
}

std::vector<Choice> all_choices(int tokens, const Linear& linear) {
  std::vector<Choice> made;
  if (tokens <= group_int_cuda::kMaximumDecodeTokens) {
    for (const auto& plan : {group_int_cuda::DecodePlan{8, 2}, group_int_cuda::DecodePlan{6, 2},
                             group_int_cuda::DecodePlan{5, 2}, group_int_cuda::DecodePlan{12, 1}}) {
      made.push_back({.method = Method::kDecode, .decode = plan});
    }
  }
  if (tokens <= group_int_cuda::kMaximumFewTokens) {
    const group_int_cuda::DecodeProblem problem = {.n = linear.n, .k = linear.k, .tokens = tokens};
    for (const int split : {2, 4, 8}) {
      if (group_int_cuda::few_fits(problem, {split}))
        made.push_back({.method = Method::kFew, .few = {split}});
    }
  }
  for (const group_int_cuda::TileSize& size : group_int_cuda::tile_sizes()) {
    if (size.tokens < std::min(tokens, 256) / (tokens > 16 ? 2 : 1) ||
        (size.tokens > 16 && size.tokens >= 2 * tokens))
      continue;
    const int units = (linear.n + size.rows - 1) / size.rows * ((tokens + size.tokens - 1) / size.tokens);
    for (const int split : {1, 2, 3, 4, 6, 8}) {
      if (split > 1 && 2 * units * split > 132 * (tokens < 256 ? 8 : 3)) continue;
      made.push_back({.method = Method::kTile, .tile = {.size = size, .split = split}});
    }
    if (group_int_cuda::can_share_tokens(size)) {
      made.push_back({.method = Method::kTile, .tile = {.size = size, .split = 1, .share = 2}});
    }
  }
  if (tokens >= 1024) made.push_back({.method = Method::kExpand});
  return made;
}

void sweep(const std::vector<const Block*>& models, const std::vector<int>& token_counts,
           const Timing& timing, Pool& pool, const cuda::Device& device, const cuda::Stream& stream) {
  std::printf("us of one linear alone; x: times FP16 in the same run\n%6s %6s %6s %9s %9s %6s  %s\n", "n",
              "k", "tokens", "FP16", "W4A16", "x", "plan");
  for (const Block* const block : models) {
    for (const Linear& linear : block->linears) {
      for (const int tokens : token_counts) {
        const double half = time_half({linear}, tokens, timing, pool, stream);
        for (const Choice& choice : all_choices(tokens, linear)) {
          std::vector<size_t> slices = {size_t{64} << 20};
          if (choice.method == Method::kExpand) slices = {size_t{64} << 20, size_t{256} << 20};
          for (const size_t bytes : slices) {
            const Scratch scratch(choice.method == Method::kExpand ? bytes : 16, device);
            try {
              const double seconds =
                  time_packed({linear}, tokens, {choice}, timing, pool, scratch, device, stream);
              std::printf(
                  "%6d %6d %6d %9.2f %9.2f %6.2f  %s%s\n", linear.n, linear.k, tokens, 1e6 * half,
                  1e6 * seconds, half / seconds, choice.describe().c_str(),
                  choice.method == Method::kExpand ? (" " + std::to_string(bytes >> 20)).c_str() : "");
            } catch (const Error& error) {
              std::printf("%6d %6d %6d %s: %s\n", linear.n, linear.k, tokens, choice.describe().c_str(),
                          error.what());
            }
          }
        }
        std::fflush(stdout);
      }
    }
  }
}

void table(const std::vector<const Block*>& models, const std::vector<int>& token_counts,
           const Timing& timing, double bandwidth, Pool& pool, const cuda::Device& device,
           const cuda::Stream& stream) {
  std::printf("four linears in one graph, weights rotated, random data, medians after %.1f s of the same\n\n",
              timing.load_seconds);
  std::printf("%-12s %6s %10s %10s %8s %8s %9s  %s\n", "model", "tokens", "FP16 us", "W4A16 us", "x FP16",
              "TB/s", "of read", "kernels");
  const Scratch scratch(kSliceBytes, device);
  for (const Block* const block : models) {
    for (const int tokens : token_counts) {
      const double half = time_half(block->linears, tokens, timing, pool, stream);
      std::vector<Choice> choices;
      std::string names;
      for (const Linear& linear : block->linears) {
        choices.push_back(group_int_cuda::choose(tokens, linear.n, linear.k, 1, device.multiprocessors));
        const std::string name = choices.back().describe();
        if (names.find(name) == std::string::npos) names += (names.empty() ? "" : "; ") + name;
      }
      const double seconds =
          time_packed(block->linears, tokens, choices, timing, pool, scratch, device, stream);
      const double rate = static_cast<double>(packed_bytes(block->linears)) / seconds;
      std::printf("%-12s %6d %10.1f %10.1f %8.2f %8.2f %7.0f %%  %s\n", block->name, tokens, 1e6 * half,
                  1e6 * seconds, half / seconds, 1e-12 * rate, 100 * rate / bandwidth, names.c_str());
      std::fflush(stdout);
    }
  }
}

int run(const std::vector<const Block*>& models, const std::vector<int>& token_counts, bool sweeping,
        const Timing& timing) {
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  const double bandwidth = cuda_bench::read_bandwidth(device, stream);
  std::printf("%s, %d multiprocessors; driver %d, CUDA %d, cuBLASLt %zu; reading %.2f TB/s\n",
              device.name.c_str(), device.multiprocessors, device.driver_version, device.runtime_version,
              cuda::blas_lt_version(), 1e-12 * bandwidth);
  size_t half = 0, packed = 0;  // a whole block, and enough to rotate
  for (const Block* const block : models) {
    size_t bytes = 0;
    for (const Linear& linear : block->linears) bytes += size_t{2} * linear.n * linear.k;
    half = std::max(half, bytes + kRotatedBytes);
    packed = std::max(packed, packed_bytes(block->linears) + kRotatedBytes);
  }
  Pool pool(half, packed, stream);
  if (sweeping) {
    sweep(models, token_counts, timing, pool, device, stream);
  } else {
    table(models, token_counts, timing, bandwidth, pool, device, stream);
  }
  return 0;
}

std::vector<std::string> split_list(const char* text) {
  std::vector<std::string> parts = {""};
  for (; *text != '\0'; ++text) {
    if (*text == ',') {
      parts.emplace_back();
    } else {
      parts.back() += *text;
    }
  }
  return parts;
}

}  // namespace
}  // namespace nibble

int main(int count, char** arguments) {
  std::vector<int> tokens = {1, 2, 4};
  std::vector<std::string> names = {"7b", "13b", "70b", "8b"};
  bool sweeping = false;
  double load_seconds = -1;  // the default
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--sweep") == 0) {
      sweeping = true;
    } else if (std::strcmp(arguments[i], "--tokens") == 0 && i + 1 < count) {
      tokens.clear();
      for (const std::string& part : nibble::split_list(arguments[++i]))
        tokens.push_back(std::atoi(part.c_str()));
    } else if (std::strcmp(arguments[i], "--models") == 0 && i + 1 < count) {
      names = nibble::split_list(arguments[++i]);
    } else if (std::strcmp(arguments[i], "--load") == 0 && i + 1 < count) {
      load_seconds = std::atof(arguments[++i]);
    } else {
      std::fprintf(stderr,
                   "usage: cuda_decode_bench [--models 7b,13b,70b,8b] [--tokens 1,2,4] [--sweep] "
                   "[--load 1]\n");
      return 2;
    }
  }
  std::vector<const nibble::Block*> models;
  for (const std::string& name : names) {
    for (const nibble::Block& block : nibble::blocks()) {
      if (std::string(block.name).ends_with("-" + name)) models.push_back(&block);
    }
  }
  nibble::Timing timing = sweeping ? nibble::kQuick : nibble::kCareful;
  if (load_seconds >= 0) timing.load_seconds = load_seconds;
  try {
    return nibble::run(models, tokens, sweeping, timing);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_decode_bench: %s\n", error.what());
    return 1;
  }
}
