// nibble compare: recipes beside one another on one model, in one report.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "comparison/compare_models.h"
#include "io/atomic_output.h"
#include "json_output.h"

namespace nibble {
namespace {

struct CompareCommand {
  CompareOptions compare;
  std::vector<std::string> recipes;
  std::filesystem::path text_file, report, work_folder;
  bool no_special = false, keep = false, bench = true;
  std::string scoring = "letter", order = "bits";
};

std::vector<Recipe> find_recipes(const std::vector<std::string>& names) {
  std::vector<std::string> all;
  for (const std::string& name : names) {
    if (name == "all") {
      for (const std::string& builtin : Recipe::builtin_names()) all.push_back(builtin);
    } else {
      all.push_back(name);
    }
  }
  std::vector<Recipe> recipes;
  for (size_t i = 0; i < all.size(); ++i) {
    if (std::find(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(i), all[i]) !=
        all.begin() + static_cast<std::ptrdiff_t>(i)) {
      fail_usage("--recipes names '{}' twice", all[i]);
    }
    recipes.push_back(Recipe::find(all[i]));
  }
  return recipes;
}

// This run as one would type it.
std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text = "nibble", argument;
  std::getline(file, argument, '\0');
  while (std::getline(file, argument, '\0')) {
    const bool plain =
        !argument.empty() && argument.find_first_of(" \t\n'\"\\$`*?[]()<>|&;#!~{}") == std::string::npos;
    if (!plain) {
      std::string quoted = "'";
      for (const char c : argument) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
      argument = quoted + "'";
    }
    text += " " + argument;
  }
  return text;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  if (localtime_r(&now, &local) == nullptr) return "";
  return format_text("{:04}-{:02}-{:02}", local.tm_year + 1900, local.tm_mon + 1, local.tm_mday);
}

int compare(CompareCommand& command, const CommonOptions& common) {
  CompareOptions& options = command.compare;
  options.recipes = find_recipes(command.recipes);
  if (options.recipes.empty() && options.models.empty())
    fail_usage("--recipes or --with is missing: nothing to compare");
  if (options.embedding_bits != 16 && options.embedding_bits != 8 && options.embedding_bits != 4)
    fail_usage("--embedding-bits is {}, expected 16, 8 or 4", options.embedding_bits);
  if (!command.text_file.empty()) {
    options.text = read_text(command.text_file);
    options.text_name = command.text_file == "-" ? "standard input" : command.text_file.filename().string();
  }
  options.add_special = !command.no_special;
  options.task_options.continuation_scoring = command.scoring == "continuation";
  options.keep = command.keep || !command.work_folder.empty();
  options.work_folder = command.work_folder;
  if (options.work_folder.empty()) {
    options.work_folder = command.report.empty() ? "nibble-compare" : command.report;
    options.work_folder.replace_extension(".work");
  }
  if (command.bench) {
    std::error_code error;
    options.program = std::filesystem::read_symlink("/proc/self/exe", error);
    if (error) fail("/proc/self/exe: cannot be read: {}; --no-bench leaves speed out", error.message());
  }
  // Where the report cannot be written is known before the work.
  std::optional<AtomicOutput> output;
  if (!command.report.empty()) output.emplace(command.report, /*is_folder=*/false, /*replace=*/true);

  CompareOutcome outcome = compare_models(options, std::make_shared<ThreadPool>(common.threads));
  Comparison& comparison = outcome.comparison;
  comparison.date = today();
  comparison.command = command_line();
  sort_rows(&comparison, command.order == "given" ? RowOrder::kGiven
                         : command.order == "kl"  ? RowOrder::kDivergence
                                                  : RowOrder::kBits);
  if (output) {
    {
      std::ofstream file(output->temporary_path(), std::ios::binary);
      file << comparison_html(comparison);
      file.close();
      if (!file) fail("{}: cannot be written: {}", command.report.string(), std::strerror(errno));
    }
    output->commit();
  }
  if (common.json) {
    OrderedJson json = comparison_json(comparison);
    json["report"] = command.report.empty() ? OrderedJson(nullptr) : OrderedJson(command.report.string());
    write_json(json);
  } else {
    write_output(comparison_text(comparison));
    if (output) write_output(format_text("\nreport: {}\n", command.report.string()));
    if (options.keep) write_output(format_text("models: {}\n", options.work_folder.string()));
  }
  return outcome.failures > 0 ? kExitFailed : kExitDone;
}

}  // namespace

