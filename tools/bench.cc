// nibble bench: tokens per second of a model, prompt and decode, as llama-bench measures them: random tokens,
// one warm-up, and in the prompt only the last token's logits.
#include <algorithm>
#include <map>

#include "backend/cpu/cpu_path.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/system_info.h"
#include "bench_device.h"
#include "bench_kernels.h"
#include "bench_shapes.h"
#include "command.h"
#include "json_output.h"
#include "runtime/engine.h"
#include "runtime/sampler.h"

namespace nibble {
namespace {

struct BenchCommand {
  std::filesystem::path model;
  int64_t prompt = 512;    // tokens
  int64_t generate = 128;  // tokens
  int64_t depth = 0;       // tokens in the context before decoding starts
  int64_t batch = 1;       // sequences decoded together
  int64_t repetitions = 3;
  std::string key_cache = "f16", value_cache = "f16";

  CacheTypes cache() const {
    return {cache_type_from_name(key_cache, "--cache-type-k"),
            cache_type_from_name(value_cache, "--cache-type-v")};
  }
};

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Ids of a fixed seed: every run, and every program version, works on the same tokens.
std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary, uint64_t stream) {
  const CounterRandom random(stream);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(
        static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) * static_cast<double>(vocabulary)));
  }
  return ids;
}

double prompt_seconds(const Engine& engine, const std::vector<int32_t>& ids, CacheTypes cache) {
  Session session(engine, static_cast<int64_t>(ids.size()), cache);
  const double started = monotonic_seconds();
  session.append(ids);
  return monotonic_seconds() - started;
}

// `batch` sequences advance together, one token each per step, from `depth` tokens of context on.
class BatchDecoder {
 public:
  BatchDecoder(const Engine& engine, int64_t batch, int64_t depth, int64_t steps, CacheTypes cache)
      : engine_(engine), batch_(batch), position_(depth) {
    for (int64_t i = 0; i < batch; ++i) caches_.push_back(engine.model().make_cache(depth + steps, cache));
    for (int64_t done = 0; done < depth; done += kPromptBatch) {
      const int64_t count = std::min(kPromptBatch, depth - done);
      for (int64_t i = 0; i < batch; ++i) {
        run(random_ids(count, engine.vocabulary(), static_cast<uint64_t>(1000 + i)),
            {{.cache = caches_[static_cast<size_t>(i)].get(),
              .first_row = 0,
              .count = count,
              .first_position = done}});
      }
    }
    for (int64_t i = 0; i < batch; ++i) rows_.push_back(i);
    logits_.resize(static_cast<size_t>(batch * engine.vocabulary()));
  }

  void step(uint64_t number) {
    std::vector<SequenceSpan> spans;
    for (int64_t i = 0; i < batch_; ++i) {
      spans.push_back({.cache = caches_[static_cast<size_t>(i)].get(),
                       .first_row = i,
                       .count = 1,
                       .first_position = position_});
    }
    run(random_ids(batch_, engine_.vocabulary(), number), spans);
    ++position_;
    engine_.model().logits(hidden_.data(), rows_, batch_, logits_.data(), scratch_, *engine_.pool());
  }

 private:
  void run(const std::vector<int32_t>& ids, const std::vector<SequenceSpan>& spans) {
    throw_if_interrupted();
    const int64_t tokens = static_cast<int64_t>(ids.size());
    hidden_.resize(static_cast<size_t>(tokens * engine_.model().spec().hidden_size));
    engine_.model().embed(ids, hidden_.data());
    engine_.model().run_blocks(
        hidden_.data(),
        {.sequences = spans, .tokens = tokens, .scratch = &scratch_, .pool = engine_.pool().get()});
    for (const SequenceSpan& span : spans) span.cache->set_length(span.first_position + span.count);
  }

  const Engine& engine_;
  int64_t batch_, position_;
  std::vector<std::unique_ptr<SequenceCache>> caches_;
  std::vector<int64_t> rows_;
  std::vector<float> hidden_, logits_;
  Scratch scratch_;
};

double decode_seconds(const Engine& engine, const BenchCommand& options, int64_t steps) {
  BatchDecoder decoder(engine, options.batch, options.depth, steps, options.cache());
  const double started = monotonic_seconds();
  for (int64_t i = 0; i < steps; ++i) decoder.step(static_cast<uint64_t>(i));
  return monotonic_seconds() - started;
}

