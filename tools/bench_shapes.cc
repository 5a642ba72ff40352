#include "bench_shapes.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <span>
#include <vector>

#include "backend/cpu/cpu_path.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/system_info.h"
#include "formats/dense/dense.h"
#include "json_output.h"
#include "models/linear_group.h"
#include "quantizers/integer_scales.h"
#include "quantizers/quantizer.h"
#include "runtime/sampler.h"
#include "sample_linears.h"

namespace nibble {
namespace {

// One sample lasts about this long, so that a microsecond product is timed as well as a slow one.
constexpr double kSampleSeconds = 0.05;

struct NamedShape {
  const char* name;
  int64_t hidden, intermediate, query, key_value;  // features
  int64_t layers, head_dim, vocabulary;
};

constexpr NamedShape kNamedShapes[] = {
    {"smollm2-135m", 576, 1536, 576, 192, 30, 64, 49152},
    {"qwen2.5-0.5b", 896, 4864, 896, 128, 24, 64, 151936},
    {"llama-3.2-1b", 2048, 8192, 2048, 512, 16, 64, 128256},
    {"llama-2-7b", 4096, 11008, 4096, 4096, 32, 128, 32000},
    {"llama-3-8b", 4096, 14336, 4096, 1024, 32, 128, 128256},
    {"qwen2.5-7b", 3584, 18944, 3584, 512, 28, 128, 152064},
    {"llama-2-13b", 5120, 13824, 5120, 5120, 40, 128, 32000},
    {"llama-2-70b", 8192, 28672, 8192, 1024, 80, 128, 32000},
};

struct Member {
  const char* name;  // of the linear in its block
  LinearRole role;
  int64_t out_features;
};

struct Group {
  std::string name;
  int64_t in_features, hidden;
  std::vector<Member> members;
  std::vector<int64_t> tokens;
};

std::vector<Group> groups_of(const ShapeBench& options) {
  for (const NamedShape& shape : kNamedShapes) {
    if (options.shape != shape.name) continue;
    const std::vector<int64_t> tokens = {options.prompt, options.batch};
    return {{"q k v",
             shape.hidden,
             shape.hidden,
             {{"self_attn.q_proj", LinearRole::kQuery, shape.query},
              {"self_attn.k_proj", LinearRole::kKey, shape.key_value},
              {"self_attn.v_proj", LinearRole::kValue, shape.key_value}},
             tokens},
            {"o",
             shape.query,
             shape.hidden,
             {{"self_attn.o_proj", LinearRole::kAttentionOutput, shape.hidden}},
             tokens},
            {"gate up",
             shape.hidden,
             shape.hidden,
             {{"mlp.gate_proj", LinearRole::kGate, shape.intermediate},
              {"mlp.up_proj", LinearRole::kUp, shape.intermediate}},
             tokens},
            {"down",
             shape.intermediate,
             shape.hidden,
             {{"mlp.down_proj", LinearRole::kDown, shape.hidden}},
             tokens}};
  }
  int64_t sizes[3] = {0, 0, 0};
  const char* at = options.shape.data();
  const char* const end = at + options.shape.size();
  for (int i = 0; i < 3; ++i) {
    const auto [stop, error] = std::from_chars(at, end, sizes[i]);
    const bool separated = i == 2 ? stop == end : stop != end && *stop == 'x';
    if (error != std::errc() || !separated || sizes[i] < 1 || sizes[i] > (1 << 20)) {
      fail_usage("--shape {}: expected MxNxK, each from 1 to 1048576, or one of {}", options.shape,
                 shape_names());
    }
    at = stop + 1;
  }
  return {
      {options.shape, sizes[2], sizes[2], {{"self_attn.q_proj", LinearRole::kQuery, sizes[1]}}, {sizes[0]}}};
}

// Group scales as the recipe has them.
void use_scale_kind(const LinearSettings& settings, QuantizedWeight* weight) {
  const QuantizerInput input = {.out_features = weight->out_features, .settings = &settings};
  const int64_t columns = weight->integer_columns();
  UniformGrid grid = {.lowest = -std::ldexp(1.0f, weight->weight_bits - 1),
                      .group_size = weight->group_size > 0 ? weight->group_size : columns,
                      .groups = static_cast<int64_t>(weight->scales.size()) / weight->out_features,
                      .scales = std::move(weight->scales)};
  make_integer_scales(input, columns, &grid);
  weight->scales = std::move(grid.scales);
  weight->scale_multipliers = std::move(grid.multipliers);
  weight->row_scales = std::move(grid.row_scales);
  weight->scale_amplifier = grid.amplifier;
}

PackedLinear synthetic_linear(const Member& member, const Group& group, const Recipe* recipe) {
  const std::string name = std::string("model.layers.0.") + member.name;
  const LinearSettings settings =
      recipe == nullptr ? LinearSettings() : recipe->settings_for(name, member.role);
  if (recipe == nullptr || settings.format == "dense") {
    std::vector<float> weight(static_cast<size_t>(member.out_features * group.in_features));
    const CounterRandom random(42);
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(random.uniform(i)) - 0.5f;
    return make_dense_linear_16bit(name, DType::kBF16, weight.data(), member.out_features, group.in_features);
  }
  // Inputs whose every channel is beyond any threshold: the recipe's full number of outlier columns.
  InputStatistics statistics = {.in_features = group.in_features, .tokens = 1};
  statistics.max_abs.assign(static_cast<size_t>(group.in_features), 1e30f);
  const auto outliers =
      select_outlier_columns(statistics, settings, group.hidden, member.role == LinearRole::kDown);
  const LinearFormat* format = find_format(settings.format);
  if (format == nullptr) fail_usage("recipe {}: there is no format '{}'", recipe->name, settings.format);
  // Formats of their own quantizers take what those sample.
  if (const Quantizer& quantizer = find_quantizer(settings.quantizer); quantizer.sample != nullptr) {
    return format->pack(quantizer.sample(settings, member.out_features, group.in_features, outliers), name);
  }
  QuantizedWeight weight =
      synthetic_weight(member.out_features, group.in_features, static_cast<int>(settings.weight_bits),
                       static_cast<int>(settings.activation_bits),
                       settings.group_size_for(group.in_features - static_cast<int64_t>(outliers.size())),
                       static_cast<int64_t>(outliers.size()));
  use_scale_kind(settings, &weight);
  return format->pack(weight, name);
}

struct Measurement {
  std::string name, kernel, arithmetic, format;
  int64_t tokens = 0, out_features = 0, in_features = 0;
  double seconds = 0, weight_bytes = 0;
  double operations() const {
    return 2.0 * static_cast<double>(tokens) * static_cast<double>(out_features) *
           static_cast<double>(in_features);
  }
};

double time_product(const LinearGroup& group, int64_t tokens, int64_t repetitions, ThreadPool& pool) {
  std::vector<float> x(static_cast<size_t>(tokens * group.in_features()));
  std::vector<float> y(static_cast<size_t>(tokens * group.out_features()));
  const CounterRandom random(7);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(random.uniform(i)) * 2 - 1;
  Scratch scratch;
  const auto run = [&](int64_t times) {
    const double started = monotonic_seconds();
    for (int64_t i = 0; i < times; ++i) group.forward(x.data(), tokens, y.data(), scratch, pool);
    return monotonic_seconds() - started;
  };
  run(1);  // warm-up
  const int64_t times = std::max<int64_t>(1, static_cast<int64_t>(kSampleSeconds / std::max(run(1), 1e-7)));
  std::vector<double> samples;
  for (int64_t i = 0; i < repetitions; ++i) {
    throw_if_interrupted();
    samples.push_back(run(times) / static_cast<double>(times));
  }
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2),
                   samples.end());
  return samples[samples.size() / 2];
}

