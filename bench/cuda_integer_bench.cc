// Integer-activation linears with few tokens on the GPU, beside cuBLASLt's best FP16 product of the same
// shapes.
//
//   cuda_integer_bench [--tokens 1,2,4,8,16,32,64] [--formats quik-4b,quik-8b,fptq,two-level] [--sweep]
//   cuda_integer_bench --prompts [--tokens 128,...] [--formats fptq,...] [--model llama-2-7b]
//   [--configurations] [--load 1]
//
// The second form is cuda_integer_prompts.h's.
//
// The four linears of a decoder block (q|k|v, o, gate|up, down) run one after another in a graph over several
// copies of the weights, so that none is still in the L2 when its turn comes again. Every linear quantizes
// its own FP16 input in a kernel before the product ("us"); in the column after it the codes are there
// already, as behind a norm that quantizes. quik has 256 outlier columns, and of wider inputs their share.
// Random data; medians.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cuda/blas_lt.h"
#include "backend/cuda/device.h"
#include "base/error.h"
#include "cuda_decoder_linears.h"
#include "cuda_integer_linears.h"
#include "cuda_integer_prompts.h"
#include "formats/quik/cuda/few_tokens.h"

namespace nibble {
namespace {

using namespace integer_bench;

struct Kind {
  const char* name;
  FewTokensForm form;
  int weight_bits, activation_bits, group, outliers;
};
const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = {
      {"quik-4b", FewTokensForm::kRows, 4, 4, 0, 256},
      {"quik-8b", FewTokensForm::kRows, 8, 8, 0, 256},
      {"fptq", FewTokensForm::kFloatGroups, 4, 8, 128, 0},
      {"two-level", FewTokensForm::kIntegerGroups, 4, 8, 128, 0},
  };
  return all;
}

constexpr int kSamples = 11, kReplays = 10;

int copies_of(size_t bytes) { return static_cast<int>(cuda_bench::kRotatedBytes / bytes) + 1; }

// Seconds of a block's four FP16 products per number of tokens.
std::vector<double> time_half(const Block& block, const std::vector<int>& token_counts,
                              const cuda::Stream& stream) {
  size_t bytes = 0;
  for (const Linear& linear : block.linears) bytes += sizeof(__half) * linear.n * linear.k;
  const int copies = copies_of(bytes);
  std::vector<Buffer> weights;
  for (int copy = 0; copy < copies; ++copy) {
    for (const Linear& linear : block.linears)
      weights.push_back(random_half(static_cast<size_t>(linear.n) * linear.k, 0.05f, stream));
  }
  std::vector<double> seconds;
  for (const int tokens : token_counts) {
    std::vector<Buffer> x, y;
    std::vector<cuda::HalfProduct> products;
    for (size_t i = 0; i < block.linears.size(); ++i) {
      const Linear& linear = block.linears[i];
      x.push_back(random_half(static_cast<size_t>(tokens) * linear.k, 1.0f, stream));
      y.emplace_back(sizeof(__half) * tokens * linear.n);
      products.emplace_back(tokens, linear.n, linear.k, x[i].as<__half>(), weights[i].as<__half>(),
                            y[i].as<__half>(), stream.get());
    }
    const cuda::Graph graph(stream, [&] {
      for (size_t i = 0; i < weights.size(); ++i) {
        const size_t which = i % products.size();
        products[which].enqueue(x[which].as<__half>(), weights[i].as<__half>(), y[which].as<__half>(),
                                stream.get());
      }
    });
    seconds.push_back(cuda::median_seconds(graph, stream, kSamples, kReplays) / copies);
  }
  return seconds;
}

// A linear's weights in several copies, and room for its activations.
struct Prepared {
  Kind kind;
  Linear linear;
  FewTokensOperand operand;
  std::vector<Buffer> slots;
  Buffer row_scales, code_sums, places, x, codes, scales, zeros, outliers, y;
  int64_t code_stride, outlier_stride;

