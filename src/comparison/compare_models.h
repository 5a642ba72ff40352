// Comparing recipes on one model: quantizes what is missing, measures everything under one protocol.
//
// The source runs once: its hidden states serve every comparison (runtime/perplexity.h). Finished work is
// kept in the work folder, by the fingerprint of what made it: quantized models, and the quality measured on
// them by this very program. A run that was interrupted, or one with more recipes, does only what is not
// there. Speed is always measured anew, so that all of a table's speeds are of one time: the models take
// turns, each in a process of its own.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "evaluation/evaluate.h"
#include "pipeline/calibration_data.h"
#include "quantizers/recipe.h"
#include "report/comparison.h"

namespace nibble {

struct CompareOptions {
  std::filesystem::path model;
  std::vector<Recipe> recipes;
  std::vector<std::filesystem::path> models;  // measured beside them
  CalibrationOptions calibration;
  int embedding_bits = 8;
  std::filesystem::path work_folder;  // made when it is not there
  bool keep = true;                   // else what was put into the work folder is removed at the end
  bool requantize = false;            // do not use what is there

  // What is predicted: a text, or a file with ids.
  std::string text, text_name;
  std::filesystem::path ids_file;
  std::optional<int64_t> window;
  int64_t max_windows = 0;
  bool add_special = true;

  std::vector<std::filesystem::path> tasks;
  TaskOptions task_options;
  EvaluateOptions evaluate_options;

  // The program whose "bench" measures speed and memory; empty: neither is measured.
  std::filesystem::path program;
  int64_t prompt_tokens = 512, generated_tokens = 128, repetitions = 3;
};

struct CompareOutcome {
  Comparison comparison;
  int failures = 0;  // recipes and measurements that failed; each was told of
};

// Throws Error or UsageError before any work for a source that is no float model, a text too short,
// calibration that is needed and missing; Interrupted on Ctrl-C. What fails with one recipe is told in its
// row.
CompareOutcome compare_models(const CompareOptions& options, const std::shared_ptr<ThreadPool>& pool);

}  // namespace nibble
