#include "bench_device.h"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/system_info.h"
#include "json_output.h"
#include "runtime/sampler.h"

namespace nibble {
namespace {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary) {
  const CounterRandom random(0);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(
        static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) * static_cast<double>(vocabulary)));
  }
  return ids;
}

// The model under test and whatever owns it.
struct Subject {
  std::shared_ptr<ThreadPool> pool;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<DeviceModel> synthetic;
  DeviceModel& model() const { return engine ? *engine->device() : *synthetic; }
};

Subject open_subject(const DeviceBench& options, const CommonOptions& common) {
  Subject subject;
  subject.pool = std::make_shared<ThreadPool>(common.threads);
  const int64_t needed = std::max(options.prompt, options.depth + options.generate);
  if (!options.model.empty()) {
    subject.engine = Engine::open(options.model, subject.pool, 0, common.engine_device());
    if (needed > subject.engine->context_length()) {
      fail("{}: {} tokens are more than the model's context of {}", options.model.string(), needed,
           subject.engine->context_length());
    }
    return subject;
  }
  ModelSpec spec = shape_spec(options.shape);
  if (options.shape.layers > 0) spec.layers = options.shape.layers;
  std::vector<PackedLinear> layer;
  if (options.shape.recipe != "none") layer = synthetic_layer(options.shape);
  std::vector<const PackedLinear*> pointers(7, nullptr);
  for (size_t i = 0; i < layer.size(); ++i) pointers[i] = &layer[i];
  subject.synthetic = make_synthetic_device_model(spec, pointers, common.engine_device().gpu,
                                                  std::max<int64_t>(needed, 1), *subject.pool);
  return subject;
}

// "cuda-w4a16: w4a16-decode, int4xf16->f32 | ..." -> how many linears.
std::map<std::string, int64_t> count_kernels(const DeviceModel& model) {
  std::map<std::string, int64_t> counts;
  for (const DeviceLinearFacts& facts : model.linears()) {
    counts[format_text("{}{}: one token {}; prompt {}", facts.kernel, facts.slower ? " (slower)" : "",
                       facts.decode, facts.prompt)] += static_cast<int64_t>(facts.names.size());
  }
  return counts;
}

}  // namespace

int bench_device(const DeviceBench& options, const CommonOptions& common) {
  const Subject subject = open_subject(options, common);
  DeviceModel& model = subject.model();
  const int64_t vocabulary = model.spec().vocabulary;
  const int64_t capacity = std::max<int64_t>({1, options.prompt, options.depth + options.generate});
  const CacheType cache = device_cache_type(options.cache);
  const auto sequence = model.make_sequence(capacity, cache);
  const std::vector<int32_t> prompt = random_ids(options.prompt, vocabulary);
  const std::vector<int32_t> before = random_ids(options.depth, vocabulary);
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  std::vector<double> prompt_seconds, decode_seconds;
  const auto measure_prompt = [&] {
    sequence->truncate(0);
    const double started = monotonic_seconds();
    sequence->append(prompt, nullptr, logits.data());
    return monotonic_seconds() - started;
  };
  const auto measure_decode = [&](int64_t tokens) {
    sequence->truncate(options.depth);
    const double started = monotonic_seconds();
    sequence->append_greedy(1, tokens);
    return (monotonic_seconds() - started) / static_cast<double>(tokens);
  };
  if (options.prompt > 0) {
    measure_prompt();
    for (int64_t i = 0; i < options.repetitions; ++i) prompt_seconds.push_back(measure_prompt());
  }
  if (options.generate > 0) {
    sequence->truncate(0);
    if (options.depth > 0) sequence->append(before, nullptr, nullptr);
    measure_decode(std::min<int64_t>(options.generate, 4));
    for (int64_t i = 0; i < options.repetitions; ++i)
      decode_seconds.push_back(measure_decode(options.generate));
  }

  const double prompt_median = median(prompt_seconds), decode_median = median(decode_seconds);
  const std::string name = options.model.empty() ? options.shape.shape : options.model.string();
  const std::map<std::string, int64_t> kernels = count_kernels(model);
  if (common.json) {
    const auto or_null = [](bool measured, double value) {
      return measured ? OrderedJson(value) : OrderedJson(nullptr);
    };
    const bool prompted = !prompt_seconds.empty(), decoded = !decode_seconds.empty();
    write_json(
        {{"device", model.device_name()},
         {"model", name},
         {"recipe", options.model.empty() ? OrderedJson(options.shape.recipe) : OrderedJson(nullptr)},
         {"layers", model.spec().layers},
         {"prompt_tokens_per_second", or_null(prompted, static_cast<double>(options.prompt) / prompt_median)},
         {"decode_tokens_per_second", or_null(decoded, 1 / decode_median)},
         {"prompt_seconds", prompt_seconds},
         {"decode_seconds_per_token", decode_seconds},
         {"prompt_tokens", options.prompt},
         {"generated_tokens", options.generate},
         {"depth", options.depth},
         {"batch", 1},
         {"cache_type_k", cache_type_name(cache)},
         {"cache_type_v", cache_type_name(cache)},
         {"cache_bytes", sequence->bytes()},
         {"device_weight_bytes", model.weight_bytes()},
         {"device_used_bytes", model.used_bytes()},
         {"kernels", kernels}});
    return kExitDone;
  }
  write_output(
      format_text("{} on {}{}, {} layers\n", name, model.device_name(),
                  options.model.empty() ? ", recipe " + options.shape.recipe + ", synthetic weights" : "",
                  model.spec().layers));
  if (!prompt_seconds.empty()) {
    write_output(format_text("prompt   {} tokens: {:.3f} ms, {:.0f} tokens/s (median of {})\n",
                             options.prompt, 1e3 * prompt_median,
                             static_cast<double>(options.prompt) / prompt_median, prompt_seconds.size()));
  }
  if (!decode_seconds.empty()) {
    write_output(format_text(
        "decode   {} tokens at depth {}: {:.4f} ms each, {:.1f} tokens/s (median of {})\n", options.generate,
        options.depth, 1e3 * decode_median, 1 / decode_median, decode_seconds.size()));
  }
  for (const auto& [text, count] : kernels)
    write_output(format_text("kernels  {} linears: {}\n", count, text));
  write_output(format_text("memory   {} of weights, {} of {} cache, {} of the GPU in use\n",
                           format_bytes(static_cast<double>(model.weight_bytes())),
                           format_bytes(static_cast<double>(sequence->bytes())), cache_type_name(cache),
                           format_bytes(static_cast<double>(model.used_bytes()))));
  return kExitDone;
}

}  // namespace nibble
