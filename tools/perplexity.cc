// nibble perplexity: how well a model predicts a text, and how far it is from a reference model.
#include "runtime/perplexity.h"

#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "json_output.h"

namespace nibble {
namespace {

struct PerplexityCommand {
  std::filesystem::path model, reference, text_file, ids_file;
  std::optional<int64_t> window;
  int64_t max_windows = 0;
  bool no_special = false;
  std::string key_cache = "f32", value_cache = "f32";
};

// A difference in tokenizers would make the two models answer different questions.
void check_same_tokens(const Engine& engine, const Engine& reference, std::string_view text) {
  const EncodeOptions plain = {.add_special = false};
  if (engine.tokenizer().encode(text, plain) != reference.tokenizer().encode(text, plain)) {
    fail("{}: its tokenizer cuts the text differently from that of {}: the models cannot be compared",
         reference.path().string(), engine.path().string());
  }
}

std::string with_error(double value, double standard_error) {
  return std::isnan(standard_error) ? format_text("{:.6g}", value)
                                    : format_text("{:.6g} +- {:.2g}", value, standard_error);
}

int measure(const PerplexityCommand& options, const CommonOptions& common) {
  auto pool = std::make_shared<ThreadPool>(common.threads);
  const std::unique_ptr<Engine> engine = Engine::open(options.model, pool, 0, common.engine_device());
  const CacheTypes cache = engine->cache_types({cache_type_from_name(options.key_cache, "--cache-type-k"),
                                                cache_type_from_name(options.value_cache, "--cache-type-v")});
  std::unique_ptr<Engine> reference;
  if (!options.reference.empty()) reference = Engine::open(options.reference, pool);

  ScoringWindows windows;
  std::string source;
  if (!options.ids_file.empty()) {
    source = options.ids_file.string();
    windows = ids_file_windows(*engine, options.ids_file, options.window.value_or(0), options.max_windows,
                               !options.no_special);
  } else {
    source = options.text_file.string();
    const std::string text = read_text(options.text_file);
    windows = text_windows(*engine, text,
                           {.window = options.window.value_or(PerplexityOptions().window),
                            .max_windows = options.max_windows,
                            .add_special = !options.no_special},
                           source);
    if (reference) check_same_tokens(*engine, *reference, text);
  }
  const std::string bos =
      windows.bos >= 0 ? format_text("BOS {} before each", windows.bos) : "no special tokens";
  log_info("{}: {} windows of {} tokens, {}, each scored from its second token", source, windows.windows,
           windows.length, bos);
  const PerplexityResult result = measure_perplexity(*engine, windows, reference.get(), cache);

  if (common.json) {
    OrderedJson json = {{"perplexity", result.perplexity},
                        {"perplexity_stderr", result.perplexity_stderr},
                        {"tokens", result.tokens},
                        {"windows", result.windows}};
    if (result.has_reference) {
      json["log_perplexity_ratio"] = result.log_perplexity_ratio;
      json["log_perplexity_ratio_stderr"] = result.log_perplexity_ratio_stderr;
      json["kl_divergence"] = result.kl_divergence;
      json["kl_stderr"] = result.kl_stderr;
      json["top1_agreement"] = result.top1_agreement;
      json["top1_stderr"] = result.top1_stderr;
    }
    json["device"] = engine->device() == nullptr ? "cpu" : engine->device()->device_name();
    json["context"] = windows.length;
    json["cache_type_k"] = cache_type_name(cache.keys);
    json["cache_type_v"] = cache_type_name(cache.values);
    json["bos"] = windows.bos >= 0 ? OrderedJson(windows.bos) : OrderedJson(nullptr);
    write_json(json);
    return kExitDone;
  }
  write_output(format_text("perplexity      {}\n", with_error(result.perplexity, result.perplexity_stderr)));
  if (result.has_reference) {
    const double ratio = std::exp(result.log_perplexity_ratio);
    write_output(
        format_text("perplexity rise {} %\n",
                    with_error(100 * (ratio - 1), 100 * ratio * result.log_perplexity_ratio_stderr)));
    write_output(format_text("KL divergence   {} nats from {}\n",
                             with_error(result.kl_divergence, result.kl_stderr), options.reference.string()));
    write_output(format_text("top-1 agreement {} %\n",
                             with_error(100 * result.top1_agreement, 100 * result.top1_stderr)));
  }
  write_output(format_text("{} tokens scored in {} windows of {}, {}\n", result.tokens, result.windows,
                           windows.length, bos));
  return kExitDone;
}

}  // namespace

Action add_perplexity(CLI::App& command) {
  const auto common = add_common_options(command);
  const auto options = std::make_shared<PerplexityCommand>();
  add_model_argument(command, &options->model);
  auto* input = command.add_option_group("text", "What to predict (one of these)");
  input->add_option("-f,--file,--text", options->text_file, "A UTF-8 text file; '-' reads standard input")
      ->type_name("FILE");
  input
      ->add_option("--ids-file", options->ids_file,
                   "A safetensors file with 'input_ids' [tokens] or [windows, tokens]")
      ->type_name("FILE");
  input->require_option(1);
  command.add_option("-c,--ctx-size,--context", options->window, "Tokens per window (default: 512)")
      ->check(whole_number(2, int64_t{1} << 24))
      ->type_name("N");
  command.add_option("--chunks,--windows", options->max_windows, "Only the first K windows (default: all)")
      ->check(whole_number(1))
      ->type_name("K");
  command.add_flag("--no-special", options->no_special, "No BOS before each window");
  add_cache_options(command, &options->key_cache, &options->value_cache);
  command
      .add_option("--reference", options->reference,
                  "Also measure KL divergence and top-1 agreement with this model")
      ->type_name("MODEL");
  set_examples(command, {"nibble perplexity MODEL -f text.txt",
                         "nibble perplexity MODEL -f text.txt -c 2048 --chunks 40 --no-special",
                         "nibble perplexity OUT -f text.txt --reference MODEL --json"});
  return [options, common] {
    common->apply(true);
    return measure(*options, *common);
  };
}

}  // namespace nibble
