// Scoring of tasks against an independent loop over whole sequences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "evaluation/evaluate.h"

namespace nibble {
namespace {

const std::string kFixtures = NIBBLE_TEST_DATA;

const Engine& engine() {
  static const std::unique_ptr<Engine> opened =
      Engine::open(kFixtures + "/llama_outliers", std::make_shared<ThreadPool>(2));
  return *opened;
}

// log p(ids[first..]) given what precedes, from one run over everything.
struct Plain {
  double log_likelihood = 0;
  bool greedy = true;
};
Plain plain_score(const std::vector<int32_t>& ids, size_t first) {
  const auto vocabulary = static_cast<size_t>(engine().vocabulary());
  Session session(engine(), static_cast<int64_t>(ids.size()), CacheType::kF32);
  std::vector<float> logits(ids.size() * vocabulary);
  session.append(ids, logits.data());
  Plain result;
  for (size_t at = first; at < ids.size(); ++at) {
    const float* row = logits.data() + (at - 1) * vocabulary;
    double total = 0;
    for (size_t i = 0; i < vocabulary; ++i) total += std::exp(static_cast<double>(row[i]));
    result.log_likelihood += row[ids[at]] - std::log(total);
    result.greedy = result.greedy && std::max_element(row, row + vocabulary) - row == ids[at];
  }
  return result;
}

std::vector<int32_t> encode(const std::string& text) {
  return engine().tokenizer().encode(text, {.add_special = false});
}

TEST(Evaluate, ChoicesScoreAsWholeSequences) {
  const Task task = read_task(kFixtures + "/tasks/hellaswag.jsonl", {});
  const TaskResult result = evaluate_task(engine(), task, {});
  ASSERT_EQ(result.predictions.size(), 4u);
  double right = 0, right_norm = 0;
  for (size_t e = 0; e < task.examples.size(); ++e) {
    const TaskExample& example = task.examples[e];
    std::vector<double> plain, norm;
    for (size_t c = 0; c < example.continuations.size(); ++c) {
      plain.push_back(
          plain_score(encode(example.context + example.continuations[c]), encode(example.context).size())
              .log_likelihood);
      norm.push_back(plain.back() / static_cast<double>(example.characters[c]));
    }
    const auto best = std::max_element(plain.begin(), plain.end()) - plain.begin();
    EXPECT_EQ(result.predictions[e], std::vector<int32_t>{static_cast<int32_t>(best)});
    right += best == example.answer;
    right_norm += std::max_element(norm.begin(), norm.end()) - norm.begin() == example.answer;
  }
  EXPECT_DOUBLE_EQ(result.accuracy, right / 4);
  EXPECT_DOUBLE_EQ(result.accuracy_norm, right_norm / 4);
  EXPECT_TRUE(result.has_norm);
  EXPECT_FALSE(result.has_perplexity);
}

TEST(Evaluate, ClozePerplexityAndExactness) {
  const Task task = read_task(kFixtures + "/tasks/cloze.jsonl", {});
  const TaskResult result = evaluate_task(engine(), task, {});
  std::vector<double> losses;
  double right = 0;
  for (const TaskExample& example : task.examples) {
    const Plain plain =
        plain_score(encode(example.context + example.continuations[0]), encode(example.context).size());
    losses.push_back(-plain.log_likelihood);
    right += plain.greedy;
  }
  double mean = 0;
  for (const double loss : losses) mean += loss / static_cast<double>(losses.size());
  EXPECT_NEAR(result.perplexity / std::exp(mean), 1.0, 1e-4);
  EXPECT_DOUBLE_EQ(result.accuracy, right / static_cast<double>(losses.size()));
  EXPECT_GT(result.perplexity_stderr, 0.0);
  // The repetitions in the file are what a trained model continues.
  EXPECT_GT(result.accuracy, 0.0);
}

TEST(Evaluate, WhiteSpaceAtTheEndOfAContextBelongsToTheContinuation) {
  const Task apart =
      parse_task(R"({"prompt": "He had been in the ", "choices": ["house", "of"], "answer": 0})", "a", {});
  const Task joined =
      parse_task(R"({"prompt": "He had been in the", "choices": ["house", "of"], "answer": 0})", "b", {});
  EXPECT_EQ(evaluate_task(engine(), apart, {}).predictions, evaluate_task(engine(), joined, {}).predictions);
}

TEST(Evaluate, ABosChangesTheContext) {
  const Task task = read_task(kFixtures + "/tasks/cloze.jsonl", {});
  const TaskResult with = evaluate_task(engine(), task, {.add_bos = true});
  const TaskResult without = evaluate_task(engine(), task, {});
  EXPECT_NE(with.perplexity, without.perplexity);
  EXPECT_NEAR(std::log(with.perplexity / without.perplexity), 0, 0.3);
}

TEST(Evaluate, EmptyContextsAreTheBos) {
  const Task task =
      parse_task(R"({"prompt": "", "choices": ["It is a truth", "Of of of of"], "answer": 0})", "a", {});
  const TaskResult result = evaluate_task(engine(), task, {});
  std::vector<double> plain;
  for (const std::string& choice : task.examples[0].continuations) {
    std::vector<int32_t> ids = encode(choice);
    ids.insert(ids.begin(), engine().bos_id());
    plain.push_back(plain_score(ids, 1).log_likelihood);
  }
  EXPECT_EQ(result.predictions[0][0], plain[1] > plain[0] ? 1 : 0);
}

TEST(Evaluate, WhatDoesNotFitIsRefusedOrCut) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "It was so. ";
  const std::string line = R"({"prompt": "short", "choices": ["a", "b"], "answer": 0})"
                           "\n{\"prompt\": \"" +
                           text + "\", \"choices\": [\"a\", \"b\"], \"answer\": 0}";
  const Task task = parse_task(line, "long.jsonl", {});
  try {
    evaluate_task(engine(), task, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("long.jsonl:2: takes "), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("--truncate"), std::string::npos) << error.what();
  }
  const TaskResult result = evaluate_task(engine(), task, {.truncate = true});
  EXPECT_EQ(result.truncated, 1);
  EXPECT_EQ(result.examples, 2);
}

TEST(Evaluate, AgreementComparesPredictions) {
  TaskResult reference = {.accuracy = 0.5, .predictions = {{0}, {1}, {2}, {3, 4}}};
  TaskResult result = {.predictions = {{0}, {1}, {0}, {3, 5}}};
  compare_predictions(reference, &result);
  EXPECT_DOUBLE_EQ(result.agreement, 0.5);
  EXPECT_DOUBLE_EQ(result.reference_accuracy, 0.5);
  EXPECT_NEAR(result.agreement_stderr, std::sqrt(0.25 / 3), 1e-12);  // sqrt(p (1 - p) / (n - 1))
}

TEST(SampleMean, StandardErrorOfAMean) {
  const SampleMean mean = sample_mean({1, 2, 3, 4});
  EXPECT_DOUBLE_EQ(mean.mean, 2.5);
  EXPECT_NEAR(mean.standard_error, std::sqrt(5.0 / 3 / 4), 1e-12);
  EXPECT_TRUE(std::isnan(sample_mean({7}).standard_error));
}

}  // namespace
}  // namespace nibble
