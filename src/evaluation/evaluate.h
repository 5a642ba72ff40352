// Accuracy of a model on tasks with known answers, scored as lm-evaluation-harness does: by the
// log-likelihood of each continuation after its context.
//
// Tokens: white space at the context's end moves to the continuation; context and context + continuation are
// tokenized, without special tokens unless add_bos, and what the second has beyond the length of the first is
// scored. An empty context is the model's BOS, or else its end-of-text token.
//
// Choices: the prediction is the continuation of the largest log-likelihood (accuracy), or of the largest
// log-likelihood per character of the choice (accuracy_norm); the first among equals. Cloze: right when every
// token of the answer is the most likely one (the lowest id among equals); perplexity is exp of the mean
// negative log-likelihood of the answers. Standard errors are those of a mean over examples, by the sample's
// deviation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evaluation/tasks.h"
#include "runtime/engine.h"

namespace nibble {

struct EvaluateOptions {
  bool add_bos = false;
  // What does not fit the context loses tokens at its beginning; else it is refused.
  bool truncate = false;
};

struct TaskResult {
  std::string name, source;
  TaskShape shape = TaskShape::kCloze;
  int64_t examples = 0, truncated = 0;
  double accuracy = 0, accuracy_stderr = 0;  // 0 .. 1
  bool has_norm = false;
  double accuracy_norm = 0, accuracy_norm_stderr = 0;
  bool has_perplexity = false;  // cloze
  double perplexity = 0, perplexity_stderr = 0;
  bool has_reference = false;
  double agreement = 0, agreement_stderr = 0;  // share of examples with the reference's prediction
  double reference_accuracy = 0;

  // For each example what was predicted: the number of a continuation, or the most likely token at each of
  // the answer's places.
  std::vector<std::vector<int32_t>> predictions;
};

// Throws Error naming "<file>:<line>" for an example that does not fit the model's context (before any is
// run), or whose continuation has no tokens of its own; Interrupted on Ctrl-C.
TaskResult evaluate_task(const Engine& engine, const Task& task, const EvaluateOptions& options);

// Fills in how far `result` agrees with a reference's result on the same task.
void compare_predictions(const TaskResult& reference, TaskResult* result);

// Mean of the values and its standard error, sqrt(sum (x - mean)^2 / (n - 1) / n); NaN for one value.
struct SampleMean {
  double mean = 0, standard_error = 0;
};
SampleMean sample_mean(const std::vector<double>& values);

}  // namespace nibble
