#include "cuda_integer_prompts.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>

#include "backend/cuda/blas_lt.h"
#include "cuda_integer_linears.h"
#include "formats/group_int_a8/cuda/group_product.h"
#include "formats/quik/cuda/product.h"

namespace nibble::integer_bench {
namespace {

struct Kind {
  const char* name;
  FewTokensForm form;
  int weight_bits, group;
  bool folds = false;
};
constexpr Kind kKinds[] = {
    {"fptq", FewTokensForm::kFloatGroups, 4, 128},
    {"two-level", FewTokensForm::kIntegerGroups, 4, 128},
    {"rows-4", FewTokensForm::kRows, 4, 0},
    {"rows-8", FewTokensForm::kRows, 8, 0},
    {"fptq-64", FewTokensForm::kFloatGroups, 4, 64},
    {"fptq-32", FewTokensForm::kFloatGroups, 4, 32},
    {"folded", FewTokensForm::kIntegerGroups, 4, 128, true},
    {"folded-64", FewTokensForm::kIntegerGroups, 4, 64, true},
    {"folded-32", FewTokensForm::kIntegerGroups, 4, 32, true},
};

constexpr int kRounds = 3, kSamples = 5;  // one round where configurations are compared
constexpr double kSampleSeconds = 0.005;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Graphs that take turns. Replays are as many as fill a sample.
class Race {
 public:
  explicit Race(const cuda::Stream& stream) : stream_(stream) {}
  void add(const std::function<void()>& enqueue) {
    graphs_.push_back(std::make_unique<cuda::Graph>(stream_, enqueue));
    const double once = cuda::median_seconds(*graphs_.back(), stream_, 3, 1);
    replays_.push_back(std::clamp(static_cast<int>(kSampleSeconds / once), 1, 50));
  }
  // Seconds of each, after so many seconds of the same.
  std::vector<double> run(int rounds, double load_seconds) const {
    std::vector<std::vector<double>> times(graphs_.size());
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = 0; i < graphs_.size(); ++i)
        times[i].push_back(cuda::median_seconds(*graphs_[i], stream_, kSamples, replays_[i], load_seconds));
    }
    std::vector<double> medians;
    for (const std::vector<double>& of : times) medians.push_back(median(of));
    return medians;
  }

 private:
  const cuda::Stream& stream_;
  std::vector<std::unique_ptr<cuda::Graph>> graphs_;
  std::vector<int> replays_;
};

// A block's FP16 products.
class Halves {
 public:
  Halves(const Block& block, int tokens, const cuda::Stream& stream) : stream_(stream) {
    for (const Linear& l : block.linears) {
      x_.push_back(random_half(static_cast<size_t>(tokens) * l.k, 1.0f, stream));
      w_.push_back(random_half(static_cast<size_t>(l.n) * l.k, 0.05f, stream));
      y_.emplace_back(sizeof(__half) * static_cast<size_t>(tokens) * l.n);
      products_.emplace_back(tokens, l.n, l.k, x_.back().as<__half>(), w_.back().as<__half>(),
                             y_.back().as<__half>(), stream.get());
    }
  }
  void enqueue() const {
    for (size_t i = 0; i < products_.size(); ++i)
      products_[i].enqueue(x_[i].as<__half>(), w_[i].as<__half>(), y_[i].as<__half>(), stream_.get());
  }

 private:
  const cuda::Stream& stream_;
  std::vector<Buffer> x_, w_, y_;
  std::vector<cuda::HalfProduct> products_;
};

// One linear with synthetic weights.
struct Prepared {
  Linear linear;
  FewTokensOperand weights;
  Buffer slots, row_scales, code_sums;

  Prepared(const Kind& kind, const Linear& of, const cuda::Stream& stream) : linear(of) {
    weights.form = kind.form;
    weights.shape = {
        .n = linear.n, .columns = linear.k, .weight_bits = kind.weight_bits, .group = kind.group};
    weights.folds = kind.folds;
    slots = synthetic_slots(weights.shape, stream, kind.folds ? 0x000B : 0x0040);
    row_scales = constants<float>(static_cast<size_t>(linear.n), 0.001f);
    code_sums = constants<int32_t>(static_cast<size_t>(linear.n), 7);
    weights.slots = slots.as<uint8_t>();
    weights.row_scales = kind.form == FewTokensForm::kFloatGroups ? nullptr : row_scales.as<float>();
    weights.code_sums = code_sums.as<int32_t>();
  }
};