  Prepared(const Kind& of_kind, const Linear& of, int hidden, const cuda::Stream& stream)
      : kind(of_kind), linear(of) {
    const int count = kind.outliers * std::max(1, linear.k / hidden);
    operand.form = kind.form;
    operand.shape = {.n = linear.n,
                     .columns = linear.k - count,
                     .outliers = count,
                     .weight_bits = kind.weight_bits,
                     .group = kind.group};
    row_scales = constants<float>(static_cast<size_t>(linear.n), 0.001f);
    code_sums = constants<int32_t>(static_cast<size_t>(linear.n), 7);
    operand.row_scales = row_scales.as<float>();
    operand.code_sums = code_sums.as<int32_t>();
    std::vector<int32_t> column_places(static_cast<size_t>(linear.k));
    int outlier = 0, integer = 0;
    for (int j = 0; j < linear.k; ++j) {
      const bool is_outlier = count > 0 && j % (linear.k / count) == 0 && outlier < count;
      column_places[j] = is_outlier ? ~outlier++ : integer++;
    }
    places = Buffer(4 * column_places.size());
    places.upload(column_places.data(), places.bytes());
    const auto most = static_cast<size_t>(kMaximumFewTokens);
    code_stride = (operand.shape.columns + 15) / 16 * 16;
    outlier_stride = std::max(8, (count + 7) / 8 * 8);
    x = random_half(most * linear.k, 1.0f, stream);
    codes = Buffer(most * static_cast<size_t>(code_stride));
    scales = Buffer(4 * most);
    zeros = Buffer(4 * most);
    outliers = Buffer(2 * most * static_cast<size_t>(outlier_stride));
    y = Buffer(2 * most * static_cast<size_t>(linear.n));
  }

  void quantize(int tokens, const cuda::Stream& stream) const {
    if (kind.outliers > 0) {
      cuda::check(quik_cuda::launch_quantize_few(x.as<__half>(), tokens, linear.k, {places.as<int32_t>()},
                                                 kind.activation_bits,
                                                 {.codes = codes.as<uint8_t>(),
                                                  .code_stride = code_stride,
                                                  .scales = scales.as<float>(),
                                                  .zeros = zeros.as<int32_t>(),
                                                  .outliers = outliers.as<__half>(),
                                                  .outlier_stride = outlier_stride},
                                                 stream.get()),
                  "quantizing");
    } else {
      cuda::check(launch_quantize_signed(x.as<__half>(), tokens, linear.k, 0, codes.as<uint8_t>(),
                                         scales.as<float>(), nullptr, stream.get()),
                  "quantizing");
    }
  }