std::vector<Measurement> measure(const ShapeBench& options, const Recipe* recipe, ThreadPool& pool) {
  std::vector<Measurement> results;
  for (const Group& shape : groups_of(options)) {
    LinearGroup group(shape.name, shape.in_features);
    double weight_bytes = 0;
    for (const Member& member : shape.members) {
      auto packed = std::make_shared<PackedLinear>(synthetic_linear(member, shape, recipe));
      weight_bytes += static_cast<double>(packed->weight_bytes());
      group.slots().push_back({packed->name, member.role, member.out_features, std::move(packed)});
    }
    group.prepare(pool);
    const PackedLinear& first = *group.slots().front().packed;
    for (const int64_t tokens : shape.tokens) {
      results.push_back({.name = shape.name,
                         .kernel = group.kernel_of(0)->name,
                         .arithmetic = first.format->arithmetic(first),
                         .format = first.format->name,
                         .tokens = tokens,
                         .out_features = group.out_features(),
                         .in_features = shape.in_features,
                         .seconds = time_product(group, tokens, options.repetitions, pool),
                         .weight_bytes = weight_bytes});
    }
  }
  return results;
}

}  // namespace

std::string shape_names() {
  std::string names;
  for (const NamedShape& shape : kNamedShapes) names += std::string(names.empty() ? "" : ", ") + shape.name;
  return names;
}

