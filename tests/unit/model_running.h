// Running a model in a test: the least code that turns ids into logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/model.h"

namespace nibble::testing {

inline std::string fixture(const std::string& name) { return std::string(NIBBLE_TEST_DATA) + "/" + name; }

// One sequence on one model. `feed` appends ids and returns the logits of all of them.
class Session {
 public:
  Session(const Model& model, ThreadPool& pool, int64_t capacity, CacheTypes types = CacheType::kF32)
      : model_(model), pool_(pool), cache_(model.make_cache(capacity, types)) {}

  std::vector<float> feed(std::span<const int32_t> ids) {
    const auto tokens = static_cast<int64_t>(ids.size());
    std::vector<float> hidden(ids.size() * static_cast<size_t>(model_.spec().hidden_size));
    std::vector<float> logits(ids.size() * static_cast<size_t>(model_.spec().vocabulary));
    model_.embed(ids, hidden.data());
    const SequenceSpan span = {
        .cache = cache_.get(), .first_row = 0, .count = tokens, .first_position = cache_->length()};
    model_.run_blocks(hidden.data(),
                      {.sequences = {&span, 1}, .tokens = tokens, .scratch = &scratch_, .pool = &pool_});
    cache_->set_length(cache_->length() + tokens);
    model_.logits(hidden.data(), {}, tokens, logits.data(), scratch_, pool_);
    return logits;
  }

  // The logits of all ids, fed in pieces of `piece`.
  std::vector<float> feed_in_pieces(std::span<const int32_t> ids, size_t piece) {
    std::vector<float> all;
    for (size_t first = 0; first < ids.size(); first += piece) {
      const std::vector<float> part = feed(ids.subspan(first, std::min(piece, ids.size() - first)));
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

 private:
  const Model& model_;
  ThreadPool& pool_;
  std::unique_ptr<SequenceCache> cache_;
  Scratch scratch_;
};

inline int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// prompt followed by greedily chosen tokens, `total` ids together.
inline std::vector<int32_t> greedy(const Model& model, ThreadPool& pool, std::vector<int32_t> ids,
                                   size_t total) {
  Session session(model, pool, static_cast<int64_t>(total));
  const auto vocabulary = static_cast<size_t>(model.spec().vocabulary);
  std::vector<float> logits = session.feed(ids);
  while (ids.size() < total) {
    ids.push_back(argmax(std::span(logits).last(vocabulary)));
    if (ids.size() < total) logits = session.feed({&ids.back(), 1});
  }
  return ids;
}

// Sum of -log p(id) of ids[1..] in one window.
inline double window_nll(const Model& model, ThreadPool& pool, std::span<const int32_t> ids) {
  Session session(model, pool, static_cast<int64_t>(ids.size()));
  const std::vector<float> logits = session.feed(ids);
  const auto vocabulary = static_cast<size_t>(model.spec().vocabulary);
  double total = 0;
  for (size_t t = 0; t + 1 < ids.size(); ++t) {
    const float* row = logits.data() + t * vocabulary;
    const double largest = *std::max_element(row, row + vocabulary);
    double sum = 0;
    for (size_t i = 0; i < vocabulary; ++i) sum += std::exp(row[i] - largest);
    total += largest + std::log(sum) - row[ids[t + 1]];
  }
  return total;
}

inline double standard_deviation(std::span<const float> values) {
  double sum = 0, squares = 0;
  for (const float value : values) sum += value;
  const double mean = sum / static_cast<double>(values.size());
  for (const float value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size()));
}

inline double root_mean_square_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - b[i];
    squares += difference * difference;
  }
  return std::sqrt(squares / static_cast<double>(a.size()));
}

inline double max_difference(std::span<const float> a, std::span<const float> b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

}  // namespace nibble::testing
