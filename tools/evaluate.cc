// nibble evaluate: accuracy on tasks with known answers, from JSON Lines files.
#include "evaluation/evaluate.h"

#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "json_output.h"

namespace nibble {
namespace {

struct EvaluateCommand {
  std::filesystem::path model, reference;
  std::vector<std::filesystem::path> tasks;
  TaskOptions task_options;
  EvaluateOptions evaluate_options;
  std::string scoring = "letter";
};

std::vector<TaskResult> evaluate_all(const std::filesystem::path& model,
                                     const std::shared_ptr<ThreadPool>& pool, const std::vector<Task>& tasks,
                                     const EvaluateOptions& options) {
  const std::unique_ptr<Engine> engine = Engine::open(model, pool);
  std::vector<TaskResult> results;
  for (const Task& task : tasks) results.push_back(evaluate_task(*engine, task, options));
  return results;
}

OrderedJson to_json(const TaskResult& result) {
  OrderedJson json = {{"task", result.name},
                      {"file", result.source},
                      {"shape", task_shape_name(result.shape)},
                      {"examples", result.examples},
                      {"accuracy", result.accuracy},
                      {"accuracy_stderr", result.accuracy_stderr}};
  if (result.has_norm) {
    json["accuracy_norm"] = result.accuracy_norm;
    json["accuracy_norm_stderr"] = result.accuracy_norm_stderr;
  }
  if (result.has_perplexity) {
    json["perplexity"] = result.perplexity;
    json["perplexity_stderr"] = result.perplexity_stderr;
  }
  if (result.has_reference) {
    json["agreement"] = result.agreement;
    json["agreement_stderr"] = result.agreement_stderr;
    json["reference_accuracy"] = result.reference_accuracy;
  }
  json["truncated"] = result.truncated;
  return json;
}

std::string percent(double value, double standard_error) {
  return std::isnan(standard_error) ? format_text("{:.2f} %", 100 * value)
                                    : format_text("{:.2f} +- {:.2f} %", 100 * value, 100 * standard_error);
}

void print(const TaskResult& result, const std::string& reference) {
  write_output(
      format_text("{} ({}, {} examples)\n", result.name, task_shape_name(result.shape), result.examples));
  write_output(format_text("  accuracy              {}\n", percent(result.accuracy, result.accuracy_stderr)));
  if (result.has_norm) {
    write_output(format_text("  accuracy by length    {}\n",
                             percent(result.accuracy_norm, result.accuracy_norm_stderr)));
  }
  if (result.has_perplexity) {
    write_output(std::isnan(result.perplexity_stderr)
                     ? format_text("  perplexity            {:.6g}\n", result.perplexity)
                     : format_text("  perplexity            {:.6g} +- {:.2g}\n", result.perplexity,
                                   result.perplexity_stderr));
  }
  if (result.has_reference) {
    write_output(format_text("  same answer as        {}: {} (its accuracy: {:.2f} %)\n", reference,
                             percent(result.agreement, result.agreement_stderr),
                             100 * result.reference_accuracy));
  }
}

int evaluate(const EvaluateCommand& options, const CommonOptions& common) {
  std::vector<Task> tasks;  // all are read before any model is
  for (const std::filesystem::path& path : options.tasks)
    tasks.push_back(read_task(path, options.task_options));
  const auto pool = std::make_shared<ThreadPool>(common.threads);
  std::vector<TaskResult> reference;
  if (!options.reference.empty())
    reference = evaluate_all(options.reference, pool, tasks, options.evaluate_options);
  std::vector<TaskResult> results = evaluate_all(options.model, pool, tasks, options.evaluate_options);
  for (size_t i = 0; i < reference.size(); ++i) compare_predictions(reference[i], &results[i]);

  if (common.json) {
    OrderedJson json = {{"model", options.model.string()}};
    if (!options.reference.empty()) json["reference"] = options.reference.string();
    json["shots"] = options.task_options.shots;
    json["bos"] = options.evaluate_options.add_bos;
    json["tasks"] = OrderedJson::array();
    for (const TaskResult& result : results) json["tasks"].push_back(to_json(result));
    write_json(json);
    return kExitDone;
  }
  for (const TaskResult& result : results) print(result, options.reference.string());
  return kExitDone;
}

}  // namespace

Action add_evaluate(CLI::App& command) {
  const auto common = add_common_options(command);
  const auto options = std::make_shared<EvaluateCommand>();
  add_model_argument(command, &options->model);
  command
      .add_option(
          "--tasks", options->tasks,
          "JSON Lines files in the shape of LAMBADA, HellaSwag or MMLU, or with prompt, choices and answer")
      ->required()
      ->delimiter(',')
      ->type_name("FILE,...");
  command.add_option("--limit", options->task_options.limit, "Only the first N examples of each file")
      ->check(whole_number(1))
      ->type_name("N");
  command
      .add_option("--shots", options->task_options.shots,
                  "Show the first N examples of a file solved before each of the others (default: 0)")
      ->check(whole_number(0, 1000))
      ->type_name("N");
  command.add_option("--scoring", options->scoring, "MMLU: predict the choice's letter or its text")
      ->check(CLI::IsMember({"letter", "continuation"}))
      ->capture_default_str();
  command.add_flag("--bos", options->evaluate_options.add_bos, "Begin each example with the model's BOS");
  command.add_flag("--truncate", options->evaluate_options.truncate,
                   "Cut the beginning off what is longer than the context, instead of refusing it");
  command.add_option("--reference", options->reference, "Also measure how often this model answers the same")
      ->type_name("MODEL");
  set_examples(
      command,
      {"nibble evaluate MODEL --tasks lambada.jsonl,hellaswag.jsonl --limit 500",
       "nibble evaluate MODEL --tasks mmlu.jsonl --shots 5 --scoring continuation",
       "nibble evaluate OUT --tasks questions.jsonl --reference MODEL --json"},
      "Lines: {\"text\"}; {\"ctx\", \"endings\", \"label\"}; {\"question\", \"choices\", \"answer\"}; or "
      "{\"prompt\", \"choices\", \"answer\"}.\nFormatting and tokens follow lm-evaluation-harness.");
  return [options, common] {
    common->apply();
    options->task_options.continuation_scoring = options->scoring == "continuation";
    return evaluate(*options, *common);
  };
}

}  // namespace nibble