// A linear's activations and its product with so many tokens.
class Running {
 public:
  Running(const Prepared& prepared, int tokens, const cuda::Device& device, const cuda::Stream& stream)
      : prepared_(prepared), tokens_(tokens), device_(device), stream_(stream) {
    const Linear& l = prepared.linear;
    x_ = random_half(static_cast<size_t>(tokens) * l.k, 1.0f, stream);
    memory_ = Buffer(quik_cuda::activation_bytes(tokens, l.k, 0));
    y_ = Buffer(sizeof(__half) * static_cast<size_t>(tokens) * l.n);
    room_ = quik_cuda::place_activations(memory_.data(), tokens, l.k, 0);
    codes_ = {.codes = room_.codes,
              .code_stride = room_.code_stride,
              .scales = room_.scales,
              .zeros = whole_sums() ? room_.zeros : nullptr};
    if (whole_sums()) {
      rows_product_ = std::make_unique<quik_cuda::Product>(
          prepared.weights, room_, tokens, y_.as<__half>(), l.n,
          quik_cuda::choose(tokens, prepared.weights.shape, device.multiprocessors), device.multiprocessors);
    } else {
      use(choose_group_configuration(tokens, prepared.weights, device.multiprocessors));
    }
    if (tokens <= kMaximumFewTokens) few_ = plan_few_tokens(prepared.weights, tokens, device.multiprocessors);
  }
  bool whole_sums() const {
    return prepared_.weights.form == FewTokensForm::kRows || prepared_.weights.folds;
  }
  void use(const GroupConfiguration& configuration) {
    configuration_ = configuration;
    group_product_ =
        std::make_unique<GroupProduct>(prepared_.weights, codes_, tokens_, y_.as<__half>(),
                                       prepared_.linear.n, configuration, device_.multiprocessors);
  }
  const GroupConfiguration& configuration() const { return configuration_; }

  void quantize() const {
    cuda::check(launch_quantize_prompt(x_.as<__half>(), tokens_, prepared_.linear.k, 0,
                                       prepared_.weights.shape.group, codes_, stream_.get()),
                "quantizing");
  }
  void multiply() const {
    cuda::check(whole_sums() ? rows_product_->launch(nullptr, stream_.get())
                             : group_product_->launch(nullptr, stream_.get()),
                "multiplying");
  }
  void few() const {
    const int k = prepared_.linear.k;
    cuda::check(launch_quantize_signed(x_.as<__half>(), tokens_, k, 0, room_.codes, room_.scales,
                                       prepared_.weights.form == FewTokensForm::kRows ? room_.zeros : nullptr,
                                       stream_.get()),
                "quantizing");
    cuda::check(launch_few_tokens(prepared_.weights,
                                  {.codes = room_.codes,
                                   .code_stride = (k + 15) / 16 * 16,
                                   .scales = room_.scales,
                                   .zeros = room_.zeros},
                                  tokens_, few_, y_.as<__half>(), prepared_.linear.n, nullptr, stream_.get()),
                "multiplying");
  }

 private:
  const Prepared& prepared_;
  int tokens_;
  const cuda::Device& device_;
  const cuda::Stream& stream_;
  Buffer x_, memory_, y_;
  quik_cuda::Activations room_;
  PromptActivations codes_;
  GroupConfiguration configuration_ = {};
  std::unique_ptr<GroupProduct> group_product_;
  std::unique_ptr<quik_cuda::Product> rows_product_;
  FewTokensPlan few_;
};

bool is_chosen(const std::string& names, const std::string& name) {
  return names.empty() || ("," + names + ",").find("," + name + ",") != std::string::npos;
}