// "quik int4xint4->int32 on quik-avx512vnni" -> how many of the blocks' linears.
std::map<std::string, int64_t> count_kernels(const Engine& engine) {
  std::map<std::string, int64_t> counts;
  for (const Block& block : engine.model().blocks()) {
    for (const auto& sublayer : block.sublayers) {
      for (const LinearGroup* group : sublayer->groups()) {
        for (size_t i = 0; i < group->slots().size(); ++i) {
          const PackedLinear& packed = *group->slots()[i].packed;
          ++counts[format_text("{} on {}", packed.format->arithmetic(packed), group->kernel_of(i)->name)];
        }
      }
    }
  }
  return counts;
}

int bench(const BenchCommand& options, const CommonOptions& common) {
  const auto engine = Engine::open(options.model, std::make_shared<ThreadPool>(common.threads));
  const int64_t needed = std::max(options.prompt, options.depth + options.generate);
  if (needed > engine->context_length()) {
    fail("{}: {} tokens are more than the model's context of {}", options.model.string(), needed,
         engine->context_length());
  }
  // Of one sequence of the longest length measured.
  const size_t cache_bytes =
      engine->model().make_cache(std::max<int64_t>(1, needed), options.cache())->bytes();
  const std::vector<int32_t> prompt = random_ids(options.prompt, engine->vocabulary(), 0);
  std::vector<double> prompt_samples, decode_samples;
  const double steps = static_cast<double>(2 * options.repetitions + 1);
  Progress progress("measuring", steps);
  if (options.prompt > 0) prompt_seconds(*engine, prompt, options.cache());
  if (options.generate > 0) decode_seconds(*engine, options, std::min<int64_t>(options.generate, 4));
  progress.update(1, "warmed up");
  for (int64_t i = 0; i < options.repetitions; ++i) {
    if (options.prompt > 0)
      prompt_samples.push_back(static_cast<double>(options.prompt) /
                               prompt_seconds(*engine, prompt, options.cache()));
    progress.update(static_cast<double>(2 * i + 2));
    if (options.generate > 0) {
      decode_samples.push_back(static_cast<double>(options.batch * options.generate) /
                               decode_seconds(*engine, options, options.generate));
    }
    progress.update(static_cast<double>(2 * i + 3));
  }
  progress.finish();

  const std::map<std::string, int64_t> kernels = count_kernels(*engine);
  const LinearGroup& head = engine->model().head();
  const PackedLinear& head_weight = *head.slots().front().packed;
  const std::string head_text =
      format_text("{} on {}", head_weight.format->arithmetic(head_weight), head.kernel_of(0)->name);
  if (common.json) {
    const auto or_null = [](const std::vector<double>& samples) {
      return samples.empty() ? OrderedJson(nullptr) : OrderedJson(median(samples));
    };
    OrderedJson json = {{"prompt_tokens_per_second", or_null(prompt_samples)},
                        {"decode_tokens_per_second", or_null(decode_samples)},
                        {"prompt_samples", prompt_samples},
                        {"decode_samples", decode_samples},
                        {"peak_memory_bytes", peak_memory_bytes()},
                        {"prompt_tokens", options.prompt},
                        {"generated_tokens", options.generate},
                        {"depth", options.depth},
                        {"batch", options.batch},
                        {"cache_type_k", cache_type_name(options.cache().keys)},
                        {"cache_type_v", cache_type_name(options.cache().values)},
                        {"cache_bytes", cache_bytes},
                        {"threads", engine->pool()->size()},
                        {"load_seconds", engine->load_seconds()},
                        {"cpu", cpu_description()},
                        {"cpu_path", cpu_path_name(active_cpu_path())}};
    json["kernels"] = kernels;
    json["head_kernel"] = head_text;
    write_json(json);
    return kExitDone;
  }
  write_output(format_text("{}, path {}, {} threads\n", cpu_description(), cpu_path_name(active_cpu_path()),
                           engine->pool()->size()));
  const auto print = [](const char* name, const std::string& what, const std::vector<double>& samples) {
    if (samples.empty()) return;
    const auto [least, most] = std::minmax_element(samples.begin(), samples.end());
    write_output(format_text("{:<8} {:<28} {:>10.1f} tokens/s   (median of {}, {:.1f} .. {:.1f})\n", name,
                             what, median(samples), samples.size(), *least, *most));
  };
  print("prompt", format_text("{} tokens", options.prompt), prompt_samples);
  print("decode", format_text("{} tokens x {} at depth {}", options.generate, options.batch, options.depth),
        decode_samples);
  for (const auto& [text, count] : kernels)
    write_output(format_text("kernels  {} linears: {}\n", count, text));
  write_output(format_text("         head: {}\n", head_text));
  write_output(format_text("cache    {} keys, {} values: {} for {} tokens\n",
                           cache_type_name(options.cache().keys), cache_type_name(options.cache().values),
                           format_bytes(static_cast<double>(cache_bytes)), needed));
  write_output(format_text("memory   {} at most, loaded in {:.2f} s\n",
                           format_bytes(static_cast<double>(peak_memory_bytes())), engine->load_seconds()));
  return kExitDone;
}

}  // namespace