  void multiply(int copy, int tokens, const FewTokensPlan& plan, const cuda::Stream& stream) const {
    FewTokensOperand weights = operand;
    weights.slots = slots[copy].as<uint8_t>();
    cuda::check(launch_few_tokens(weights,
                                  {.codes = codes.as<uint8_t>(),
                                   .code_stride = code_stride,
                                   .scales = scales.as<float>(),
                                   .zeros = zeros.as<int32_t>(),
                                   .outliers = outliers.as<__half>(),
                                   .outlier_stride = outlier_stride},
                                  tokens, plan, y.as<__half>(), linear.n, nullptr, stream.get()),
                "multiplying");
  }
};

double time_block(const std::vector<Prepared>& linears, int copies, int tokens,
                  const std::vector<FewTokensPlan>& plans, bool quantize, const cuda::Stream& stream) {
  const cuda::Graph graph(stream, [&] {
    for (int copy = 0; copy < copies; ++copy) {
      for (size_t i = 0; i < linears.size(); ++i) {
        if (quantize) linears[i].quantize(tokens, stream);
        linears[i].multiply(copy, tokens, plans[i], stream);
      }
    }
  });
  return cuda::median_seconds(graph, stream, kSamples, kReplays) / copies;
}

void run_block(const Block& block, const std::vector<int>& token_counts, const std::string& formats,
               bool sweep, double bandwidth, const cuda::Device& device, const cuda::Stream& stream) {
  const std::vector<double> half = time_half(block, token_counts, stream);
  for (const Kind& kind : kinds()) {
    if (("," + formats + ",").find("," + std::string(kind.name) + ",") == std::string::npos) continue;
    std::vector<Prepared> linears;
    size_t bytes = 0;
    for (const Linear& linear : block.linears) {
      linears.emplace_back(kind, linear, block.linears[0].k, stream);
      bytes += static_cast<size_t>(linears.back().operand.shape.bytes());
    }
    const int copies = copies_of(bytes);
    for (Prepared& linear : linears) {
      for (int copy = 0; copy < copies; ++copy)
        linear.slots.push_back(synthetic_slots(linear.operand.shape, stream));
    }
    for (size_t t = 0; t < token_counts.size(); ++t) {
      const int tokens = token_counts[t];
      for (int per_multiprocessor = sweep ? 1 : 0; per_multiprocessor <= (sweep ? 4 : 0);
           ++per_multiprocessor) {
        std::vector<FewTokensPlan> plans;
        std::string described;
        for (const Prepared& linear : linears) {
          plans.push_back(
              plan_few_tokens(linear.operand, tokens, device.multiprocessors, per_multiprocessor));
          const FewTokensPlan& plan = plans.back();
          described += format_text(" {}x{}w{}s{}c{}", plan.token_tiles, plan.slots, plan.warps, plan.stages,
                                   plan.cluster);
        }
        const double all = time_block(linears, copies, tokens, plans, true, stream);
        const double product = time_block(linears, copies, tokens, plans, false, stream);
        const double rate = static_cast<double>(bytes) / product;
        std::printf("%-12s %-10s %6d %9.1f %9.1f %8.2f %11.1f %8.2f %8.2f %7.0f %%  %d%s\n", block.name,
                    kind.name, tokens, 1e6 * half[t], 1e6 * all, half[t] / all, 1e6 * product,
                    half[t] / product, 1e-12 * rate, 100 * rate / bandwidth, per_multiprocessor,
                    described.c_str());
      }
    }
    std::fflush(stdout);
  }
}

int run(const std::vector<int>& token_counts, const std::string& formats, bool sweep) {
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  const double bandwidth = cuda_bench::read_bandwidth(device, stream);
  std::printf("%s, %d multiprocessors; driver %d, CUDA %d, cuBLASLt %zu; reading %.2f TB/s\n",
              device.name.c_str(), device.multiprocessors, device.driver_version, device.runtime_version,
              cuda::blas_lt_version(), 1e-12 * bandwidth);
  std::printf("four linears in one graph, weights rotated, random data, medians of %d x %d replays\n",
              kSamples, kReplays);
  std::printf(
      "plan: blocks per multiprocessor asked for (0: default), then for each linear token tiles x slots,\n"
      "warps, stages, blocks per cluster\n\n");
  std::printf("%-12s %-10s %6s %9s %9s %8s %11s %8s %8s %9s  %s\n", "model", "format", "tokens", "FP16 us",
              "us", "x FP16", "product us", "x FP16", "TB/s", "of read", "plan");
  for (const Block& block : blocks())
    run_block(block, token_counts, formats, sweep, bandwidth, device, stream);
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int count, char** arguments) {
  std::vector<int> tokens;
  std::string formats;
  nibble::integer_bench::PromptOptions prompt;
  bool sweep = false, prompts = false;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "--sweep") {
      sweep = true;
    } else if (argument == "--prompts") {
      prompts = true;
    } else if (argument == "--configurations") {
      prompt.configurations = true;
    } else if (argument == "--formats" && i + 1 < count) {
      formats = arguments[++i];
    } else if (argument == "--model" && i + 1 < count) {
      prompt.model = arguments[++i];
    } else if (argument == "--load" && i + 1 < count) {
      prompt.load_seconds = std::atof(arguments[++i]);
    } else if (argument == "--tokens" && i + 1 < count) {
      for (char* at = arguments[++i]; *at != '\0';) {
        tokens.push_back(std::max(1, static_cast<int>(std::strtol(at, &at, 10))));
        if (*at == ',') ++at;
      }
    } else {
      std::fprintf(stderr,
                   "usage: cuda_integer_bench [--tokens 1,2,...] [--formats fptq,...] [--sweep]\n"
                   "       cuda_integer_bench --prompts [--tokens 128,...] [--formats fptq,...] "
                   "[--model llama-2-7b] [--configurations] [--load 1]\n");
      return 2;
    }
  }
  try {
    if (prompts) {
      if (!tokens.empty()) prompt.tokens = tokens;
      prompt.formats = formats;
      nibble::integer_bench::run_prompts(prompt);
      return 0;
    }
    if (tokens.empty()) tokens = {1, 2, 4, 8, 16, 32, 64};
    for (int& count_of : tokens) count_of = std::min(count_of, nibble::group_int_a8_cuda::kMaximumFewTokens);
    return nibble::run(tokens, formats.empty() ? "quik-4b,quik-8b,fptq,two-level" : formats, sweep);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_integer_bench: %s\n", error.what());
    return 1;
  }
}
