// nibble run: continue a prompt.
#include <charconv>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "json_output.h"
#include "nibble/nibble.h"
#include "runtime/token_ids.h"

namespace nibble {
namespace {

struct RunOptions {
  std::filesystem::path model;
  std::string prompt;
  std::filesystem::path prompt_file;
  std::string prompt_ids;
  int64_t context = 0;
  bool no_special = false;
  GenerateOptions generate;
};

void print_rates(const Generation& result) {
  const int64_t decoded = result.generated_tokens() - 1;  // the first token comes from the prompt's pass
  std::string line =
      format_text("{} prompt tokens in {}", result.prompt_ids.size(), format_seconds(result.prompt_seconds));
  if (decoded > 0 && result.decode_seconds > 0) {
    line += format_text(", then {:.1f} tokens/s", static_cast<double>(decoded) / result.decode_seconds);
  }
  log_info("{}; {} tokens, ended by {}", line, result.generated_tokens(),
           stop_reason_name(result.stop_reason));
}

int run(const RunOptions& options, const CommonOptions& common) {
  LanguageModel model = LanguageModel::load(options.model, {.threads = common.threads,
                                                            .context_length = options.context,
                                                            .device = common.device,
                                                            .strict = common.strict});
  std::vector<int32_t> ids;
  if (!options.prompt_ids.empty()) {
    ids = parse_token_ids(options.prompt_ids, "--prompt-ids");
  } else {
    std::string prompt = options.prompt;
    if (!options.prompt_file.empty()) prompt = read_text(options.prompt_file);
    if (prompt == "-" && options.prompt_file.empty()) prompt = read_text("-");
    ids = model.tokenize(prompt, !options.no_special);
    if (ids.empty()) {
      fail("the prompt has no tokens{}",
           prompt.empty() ? ": it is empty and this model starts texts with no special token" : "");
    }
  }
  const TextCallback stream = [&](std::string_view text) {
    if (!common.json) {
      write_output(text);
      flush_output();
    }
    return true;
  };
  const Generation result = model.generate(ids, options.generate, stream);
  if (common.json) {
    write_json({{"device", model.device_name().empty() ? "cpu" : model.device_name()},
                {"prompt_ids", result.prompt_ids},
                {"output_ids", result.output_ids},
                {"text", result.text},
                {"stop_reason", stop_reason_name(result.stop_reason)},
                {"seed", result.seed}});
  } else {
    write_output("\n");
    flush_output();
    print_rates(result);
  }
  return result.stop_reason == StopReason::kInterrupted ? kExitInterrupted : kExitDone;
}

// A seed as llama.cpp takes it: -1 stands for none.
std::optional<uint64_t> parse_seed(const std::string& text) {
  if (text == "-1") return std::nullopt;
  uint64_t seed = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || stop != text.data() + text.size()) {
    throw CLI::ValidationError("--seed", "'" + text + "' is no whole number from -1 to 18446744073709551615");
  }
  return seed;
}

}  // namespace

Action add_run(CLI::App& command) {
  const auto common = add_common_options(command);
  const auto options = std::make_shared<RunOptions>();
  GenerateOptions& generate = options->generate;
  SamplingOptions& sampling = generate.sampling;
  add_model_argument(command, &options->model);
  auto* prompt = command.add_option_group("prompt", "The text to continue (one of these)");
  prompt->add_option("-p,--prompt", options->prompt, "The text itself; '-' reads it from standard input")
      ->type_name("TEXT");
  prompt->add_option("-f,--file", options->prompt_file, "A file that holds it")->type_name("FILE");
  prompt->add_option("--prompt-ids", options->prompt_ids, "Token ids, such as '1 592 343'")->type_name("IDS");
  prompt->require_option(1);
  command
      .add_option("-n,--n-predict", generate.max_tokens,
                  "Tokens to generate at most; -1: until the text ends or the context is full")
      ->capture_default_str()
      ->check(whole_number(-1))
      ->type_name("N");
  command
      .add_option("-c,--ctx-size,--context", options->context, "Context length (default: the model's own)")
      ->check(whole_number(1, int64_t{1} << 24))
      ->type_name("N");
  add_cache_options(command, &generate.key_cache, &generate.value_cache);
  command.add_option("--temp", sampling.temperature, "Temperature; 0: always the most likely token")
      ->type_name("T");
  command.add_option("--top-k", sampling.top_k, "Draw from the K most likely tokens; 0: off")->type_name("K");
  command
      .add_option("--top-p", sampling.top_p, "Draw from the most likely tokens that together reach P; 1: off")
      ->type_name("P");
  command
      .add_option("--min-p", sampling.min_p,
                  "Draw from tokens at least P times as likely as the best; 0: off")
      ->type_name("P");
  command.add_option("--repeat-penalty", sampling.repeat_penalty, "Make recent tokens less likely; 1: off")
      ->type_name("X");
  command.add_option("--repeat-last-n", sampling.repeat_last, "Tokens the penalty looks back on; -1: all")
      ->capture_default_str()
      ->type_name("N");
  command
      .add_option_function<std::string>(
          "-s,--seed", [&sampling](const std::string& text) { sampling.seed = parse_seed(text); },
          "Seed of the draws; -1: a new one each time (default)")
      ->type_name("N");
  command.add_option("--stop", generate.stop, "A text that ends the generation; may be given several times")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false)
      ->type_name("TEXT");
  command.add_flag("--ignore-eos", generate.ignore_end_of_text, "Go on after an end-of-text token");
  command.add_flag("--no-special", options->no_special,
                   "Do not start with the tokens that the tokenizer adds (BOS)");
  set_examples(
      command,
      {"nibble run MODEL -p 'Once upon a time'",
       "nibble run MODEL -p 'Once upon a time' -n 200 --temp 0.7 --seed 1",
       "nibble run MODEL -f prompt.txt --temp 0 --json", "echo 'It was a' | nibble run MODEL -p -"},
      "Raw completion, without a chat template. Sampling settings that are not given come from the model's\n"
      "generation_config.json; where that has none: --temp 0.8 --top-k 40 --top-p 0.95 --min-p 0.05.\n"
      "Ctrl-C ends the generation.");
  return [options, common] {
    common->apply(true);
    return run(*options, *common);
  };
}

}  // namespace nibble