ModelSpec shape_spec(const ShapeBench& options) {
  for (const NamedShape& shape : kNamedShapes) {
    if (options.shape != shape.name) continue;
    return {.model_type = shape.name,
            .hidden_size = shape.hidden,
            .intermediate_size = shape.intermediate,
            .layers = shape.layers,
            .heads = shape.query / shape.head_dim,
            .kv_heads = shape.key_value / shape.head_dim,
            .head_dim = shape.head_dim,
            .vocabulary = shape.vocabulary,
            .context_length = int64_t{1} << 17};
  }
  fail_usage("--shape {}: on a GPU expected one of {}", options.shape, shape_names());
}

bool is_model_shape(const ShapeBench& options) {
  groups_of(options);  // refuses what is neither
  return std::any_of(std::begin(kNamedShapes), std::end(kNamedShapes),
                     [&](const NamedShape& shape) { return options.shape == shape.name; });
}

std::vector<SyntheticGroup> synthetic_groups(const ShapeBench& options) {
  const bool quantized = options.recipe != "none";
  const Recipe recipe = quantized ? Recipe::find(options.recipe) : Recipe();
  std::vector<SyntheticGroup> groups;
  for (const Group& shape : groups_of(options)) {
    SyntheticGroup group = {
        .name = shape.name, .tokens = shape.tokens.front(), .in_features = shape.in_features};
    for (const Member& member : shape.members) {
      group.out_features += member.out_features;
      if (quantized) group.linears.push_back(synthetic_linear(member, shape, &recipe));
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

std::vector<PackedLinear> synthetic_layer(const ShapeBench& options) {
  const Recipe recipe = Recipe::find(options.recipe);
  std::vector<PackedLinear> linears;
  for (const Group& group : groups_of(options)) {
    for (const Member& member : group.members) linears.push_back(synthetic_linear(member, group, &recipe));
  }
  return linears;
}

int bench_shapes(const ShapeBench& options, const CommonOptions& common) {
  Recipe recipe;
  const bool quantized = options.recipe != "none";
  if (quantized) recipe = Recipe::find(options.recipe);
  ThreadPool pool(common.threads);
  const std::vector<Measurement> results = measure(options, quantized ? &recipe : nullptr, pool);
  if (common.json) {
    OrderedJson json = {{"recipe", options.recipe},
                        {"threads", pool.size()},
                        {"cpu", cpu_description()},
                        {"cpu_path", cpu_path_name(active_cpu_path())},
                        {"peak_memory_bytes", peak_memory_bytes()}};
    json["shapes"] = OrderedJson::array();
    for (const Measurement& result : results) {
      json["shapes"].push_back({{"name", result.name},
                                {"m", result.tokens},
                                {"n", result.out_features},
                                {"k", result.in_features},
                                {"format", result.format},
                                {"arithmetic", result.arithmetic},
                                {"kernel", result.kernel},
                                {"seconds", result.seconds},
                                {"operations_per_second", result.operations() / result.seconds},
                                {"weight_bytes_per_second", result.weight_bytes / result.seconds}});
    }
    write_json(json);
    return kExitDone;
  }
  write_output(format_text("{}, path {}, {} threads, recipe {}; synthetic weights, warm caches\n",
                           cpu_description(), cpu_path_name(active_cpu_path()), pool.size(), options.recipe));
  write_output(format_text("{:<16} {:>6} {:>7} {:>7}  {:>12} {:>10} {:>16}  {}\n", "linears", "M", "N", "K",
                           "time", "GOP/s", "weights GB/s", "kernel"));
  for (const Measurement& result : results) {
    write_output(format_text("{:<16} {:>6} {:>7} {:>7}  {:>9.1f} us {:>10.1f} {:>16.2f}  {} {}\n",
                             result.name, result.tokens, result.out_features, result.in_features,
                             1e6 * result.seconds, 1e-9 * result.operations() / result.seconds,
                             1e-9 * result.weight_bytes / result.seconds, result.arithmetic, result.kernel));
  }
  return kExitDone;
}

}  // namespace nibble