void time_block(const Block& block, const Kind& kind, const std::vector<Prepared>& linears, int tokens,
                const Halves& halves, double load_seconds, const cuda::Device& device,
                const cuda::Stream& stream) {
  std::vector<std::unique_ptr<Running>> running;
  double operations = 0;
  for (const Prepared& linear : linears) {
    running.push_back(std::make_unique<Running>(linear, tokens, device, stream));
    operations += 2.0 * tokens * linear.linear.n * linear.linear.k;
  }
  Race race(stream);
  race.add([&] { halves.enqueue(); });
  race.add([&] {
    for (const auto& linear : running) {
      linear->quantize();
      linear->multiply();
    }
  });
  race.add([&] {
    for (const auto& linear : running) linear->multiply();
  });
  if (tokens <= kMaximumFewTokens) {
    race.add([&] {
      for (const auto& linear : running) linear->few();
    });
  }
  const std::vector<double> seconds = race.run(kRounds, load_seconds);
  std::printf("%-12s %-10s %6d %9.1f | %9.1f %6.2f | %10.1f %6.2f %6.0f |", block.name, kind.name, tokens,
              1e6 * seconds[0], 1e6 * seconds[1], seconds[0] / seconds[1], 1e6 * seconds[2],
              seconds[0] / seconds[2], 1e-12 * operations / seconds[2]);
  if (seconds.size() > 3) {
    std::printf(" %8.1f %6.2f |", 1e6 * seconds[3], seconds[0] / seconds[3]);
  } else {
    std::printf(" %8s %6s |", "", "");
  }
  if (kind.form != FewTokensForm::kRows && !kind.folds) {
    for (const auto& linear : running) {
      const GroupConfiguration& c = linear->configuration();
      std::printf(" %d/%d/%d", c.tile_tokens, c.share, c.split);
    }
  }
  std::printf("\n");
  std::fflush(stdout);
}

void time_configurations(const Block& block, const Kind& kind, const std::vector<Prepared>& linears,
                         int tokens, const cuda::Device& device, const cuda::Stream& stream) {
  if (kind.form == FewTokensForm::kRows || kind.folds) return;
  for (const Prepared& linear : linears) {
    Running running(linear, tokens, device, stream);
    const GroupConfiguration chosen = running.configuration();
    const auto seconds = [&](const std::function<void()>& enqueue) {
      Race race(stream);
      race.add(enqueue);
      return race.run(1, 0).front();
    };
    std::printf("%-12s %-10s %6d %6dx%-6d quantize %.1f;", block.name, kind.name, tokens, linear.linear.n,
                linear.linear.k, 1e6 * seconds([&] { running.quantize(); }));
    for (const GroupConfiguration& c : group_configurations(linear.weights)) {
      const bool mark =
          c.tile_tokens == chosen.tile_tokens && c.share == chosen.share && c.split == chosen.split;
      running.use(c);
      std::printf(" %s%d/%d/%d %.1f", mark ? "*" : "", c.tile_tokens, c.share, c.split,
                  1e6 * seconds([&] { running.multiply(); }));
      std::printf(";");
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace

void run_prompts(const PromptOptions& options) {
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  std::printf("%s, %d multiprocessors; driver %d, CUDA %d, cuBLASLt %zu\n", device.name.c_str(),
              device.multiprocessors, device.driver_version, device.runtime_version, cuda::blas_lt_version());
  if (options.configurations) {
    std::printf("us of each configuration tile/share/split (* chosen)\n\n");
  } else {
    std::printf(
        "four linears in one graph, random data, FP16 and ours in turns, each after %.1f s of itself, "
        "medians of %d x %d samples; configurations tile/share/split\n\n"
        "%-12s %-10s %6s %9s | %9s %6s | %10s %6s %6s | %8s %6s |\n",
        options.load_seconds, kRounds, kSamples, "model", "format", "tokens", "FP16 us", "us", "x FP16",
        "product us", "x FP16", "TOP/s", "few us", "x FP16");
  }
  for (const Block& block : blocks()) {
    if (!is_chosen(options.model, block.name)) continue;
    std::vector<std::vector<Prepared>> kinds;
    for (const Kind& kind : kKinds) {
      kinds.emplace_back();
      if (!is_chosen(options.formats, kind.name)) continue;
      for (const Linear& linear : block.linears) kinds.back().emplace_back(kind, linear, stream);
    }
    for (const int tokens : options.tokens) {
      std::unique_ptr<Halves> halves;
      if (!options.configurations) halves = std::make_unique<Halves>(block, tokens, stream);
      for (size_t i = 0; i < kinds.size(); ++i) {
        if (kinds[i].empty()) continue;
        if (options.configurations) {
          time_configurations(block, kKinds[i], kinds[i], tokens, device, stream);
        } else {
          time_block(block, kKinds[i], kinds[i], tokens, *halves, options.load_seconds, device, stream);
        }
      }
    }
  }
}

}  // namespace nibble::integer_bench
