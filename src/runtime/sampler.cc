#include "runtime/sampler.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>

#include "base/error.h"
#include "io/json.h"

namespace nibble {
namespace {

// One setting's range, used for options and for generation_config.json alike.
struct Range {
  const char* option;  // "--top-p"
  const char* key;     // "top_p"
  const char* expected;
  bool (*accepts)(double value);
};

constexpr Range kTemperature = {"--temp", "temperature", "a finite number, at least 0",
                                [](double v) { return std::isfinite(v) && v >= 0; }};
constexpr Range kTopK = {"--top-k", "top_k", "a whole number, at least 0 (0: off)",
                         [](double v) { return v >= 0; }};
constexpr Range kTopP = {"--top-p", "top_p", "a number from 0 to 1 (1: off)",
                         [](double v) { return v >= 0 && v <= 1; }};
constexpr Range kMinP = {"--min-p", "min_p", "a number from 0 to 1 (0: off)",
                         [](double v) { return v >= 0 && v <= 1; }};
constexpr Range kRepeatPenalty = {"--repeat-penalty", "repetition_penalty",
                                  "a finite number above 0 (1: off)",
                                  [](double v) { return std::isfinite(v) && v > 0; }};

bool says_how_to_sample(const Json& config) {
  for (const char* key : {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}) {
    const auto found = config.find(key);
    if (found != config.end() && !found->is_null()) return true;
  }
  return false;
}

double config_number(const Json& config, const Range& range, double otherwise, const std::string& source) {
  const double value = json_number(config, range.key, otherwise, source);
  if (!range.accepts(value)) fail("{}: '{}' is {}, expected {}", source, range.key, value, range.expected);
  return value;
}

double option_number(std::optional<double> option, const Range& range, double otherwise) {
  if (!option) return otherwise;
  if (!range.accepts(*option)) fail_usage("{} is {}, expected {}", range.option, *option, range.expected);
  return *option;
}

uint64_t seed_from_system() {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  std::random_device device;
  const uint64_t seed = (static_cast<uint64_t>(device()) << 32) ^ device() ^ static_cast<uint64_t>(now);
  return seed >> 11;  // 53 bits: JSON readers that use doubles keep it exactly
}

void check_logits(std::span<const float> logits) {
  bool any_finite = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) fail("the model computed NaN for the logit of token {}", i);
    any_finite |= std::isfinite(logits[i]);
  }
  if (!any_finite) fail("the model computed no finite logit");
}

}  // namespace

SamplerSettings resolve_sampling(const SamplingOptions& options, const Json& generation_config,
                                 const std::string& source) {
  SamplerSettings settings;
  const Json config = generation_config.is_object() ? generation_config : Json::object();
  if (says_how_to_sample(config)) {
    settings.temperature = config_number(config, kTemperature, 1.0, source);
    settings.top_k = json_int(config, "top_k", 50, source);
    if (settings.top_k < 0) fail("{}: 'top_k' is {}, expected {}", source, settings.top_k, kTopK.expected);
    settings.top_p = config_number(config, kTopP, 1.0, source);
    settings.min_p = config_number(config, kMinP, 0.0, source);
    settings.repeat_penalty = config_number(config, kRepeatPenalty, 1.0, source);
    if (!json_bool(config, "do_sample", true, source)) settings.temperature = 0;
  }
  settings.temperature = option_number(options.temperature, kTemperature, settings.temperature);
  if (options.top_k) {
    if (*options.top_k < 0) fail_usage("--top-k is {}, expected {}", *options.top_k, kTopK.expected);
    settings.top_k = *options.top_k;
  }
  settings.top_p = option_number(options.top_p, kTopP, settings.top_p);
  settings.min_p = option_number(options.min_p, kMinP, settings.min_p);
  settings.repeat_penalty = option_number(options.repeat_penalty, kRepeatPenalty, settings.repeat_penalty);
  if (options.repeat_last < -1) {
    fail_usage("--repeat-last-n is {}, expected a whole number, at least -1 (-1: all tokens)",
               options.repeat_last);
  }
  settings.repeat_last = options.repeat_last;
  settings.seed = options.seed ? *options.seed : seed_from_system();
  return settings;
}