Action add_compare(CLI::App& app) {
  const auto common = add_common_options(app);
  const auto command = std::make_shared<CompareCommand>();
  CompareOptions& options = command->compare;
  const auto number = [&](const char* names, int64_t* value, int64_t least, const char* what) {
    app.add_option(names, *value, what)
        ->capture_default_str()
        ->check(whole_number(least, int64_t{1} << 24))
        ->type_name("N");
  };
  add_model_argument(app, &options.model);
  app.add_option("--recipes", command->recipes, "Built-in recipes or recipe files; 'all': every built-in one")
      ->delimiter(',')
      ->type_name("NAME,...");
  app.add_option("--with", options.models, "Measure these models too (nibble folders, GGUF files)")
      ->delimiter(',')
      ->type_name("MODEL,...");
  auto* input = app.add_option_group("text", "What to predict (one of these)");
  input->add_option("-f,--file,--text", command->text_file, "A UTF-8 text file; '-' reads standard input")
      ->type_name("FILE");
  input
      ->add_option("--ids-file", options.ids_file,
                   "A safetensors file with 'input_ids' [tokens] or [windows, tokens]")
      ->type_name("FILE");
  input->require_option(1);
  app.add_option("-c,--ctx-size,--context", options.window, "Tokens per window (default: 512)")
      ->check(whole_number(2, int64_t{1} << 24))
      ->type_name("N");
  app.add_option("--chunks,--windows", options.max_windows, "Only the first K windows (default: all)")
      ->check(whole_number(1))
      ->type_name("K");
  app.add_flag("--no-special", command->no_special, "No BOS before each window");
  app.add_option("--calib", options.calibration.text_file, "Calibration text (UTF-8)")->type_name("FILE");
  app.add_option("--calib-ids", options.calibration.ids_file,
                 "Calibration tokens: safetensors with input_ids [sequences, length]")
      ->type_name("FILE");
  app.add_flag("--calib-random", options.calibration.random_tokens, "Calibrate on random tokens");
  app.add_option("--calib-sequences", options.calibration.sequences,
                 "Calibration sequences (128, or what the text has)")
      ->type_name("N");
  app.add_option("--calib-length", options.calibration.length,
                 "Tokens per sequence (2048, at most the model's context)")
      ->type_name("N");
  app.add_option("--seed", options.calibration.seed, "Seed of random tokens")->capture_default_str();
  app.add_option("--embedding-bits", options.embedding_bits, "Embedding and head: 16, 8 or 4")
      ->capture_default_str();
  app.add_option("-o,--output", command->report, "HTML page to write; one that is there is replaced")
      ->type_name("FILE");
  app.add_option(
         "--work-dir", command->work_folder,
         "Where quantized models are kept, and found again (default: beside the report, removed at the end)")
      ->type_name("DIR");
  app.add_flag("--keep", command->keep, "Keep the default work folder");
  app.add_flag("--requantize", options.requantize, "Do not use what is in the work folder");
  app.add_flag("--bench,!--no-bench", command->bench, "Measure speed and memory (default), or do not");
  number("-p,--n-prompt", &options.prompt_tokens, 0, "Prompt tokens of the speed measurement");
  number("-n,--n-gen", &options.generated_tokens, 0, "Tokens to decode in it");
  number("-r,--repetitions", &options.repetitions, 1, "Rounds in which the models take turns");
  app.add_option("--evaluate", options.tasks, "Tasks as of 'nibble evaluate'")
      ->delimiter(',')
      ->type_name("FILE,...");
  app.add_option("--limit", options.task_options.limit, "Only the first N examples of each task")
      ->check(whole_number(1))
      ->type_name("N");
  app.add_option("--shots", options.task_options.shots, "Examples shown solved before each")
      ->check(whole_number(0, 1000))
      ->type_name("N");
  app.add_option("--scoring", command->scoring, "MMLU: predict the choice's letter or its text")
      ->check(CLI::IsMember({"letter", "continuation"}))
      ->capture_default_str();
  app.add_option("--sort", command->order, "Rows by bits per weight, by KL divergence, or as given")
      ->check(CLI::IsMember({"bits", "kl", "given"}))
      ->capture_default_str();
  set_examples(
      app,
      {"nibble compare MODEL --recipes quik-4b,quik-8b -f text.txt --calib train.txt -o report.html",
       "nibble compare MODEL --recipes all -f text.txt -c 2048 --chunks 40 --no-special --calib train.txt "
       "--embedding-bits 16 --work-dir models/compared -o report.html",
       "nibble compare MODEL --recipes quik-4b,mine.json --with other.gguf -f text.txt --calib train.txt "
       "--no-bench --json"},
      "Quantizes what is missing, measures every model under one protocol beside the source, and writes one "
      "report.\nWith --work-dir, an interrupted run goes on where it stopped, and a later one does only what "
      "is new.");
  return [command, common] {
    common->apply();
    return compare(*command, *common);
  };
}

}  // namespace nibble
