// nibble quantize: a model folder or GGUF file in, a nibble folder out.
#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "json_output.h"
#include "pipeline/quantize_model.h"

namespace nibble {
namespace {

struct Options {
  std::shared_ptr<CommonOptions> common;
  QuantizeOptions quantize;
  std::string recipe = "quik-4b";
  std::vector<std::string> settings;
  bool list_recipes = false, dry_run = false;
};

std::string percent(double share) { return format_text("{:.1f} %", 100 * share); }

int list_recipes(bool json) {
  OrderedJson names = OrderedJson::array();
  for (const std::string& name : Recipe::builtin_names()) {
    const Recipe recipe = Recipe::find(name);
    if (json) {
      names.push_back({{"name", name}, {"description", recipe.description}});
    } else {
      write_output(format_text("{:<24} {}\n", name, recipe.description));
    }
  }
  if (json) write_json(OrderedJson{{"recipes", std::move(names)}});
  return kExitDone;
}

int dry_run(const Options& options, ThreadPool& pool) {
  const QuantizeForecast forecast = forecast_quantization(options.quantize, pool);
  if (options.common->json) {
    write_json(OrderedJson{{"recipe", options.quantize.recipe.name},
                           {"linears", forecast.linears},
                           {"source_bytes", forecast.source_bytes},
                           {"output_bytes", forecast.output_bytes},
                           {"bits_per_weight", forecast.bits_per_weight},
                           {"peak_memory_bytes", forecast.peak_memory_bytes},
                           {"available_memory_bytes", forecast.available_memory_bytes},
                           {"free_disk_bytes", forecast.free_disk_bytes},
                           {"seconds", forecast.seconds},
                           {"sensitivity_sequences", forecast.sensitivity_sequences},
                           {"sensitivity_seconds", forecast.sensitivity_seconds},
                           {"temporary_bytes", forecast.temporary_bytes},
                           {"calibration", forecast.calibration}});
    return kExitDone;
  }
  std::string text = format_text("recipe        {}: {} linears, {:.3f} bits per weight\n",
                                 options.quantize.recipe.name, forecast.linears, forecast.bits_per_weight);
  if (!forecast.calibration.empty()) text += format_text("calibration   {}\n", forecast.calibration);
  if (forecast.sensitivity_sequences > 0) {
    text += format_text("gradients     of the loss on {} sequences: about {}, and {} of disk meanwhile{}\n",
                        forecast.sensitivity_sequences, format_seconds(forecast.sensitivity_seconds),
                        format_bytes(forecast.temporary_bytes),
                        forecast.spill_states ? " (hidden states included: they would fill the memory)" : "");
  }
  text += format_text("result        about {} (source {})\n", format_bytes(forecast.output_bytes),
                      format_bytes(forecast.source_bytes));
  text += format_text("memory        about {} of {} available\n", format_bytes(forecast.peak_memory_bytes),
                      format_bytes(forecast.available_memory_bytes));
  text += format_text("disk          {} free\n", format_bytes(forecast.free_disk_bytes));
  text +=
      format_text("time          about {} on {} threads\n", format_seconds(forecast.seconds), pool.size());
  text += "Nothing was written.\n";
  write_output(text);
  return kExitDone;
}

// The linears that lost most, for the reader who wants to know where to spend bits.
std::vector<LinearResult> worst_linears(const QuantizeResult& result, size_t count) {
  std::vector<LinearResult> worst = result.linears;
  const auto error = [](const LinearResult& linear) {
    return linear.output_error > 0 ? linear.output_error : linear.weight_error;
  };
  std::sort(worst.begin(), worst.end(),
            [&](const LinearResult& a, const LinearResult& b) { return error(a) > error(b); });
  worst.resize(std::min(worst.size(), count));
  return worst;
}

int report(const Options& options, const QuantizeResult& result) {
  const std::string output = options.quantize.output.string();
  if (options.common->json) {
    OrderedJson linears = OrderedJson::array();
    for (const LinearResult& linear : result.linears) {
      linears.push_back({{"name", linear.name},
                         {"format", linear.format},
                         {"weight_bits", linear.weight_bits},
                         {"activation_bits", linear.activation_bits},
                         {"activations", linear.activations},
                         {"outlier_columns", linear.outlier_columns},
                         {"bits_per_weight", linear.bits_per_weight},
                         {"weight_error", linear.weight_error},
                         {"output_error", linear.output_error}});
    }
    write_json(OrderedJson{{"output", output},
                           {"recipe", options.quantize.recipe.name},
                           {"bits_per_weight", result.bits_per_weight},
                           {"source_bytes", result.source_bytes},
                           {"output_bytes", result.output_bytes},
                           {"embedding_bits", options.quantize.embedding_bits},
                           {"embedding_error", result.embedding_error},
                           {"head_error", result.head_error},
                           {"seconds", result.seconds},
                           {"calibration_seconds", result.calibration_seconds},
                           {"solver_seconds", result.solver_seconds},
                           {"sensitivity_seconds", result.sensitivity_seconds},
                           {"resumed_blocks", result.resumed_blocks},
                           {"verified", result.verified},
                           {"linears", std::move(linears)}});
    return kExitDone;
  }
  std::string text = format_text("{}: {} linears at {:.3f} bits per weight, {} ({} of the source), in {}\n",
                                 output, result.linears.size(), result.bits_per_weight,
                                 format_bytes(static_cast<double>(result.output_bytes)),
                                 percent(static_cast<double>(result.output_bytes) /
                                         static_cast<double>(std::max<uint64_t>(1, result.source_bytes))),
                                 format_seconds(result.seconds));
  text += format_text("calibration {}, solver {}; embedding at {} bit: relative error {:.2e}\n",
                      format_seconds(result.calibration_seconds), format_seconds(result.solver_seconds),
                      options.quantize.embedding_bits, result.embedding_error);
  if (result.sensitivity_seconds > 0)
    text += format_text("gradients of the loss {}\n", format_seconds(result.sensitivity_seconds));
  if (result.resumed_blocks > 0)
    text += format_text("{} blocks were there from an earlier run\n", result.resumed_blocks);
  text += "largest relative output errors:\n";
  for (const LinearResult& linear : worst_linears(result, 5)) {
    text += format_text("  {:<44} {} bit  {:.2e}\n", linear.name, linear.weight_bits,
                        linear.output_error > 0 ? linear.output_error : linear.weight_error);
  }
  if (result.verified) text += "verified: every tensor reads back as written, and the logits are finite\n";
  write_output(text);
  return kExitDone;
}

int quantize(Options& options) {
  options.common->apply();
  if (options.list_recipes) return list_recipes(options.common->json);
  if (options.quantize.model.empty()) fail_usage("MODEL is missing; see 'nibble quantize --help'");
  if (options.quantize.output.empty() && !options.dry_run) {
    fail_usage("-o OUT is missing: the folder to write; see 'nibble quantize --help'");
  }
  options.quantize.recipe = Recipe::find(options.recipe);
  for (const std::string& setting : options.settings) options.quantize.recipe.apply_set(setting);
  ThreadPool pool(options.common->threads);
  if (options.dry_run) {
    if (options.quantize.output.empty()) options.quantize.output = ".";
    return dry_run(options, pool);
  }
  return report(options, quantize_model(options.quantize, pool));
}

}  // namespace

Action add_quantize(CLI::App& command) {
  auto options = std::make_shared<Options>();
  options->common = add_common_options(command);
  QuantizeOptions& q = options->quantize;
  command.add_option("MODEL", q.model, "Hugging Face folder or GGUF file");
  command.add_option("-o,--output", q.output, "Folder to write");
  command.add_option("--recipe", options->recipe, "Built-in recipe or recipe file")->capture_default_str();
  command.add_flag("--list-recipes", options->list_recipes, "List the built-in recipes");
  command.add_option("--calib", q.calibration.text_file, "Calibration text (UTF-8)");
  command.add_option("--calib-ids", q.calibration.ids_file,
                     "Calibration tokens: safetensors with input_ids [sequences, length]");
  command.add_flag("--calib-random", q.calibration.random_tokens, "Calibrate on random tokens");
  command.add_option("--calib-sequences", q.calibration.sequences,
                     "Calibration sequences (128, or what the text has)");
  command.add_option("--calib-length", q.calibration.length,
                     "Tokens per sequence (2048, at most the model's context)");
  command.add_option("--seed", q.calibration.seed, "Seed of random tokens")->capture_default_str();
  command.add_option("--set", options->settings,
                     "FIELD=VALUE for all linears, ROLE.FIELD=VALUE for one role; may be repeated");
  command.add_option("--embedding-bits", q.embedding_bits, "Embedding and head: 16, 8 or 4")
      ->capture_default_str();
  command.add_flag("--dry-run", options->dry_run, "Forecast size, memory and time; write nothing");
  command.add_flag("--resume", q.resume, "Go on where an interrupted run stopped");
  command.add_flag("--force", q.force, "Replace an existing output");
  command.add_flag("--verify", q.verify, "Read the result back and compare");
  set_examples(command,
               {"nibble quantize MODEL -o OUT --recipe quik-4b --calib text.txt",
                "nibble quantize MODEL -o OUT --recipe rtn-w4a4 --embedding-bits 16",
                "nibble quantize MODEL --recipe quik-8b --calib text.txt --dry-run",
                "nibble quantize MODEL -o OUT --calib text.txt --set clip_norm=2 --set down.weight_bits=4",
                "nibble quantize --list-recipes"});
  return [options] { return quantize(*options); };
}

}  // namespace nibble