int32_t most_likely(std::span<const float> logits) {
  check_logits(logits);
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

std::vector<int32_t> Sampler::penalized(std::span<const int32_t> history) const {
  if (settings_.repeat_penalty == 1.0) return {};
  const auto last = history.last(looked_back(history.size()));
  std::vector<int32_t> recent(last.begin(), last.end());
  std::sort(recent.begin(), recent.end());
  recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
  return recent;
}

float Sampler::after_penalty(float logit) const {
  const float penalty = static_cast<float>(settings_.repeat_penalty);
  return logit > 0 ? logit / penalty : logit * penalty;
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> history) {
  if (settings_.repeat_penalty != 1.0) {
    logits_.assign(logits.begin(), logits.end());
    for (const int32_t id : penalized(history)) {
      if (id < 0 || static_cast<size_t>(id) >= logits_.size()) continue;
      float& logit = logits_[static_cast<size_t>(id)];
      logit = after_penalty(logit);
    }
    logits = logits_;
  }
  if (settings_.temperature == 0) return most_likely(logits);

  check_logits(logits);
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != -INFINITY) candidates_.emplace_back(logits[i], static_cast<int32_t>(i));
  }
  return draw();
}

std::optional<size_t> Sampler::ranked_needed(size_t history) const {
  const bool greedy = settings_.temperature == 0;
  if (settings_.repeat_penalty < 1.0 || (!greedy && settings_.top_k == 0)) return std::nullopt;
  const size_t wanted = greedy ? 1 : static_cast<size_t>(settings_.top_k);
  // A penalty only lowers tokens: as many others may take their places.
  return settings_.repeat_penalty == 1.0 ? wanted : wanted + looked_back(history);
}

size_t Sampler::looked_back(size_t history) const {
  return settings_.repeat_last < 0 ? history : std::min(history, static_cast<size_t>(settings_.repeat_last));
}

int32_t Sampler::sample_ranked(std::span<const RankedLogit> best, std::span<const int32_t> history) {
  const std::vector<int32_t> lowered = penalized(history);
  candidates_.clear();
  for (const auto& [logit, id] : best) {
    if (std::isnan(logit)) fail("the model computed NaN for the logit of token {}", id);
    if (logit == -INFINITY) continue;
    const bool lower = std::binary_search(lowered.begin(), lowered.end(), id);
    candidates_.emplace_back(lower ? after_penalty(logit) : logit, id);
  }
  if (candidates_.empty() || !std::isfinite(candidates_.back().first))
    fail("the model computed no finite logit");
  if (!lowered.empty()) std::sort(candidates_.begin(), candidates_.end(), ranks_before);
  return settings_.temperature == 0 ? candidates_.front().second : draw();
}

// From candidates_, in any order.
int32_t Sampler::draw() {
  keep_candidates();

  // Weights relative to the best candidate: its own is 1, so their sum neither overflows nor vanishes.
  const double best = candidates_.front().first;
  weights_.resize(candidates_.size());
  double total = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    const double distance = candidates_[i].first - best;  // NaN only for infinity - infinity
    weights_[i] = std::isnan(distance) ? 1.0 : std::exp(distance / settings_.temperature);
    total += weights_[i];
  }
  double left = random_.uniform(draws_++) * total;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    left -= weights_[i];
    if (left < 0) return candidates_[i].second;
  }
  return candidates_.back().second;  // rounding of the running difference
}

// Drops what top-k, top-p and min-p exclude. Leaves the best candidate in front, and all sorted when any
// filter is on.
void Sampler::keep_candidates() {
  const size_t all = candidates_.size();
  const size_t keep = settings_.top_k > 0 ? std::min<size_t>(all, static_cast<size_t>(settings_.top_k)) : all;
  if (keep < all) {
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(keep),
                      candidates_.end(), ranks_before);
    candidates_.resize(keep);
  } else if (settings_.top_k > 0 || settings_.top_p < 1 || settings_.min_p > 0) {
    std::sort(candidates_.begin(), candidates_.end(), ranks_before);
  } else {
    std::iter_swap(candidates_.begin(),
                   std::min_element(candidates_.begin(), candidates_.end(), ranks_before));
  }
  if (settings_.top_p < 1) {
    const double best = candidates_.front().first;
    double total = 0;
    for (const auto& [logit, id] : candidates_) total += std::exp(std::min(0.0, logit - best));
    double running = 0;
    size_t count = 0;
    while (count < candidates_.size()) {
      running += std::exp(std::min(0.0, candidates_[count].first - best));
      ++count;
      if (running >= settings_.top_p * total) break;
    }
    candidates_.resize(count);
  }
  if (settings_.min_p > 0) {
    const double least = candidates_.front().first + std::log(settings_.min_p);
    size_t count = 1;
    while (count < candidates_.size() && candidates_[count].first >= least) ++count;
    candidates_.resize(count);
  }
}

}  // namespace nibble
