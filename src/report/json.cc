// The comparison as JSON: names as in the commands that measure one model.
#include "report/comparison.h"

namespace nibble {
namespace {

OrderedJson number(double value) { return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr); }

const char* kind_text(RowKind kind) {
  return kind == RowKind::kSource ? "source" : kind == RowKind::kRecipe ? "recipe" : "model";
}

OrderedJson gap_json(const Comparison& comparison, const ComparisonRow& row) {
  OrderedJson gaps = OrderedJson::object();
  for (const auto& [key, baseline] : {std::pair{"rtn", Baseline::kRtn}, std::pair{"gptq", Baseline::kGptq}}) {
    if (const auto gap = gap_closed(comparison, row, baseline)) {
      gaps[key] = {{"baseline", gap->baseline->name},
                   {"baseline_bits_per_weight", number(gap->baseline->bits_per_weight)},
                   {"share", number(gap->share)}};
    } else {
      gaps[key] = nullptr;
    }
  }
  return gaps;
}

OrderedJson tasks_json(const ComparisonRow& row) {
  OrderedJson tasks = OrderedJson::array();
  for (const TaskAccuracy& task : row.tasks) {
    tasks.push_back({{"task", task.task},
                     {"shape", task.shape},
                     {"examples", task.examples},
                     {"accuracy", number(task.accuracy.value)},
                     {"accuracy_stderr", number(task.accuracy.standard_error)},
                     {"accuracy_norm", number(task.accuracy_norm.value)},
                     {"accuracy_norm_stderr", number(task.accuracy_norm.standard_error)},
                     {"perplexity", number(task.perplexity.value)},
                     {"perplexity_stderr", number(task.perplexity.standard_error)},
                     {"agreement", number(task.agreement.value)},
                     {"agreement_stderr", number(task.agreement.standard_error)}});
  }
  return tasks;
}

OrderedJson row_json(const Comparison& comparison, const ComparisonRow& row) {
  OrderedJson json = {{"name", row.name}, {"kind", kind_text(row.kind)}};
  if (row.failed()) {
    json["error"] = row.error;
    return json;
  }
  json["error"] = nullptr;
  json["path"] = row.path.empty() ? OrderedJson(nullptr) : OrderedJson(row.path);
  json["reused"] = row.reused;
  json["perplexity"] = number(row.perplexity.value);
  json["perplexity_stderr"] = number(row.perplexity.standard_error);
  json["kl_divergence"] = number(row.kl_divergence.value);
  json["kl_stderr"] = number(row.kl_divergence.standard_error);
  json["top1_agreement"] = number(row.top1_agreement.value);
  json["top1_stderr"] = number(row.top1_agreement.standard_error);
  json["gap_closed"] = gap_json(comparison, row);
  json["bits_per_weight"] = number(row.bits_per_weight);
  json["file_bytes"] = number(row.file_bytes);
  json["activation_bits"] = row.activation_bits;
  json["mac_share"] = OrderedJson::object();
  for (const auto& [bits, share] : row.mac_share) json["mac_share"][std::to_string(bits)] = share;
  json["arithmetic"] = row.arithmetic;
  json["quantize_seconds"] = number(row.quantize_seconds);
  json["prompt_tokens_per_second"] = number(row.prompt_speed);
  json["decode_tokens_per_second"] = number(row.decode_speed);
  json["prompt_samples"] = row.prompt_samples;
  json["decode_samples"] = row.decode_samples;
  json["peak_memory_bytes"] = number(row.peak_memory_bytes);
  json["layer_errors"] = OrderedJson::object();
  for (const LayerError& error : row.layer_errors) json["layer_errors"][error.linear] = number(error.error);
  json["tasks"] = tasks_json(row);
  return json;
}

}  // namespace

OrderedJson comparison_json(const Comparison& comparison) {
  OrderedJson json = {{"model", comparison.model},
                      {"text", comparison.text},
                      {"context", comparison.context},
                      {"windows", comparison.windows},
                      {"tokens", comparison.tokens},
                      {"special", comparison.special},
                      {"calibration", comparison.calibration.empty() ? OrderedJson(nullptr)
                                                                     : OrderedJson(comparison.calibration)},
                      {"embedding_bits", comparison.embedding_bits},
                      {"prompt_tokens", comparison.prompt_tokens},
                      {"generated_tokens", comparison.generated_tokens},
                      {"repetitions", comparison.repetitions},
                      {"machine", comparison.machine},
                      {"program", comparison.program}};
  json["rows"] = OrderedJson::array();
  for (const ComparisonRow& row : comparison.rows) json["rows"].push_back(row_json(comparison, row));
  return json;
}

}  // namespace nibble
