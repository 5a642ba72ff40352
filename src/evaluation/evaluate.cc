#include "evaluation/evaluate.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "runtime/perplexity.h"
#include "runtime/token_ids.h"

namespace nibble {
namespace {

struct TokenizedExample {
  std::vector<int32_t> context;                     // never empty
  std::vector<std::vector<int32_t>> continuations;  // none empty
  // Tokens that go through the model: the last one of a continuation is only predicted.
  int64_t positions() const {
    size_t longest = 0;
    for (const auto& continuation : continuations) longest = std::max(longest, continuation.size());
    return static_cast<int64_t>(context.size() + longest) - 1;
  }
};

std::string place(const Task& task, const TaskExample& example) {
  return format_text("{}:{}", task.source, example.line);
}

std::vector<int32_t> empty_context(const Engine& engine, const std::string& where) {
  int32_t id = engine.bos_id();
  if (id < 0) id = engine.tokenizer().eos_id();
  if (id < 0) fail("{}: the context is empty, and the model has no BOS to stand for it", where);
  return {id};
}

TokenizedExample tokenize(const Engine& engine, const Task& task, const TaskExample& example, bool add_bos) {
  const Tokenizer& tokenizer = engine.tokenizer();
  const std::string where = place(task, example);
  size_t kept = example.context.size();
  while (kept > 0 &&
         std::string_view(" \t\n\r\f\v").find(example.context[kept - 1]) != std::string_view::npos)
    --kept;
  const std::string context = example.context.substr(0, kept), space = example.context.substr(kept);

  TokenizedExample result;
  const std::vector<int32_t> context_ids = tokenizer.encode(context, {.add_special = false});
  if (add_bos) result.context.push_back(engine.bos_id());
  result.context.insert(result.context.end(), context_ids.begin(), context_ids.end());
  for (const std::string& continuation : example.continuations) {
    const std::vector<int32_t> ids = tokenizer.encode(context + space + continuation, {.add_special = false});
    if (ids.size() <= context_ids.size()) {
      fail("{}: a continuation has no tokens of its own: it merges into the context's", where);
    }
    result.continuations.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(context_ids.size()),
                                      ids.end());
    check_token_ids(result.continuations.back(), engine.vocabulary(), where);
  }
  if (result.context.empty()) result.context = empty_context(engine, where);
  check_token_ids(result.context, engine.vocabulary(), where);
  return result;
}

// Cuts the context so that everything fits; false when nothing had to go.
bool fit(const Engine& engine, const std::string& where, bool truncate, TokenizedExample* example) {
  const int64_t excess = example->positions() - engine.context_length();
  if (excess <= 0) return false;
  if (!truncate) {
    fail("{}: takes {} tokens, more than the context of {} ({}); --truncate cuts the beginning off", where,
         example->positions(), engine.context_length(), engine.path().string());
  }
  if (excess >= static_cast<int64_t>(example->context.size())) {
    fail("{}: a continuation alone is longer than the context of {}", where, engine.context_length());
  }
  example->context.erase(example->context.begin(), example->context.begin() + excess);
  return true;
}

struct ContinuationScore {
  double log_likelihood = 0;
  std::vector<int32_t> most_likely;  // token at each place
};

// Scores continuations of one context after another, and runs what neighbouring contexts share only once.
class Scorer {
 public:
  Scorer(const Engine& engine, int64_t capacity)
      : engine_(engine), session_(engine, capacity, CacheType::kF32) {}

  std::vector<ContinuationScore> score(const TokenizedExample& example) {
    run_context(example.context);
    std::vector<ContinuationScore> scores(example.continuations.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      const std::vector<int32_t>& ids = example.continuations[i];
      add(first_logits_.data(), ids[0], &scores[i]);
      if (ids.size() == 1) continue;
      const size_t more = ids.size() - 1;
      rows_.resize(more * static_cast<size_t>(engine_.vocabulary()));
      session_.append(std::span(ids).first(more), rows_.data());
      for (size_t at = 0; at < more; ++at)
        add(rows_.data() + at * static_cast<size_t>(engine_.vocabulary()), ids[at + 1], &scores[i]);
      session_.truncate(static_cast<int64_t>(example.context.size()));
    }
    return scores;
  }

 private:
  void run_context(const std::vector<int32_t>& context) {
    size_t shared = 0;
    while (shared + 1 < context.size() && shared < context_.size() && context[shared] == context_[shared])
      ++shared;
    session_.truncate(static_cast<int64_t>(shared));
    const std::span<const float> logits = session_.append(std::span(context).subspan(shared));
    first_logits_.assign(logits.begin(), logits.end());
    context_ = context;
  }

