// The results of comparing models, and what a reader sees of them: a table for a terminal, JSON, one HTML
// page. Everything here is a function of the results alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

using OrderedJson = nlohmann::ordered_json;

// What was not measured is NaN.
inline constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();

struct Measured {
  double value = kNotMeasured, standard_error = kNotMeasured;
};

// Relative squared output error (of the weight where there was no calibration) of one linear.
struct LayerError {
  std::string linear;  // "model.layers.3.mlp.down_proj"
  double error = kNotMeasured;
};

struct TaskAccuracy {
  std::string task, shape;
  int64_t examples = 0;
  Measured accuracy, accuracy_norm;  // accuracy_norm: not measured where choices have no lengths
  Measured perplexity;               // of a cloze's answers
  Measured agreement;                // with the source model's predictions
};

enum class RowKind { kSource, kRecipe, kModel };
// Recipes that others are measured against: they do one thing only.
enum class Baseline { kNone, kRtn, kGptq };

struct ComparisonRow {
  std::string name;  // the recipe's, or a model's path
  std::string description;
  RowKind kind = RowKind::kRecipe;
  std::string error;  // why it has no results; empty: it has
  std::string path;   // of the quantized model, where it is kept
  bool reused = false;
  std::string fingerprint;

  Measured perplexity, kl_divergence, top1_agreement;
  double bits_per_weight = kNotMeasured;  // of the quantized linears, metadata included
  double file_bytes = kNotMeasured;
  int64_t activation_bits = 16;              // of most multiply-adds
  std::map<std::string, double> arithmetic;  // share of multiply-adds
  std::map<int, double> mac_share;           // by bits of the weight
  double quantize_seconds = kNotMeasured;

  double prompt_speed = kNotMeasured, decode_speed = kNotMeasured;  // tokens per second, medians
  std::vector<double> prompt_samples, decode_samples;
  double peak_memory_bytes = kNotMeasured;  // of a process that loads and runs it

  Baseline baseline = Baseline::kNone;
  std::vector<LayerError> layer_errors;
  std::vector<TaskAccuracy> tasks;

  bool failed() const { return !error.empty(); }
};

struct Comparison {
  std::string model;  // name of the source
  std::string text;   // what was predicted: "valid.txt"
  int64_t context = 0, windows = 0, tokens = 0;
  bool special = true;      // a BOS before each window
  std::string calibration;  // "32 sequences of 512 tokens from ..."; empty when no recipe needed any
  int embedding_bits = 0;
  int64_t prompt_tokens = 0, generated_tokens = 0, repetitions = 0;  // 0 repetitions: speed was not measured
  std::string machine;  // "Intel Xeon ..., path avx512vnni, 2 threads"
  std::string program;  // "nibble 0.1.0"
  std::string date;     // "2026-01-31"; may be empty
  std::string command;  // as one would type it; may be empty
  std::vector<ComparisonRow> rows;
};

// How much of a baseline's KL divergence a row avoids: (KL of baseline - KL) / KL of baseline. The baseline
// is, among the rows of its kind with the same activation bits, the one whose bits per weight are nearest (of
// two equally near ones, that of more bits).
struct GapClosed {
  const ComparisonRow* baseline = nullptr;
  double share = kNotMeasured;
};
// Nothing when there is no such row, or the row is a baseline of that kind itself.
std::optional<GapClosed> gap_closed(const Comparison& comparison, const ComparisonRow& row,
                                    Baseline baseline);

// "rtn-..." and "gptq-..." are baselines, by their names.
Baseline baseline_of_recipe(const std::string& name);

enum class RowOrder { kGiven, kBits, kDivergence };
// Source first, then as asked, failed rows last.
void sort_rows(Comparison* comparison, RowOrder order);

// Plain text for a terminal of about 110 columns.
std::string comparison_text(const Comparison& comparison);
// See docs/commands.md. Numbers that are not there are null.
OrderedJson comparison_json(const Comparison& comparison);
// One page that needs nothing else: inline styles and SVG, no scripts, light and dark.
std::string comparison_html(const Comparison& comparison);

}  // namespace nibble
