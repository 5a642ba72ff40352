// The comparison as plain text.
#include <algorithm>

#include "base/format.h"
#include "report/comparison.h"
#include "report/numbers.h"

namespace nibble {
namespace {

// Lines of a table whose first row is the head; the first and last column are flush left.
std::string table(const std::vector<std::vector<std::string>>& rows, bool last_left) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (size_t i = 0; i < rows[r].size(); ++i) {
      const bool left = i == 0 || (last_left && i + 1 == rows[r].size());
      line += i == 0 ? "" : "  ";
      line +=
          left ? format_text("{:<{}}", rows[r][i], widths[i]) : format_text("{:>{}}", rows[r][i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
    if (r > 0) continue;
    for (size_t i = 0; i < widths.size(); ++i) text += (i == 0 ? "" : "  ") + std::string(widths[i], '-');
    text += "\n";
  }
  return text;
}

std::string with_error(const Measured& measured) {
  const std::string value = short_number(measured.value);
  return std::isfinite(measured.standard_error)
             ? format_text("{} +- {}", value, short_number(measured.standard_error, 2))
             : value;
}

std::string gap_text(const Comparison& comparison, const ComparisonRow& row, Baseline baseline) {
  const auto gap = gap_closed(comparison, row, baseline);
  return gap ? format_text("{} {}", percent_text(gap->share), gap->baseline->name) : kNoNumber;
}

}  // namespace

std::string comparison_text(const Comparison& comparison) {
  std::string text = format_text(
      "{}: {} windows of {} tokens of {}, {}{}\n\n", comparison.model, comparison.windows, comparison.context,
      comparison.text, comparison.special ? "BOS before each" : "no special tokens",
      comparison.embedding_bits > 0 ? format_text(", embedding {} bit", comparison.embedding_bits) : "");
  std::vector<std::vector<std::string>> quality = {{"model", "bits/weight", "size", "perplexity", "KL (nats)",
                                                    "top-1", "gap to RTN closed", "gap to GPTQ closed"}};
  std::vector<std::vector<std::string>> speed = {
      {"model", "prompt t/s", "decode t/s", "memory", "quantized in", "multiply-adds"}};
  bool any_speed = comparison.repetitions > 0;
  for (const ComparisonRow& row : comparison.rows) {
    if (row.failed()) continue;
    quality.push_back({row.name, fixed_number(row.bits_per_weight, 3), bytes_text(row.file_bytes),
                       with_error(row.perplexity), with_error(row.kl_divergence),
                       percent_text(row.top1_agreement.value), gap_text(comparison, row, Baseline::kRtn),
                       gap_text(comparison, row, Baseline::kGptq)});
    speed.push_back({row.name, fixed_number(row.prompt_speed, 1), fixed_number(row.decode_speed, 1),
                     bytes_text(row.peak_memory_bytes), seconds_text(row.quantize_seconds),
                     shares_text(row.arithmetic)});
  }
  text += table(quality, false) + "\n" + table(speed, true);
  if (any_speed) {
    text += format_text("prompt of {} tokens, {} decoded; medians of {} alternating runs\n",
                        comparison.prompt_tokens, comparison.generated_tokens, comparison.repetitions);
  }

  std::vector<std::vector<std::string>> tasks = {
      {"model", "task", "examples", "accuracy", "by length", "perplexity", "as the source"}};
  for (const ComparisonRow& row : comparison.rows) {
    if (row.failed()) continue;
    for (const TaskAccuracy& task : row.tasks) {
      tasks.push_back({row.name, task.task, std::to_string(task.examples), percent_with_error(task.accuracy),
                       percent_with_error(task.accuracy_norm), with_error(task.perplexity),
                       percent_with_error(task.agreement)});
    }
  }
  if (tasks.size() > 1) text += "\n" + table(tasks, false);

  bool any_failed = false;
  for (const ComparisonRow& row : comparison.rows) {
    if (!row.failed()) continue;
    text += format_text("{}{}: failed: {}\n", any_failed ? "" : "\n", row.name, row.error);
    any_failed = true;
  }
  return text;
}

}  // namespace nibble