Action add_bench(CLI::App& command) {
  const auto common = add_common_options(command);
  const auto options = std::make_shared<BenchCommand>();
  const auto shapes = std::make_shared<ShapeBench>();
  CLI::Option* model = add_model_argument(command, &options->model);
  model->required(false);
  const auto number = [&](const char* names, int64_t* value, int64_t least, const char* what) {
    command.add_option(names, *value, what)
        ->capture_default_str()
        ->check(whole_number(least, int64_t{1} << 24))
        ->type_name("N");
  };
  number("-p,--n-prompt", &options->prompt, 0, "Prompt tokens; 0: no prompt measurement");
  number("-n,--n-gen", &options->generate, 0, "Tokens to decode; 0: no decode measurement");
  number("-r,--repetitions", &options->repetitions, 1,
         "Measurements of each, alternating; medians are reported");
  number("-b,--batch", &options->batch, 1, "Sequences decoded together");
  add_cache_options(command, &options->key_cache, &options->value_cache);
  number("-d,--depth", &options->depth, 0, "Tokens in the context before decoding starts");
  CLI::Option* shape = command
                           .add_option("--shape", shapes->shape,
                                       "Instead of a model: one block's linears of " + shape_names() +
                                           ", or MxNxK (tokens x outputs x inputs); on a GPU the whole "
                                           "model unless --kernels")
                           ->excludes(model)
                           ->type_name("NAME|MxNxK");
  number("--layers", &shapes->layers, 0, "Layers of --shape's model on a GPU; 0: all of them");
  const auto kernels = std::make_shared<KernelBench>();
  const auto kernels_only = std::make_shared<bool>(false);
  command
      .add_flag("--kernels", *kernels_only,
                "On a GPU: --shape's linears instead of the whole model, beside cuBLASLt's FP16 products and "
                "the GPU's measured limits; as MxNxK always")
      ->needs(shape);
  kernels->tokens = "1,16,128,2048";
  command.add_option("--tokens", kernels->tokens, "Numbers of tokens for --kernels")
      ->needs(shape)
      ->capture_default_str()
      ->type_name("N,...");
  command
      .add_option("--recipe", shapes->recipe,
                  "How --shape's synthetic weights are stored; none: 16 bit (default: quik-4b)")
      ->needs(shape)
      ->type_name("NAME");
  set_examples(
      command,
      {"nibble bench MODEL", "nibble bench MODEL -p 2048 -n 0 -r 5",
       "nibble bench MODEL -n 64 -d 1024 -b 4 --json", "nibble bench --shape llama-2-7b --recipe quik-4b",
       "nibble bench --device cuda --shape llama-2-7b --recipe quik-4b -p 2048 -d 2048",
       "nibble bench --device cuda --kernels --shape llama-2-7b --recipe gptq-w4a16-g128 --tokens 1,2048",
       "nibble bench --shape 512x4096x4096 --recipe none"});
  return [options, shapes, kernels, kernels_only, common, model, shape] {
    common->apply(true);
    if (common->engine_device().gpu >= 0) {
      if (shape->count() == 0 && model->count() == 0)
        fail_usage("MODEL or --shape is required.\nSee 'nibble bench --help'.");
      if (options->batch != 1)
        fail_usage("-b {}: on a GPU one sequence is decoded at a time", options->batch);
      if (shapes->recipe.empty()) shapes->recipe = "none";
      if (shape->count() > 0 && (*kernels_only || !is_model_shape(*shapes))) {
        kernels->shape = *shapes;
        kernels->repetitions = options->repetitions;
        return bench_kernels(*kernels, *common);
      }
      return bench_device({.model = options->model,
                           .shape = *shapes,
                           .prompt = options->prompt,
                           .generate = options->generate,
                           .depth = options->depth,
                           .repetitions = options->repetitions,
                           .cache = options->cache()},
                          *common);
    }
    if (*kernels_only)
      fail_usage("--kernels is for --device cuda; on a CPU --shape always measures single linears");
    if (shape->count() > 0) {
      if (shapes->recipe.empty()) shapes->recipe = "quik-4b";
      if (options->prompt < 1) fail_usage("-p 0: a shape needs at least one token");
      shapes->prompt = options->prompt;
      shapes->batch = options->batch;
      shapes->repetitions = options->repetitions;
      return bench_shapes(*shapes, *common);
    }
    if (model->count() == 0) fail_usage("MODEL or --shape is required.\nSee 'nibble bench --help'.");
    return bench(*options, *common);
  };
}

}  // namespace nibble