  void add(const float* logits, int32_t target, ContinuationScore* score) const {
    const int64_t vocabulary = engine_.vocabulary();
    score->log_likelihood -= score_token(logits, nullptr, vocabulary, target).negative_log_likelihood;
    score->most_likely.push_back(static_cast<int32_t>(std::max_element(logits, logits + vocabulary) -
                                                      logits));  // the first among equals
  }

  const Engine& engine_;
  Session session_;
  std::vector<int32_t> context_;     // that the session holds
  std::vector<float> first_logits_;  // after the context
  std::vector<float> rows_;
};

size_t index_of_largest(const std::vector<double>& values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

}  // namespace

SampleMean sample_mean(const std::vector<double>& values) {
  NIBBLE_CHECK(!values.empty());
  const auto count = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  const double mean = sum / count;
  if (values.size() == 1) return {mean, std::nan("")};
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean, std::sqrt(squares / (count - 1) / count)};
}

TaskResult evaluate_task(const Engine& engine, const Task& task, const EvaluateOptions& options) {
  if (options.add_bos && engine.bos_id() < 0) fail("{}: the model has no BOS", engine.path().string());
  TaskResult result = {.name = task.name, .source = task.source, .shape = task.shape};
  result.examples = static_cast<int64_t>(task.examples.size());
  result.has_norm = task.has_lengths();
  result.has_perplexity = task.is_cloze();

  std::vector<TokenizedExample> tokenized;
  int64_t capacity = 1;
  double total = 0;
  for (const TaskExample& example : task.examples) {
    throw_if_interrupted();
    tokenized.push_back(tokenize(engine, task, example, options.add_bos));
    if (fit(engine, place(task, example), options.truncate, &tokenized.back())) ++result.truncated;
    capacity = std::max(capacity, tokenized.back().positions());
    total += static_cast<double>(tokenized.back().positions());
  }
  if (result.truncated > 0) {
    log_warning("{}: {} of {} examples were cut at their beginning to fit the context of {}", task.source,
                result.truncated, result.examples, engine.context_length());
  }

  Scorer scorer(engine, capacity);
  std::vector<double> right, right_norm, negative_log_likelihood;
  Progress progress(task.name, total);
  double done = 0;
  for (size_t i = 0; i < tokenized.size(); ++i) {
    throw_if_interrupted();
    const TaskExample& example = task.examples[i];
    const std::vector<ContinuationScore> scores = scorer.score(tokenized[i]);
    for (const ContinuationScore& score : scores) {
      if (std::isnan(score.log_likelihood))
        fail("{}: {}: computed NaN logits", engine.path().string(), place(task, example));
    }
    if (task.is_cloze()) {
      right.push_back(scores[0].most_likely == tokenized[i].continuations[0] ? 1 : 0);
      negative_log_likelihood.push_back(-scores[0].log_likelihood);
      result.predictions.push_back(scores[0].most_likely);
    } else {
      std::vector<double> plain, per_character;
      for (size_t c = 0; c < scores.size(); ++c) {
        plain.push_back(scores[c].log_likelihood);
        per_character.push_back(scores[c].log_likelihood / static_cast<double>(example.characters[c]));
      }
      const auto answer = static_cast<size_t>(example.answer);
      right.push_back(index_of_largest(plain) == answer ? 1 : 0);
      right_norm.push_back(index_of_largest(per_character) == answer ? 1 : 0);
      result.predictions.push_back({static_cast<int32_t>(index_of_largest(plain))});
    }
    done += static_cast<double>(tokenized[i].positions());
    if (i + 1 < tokenized.size()) {
      progress.update(done, format_text("example {}/{}, accuracy {:.3f}", i + 1, tokenized.size(),
                                        sample_mean(right).mean));
    }
  }
  progress.finish();

  const SampleMean accuracy = sample_mean(right);
  result.accuracy = accuracy.mean;
  result.accuracy_stderr = accuracy.standard_error;
  if (result.has_norm) {
    const SampleMean norm = sample_mean(right_norm);
    result.accuracy_norm = norm.mean;
    result.accuracy_norm_stderr = norm.standard_error;
  }
  if (result.has_perplexity) {
    const SampleMean mean = sample_mean(negative_log_likelihood);
    result.perplexity = std::exp(mean.mean);
    result.perplexity_stderr = result.perplexity * mean.standard_error;
  }
  return result;
}

void compare_predictions(const TaskResult& reference, TaskResult* result) {
  NIBBLE_CHECK(reference.predictions.size() == result->predictions.size());
  std::vector<double> same;
  for (size_t i = 0; i < result->predictions.size(); ++i)
    same.push_back(reference.predictions[i] == result->predictions[i] ? 1 : 0);
  const SampleMean agreement = sample_mean(same);
  result->has_reference = true;
  result->agreement = agreement.mean;
  result->agreement_stderr = agreement.standard_error;
  result->reference_accuracy = reference.accuracy;
}

}  // namespace nibble
