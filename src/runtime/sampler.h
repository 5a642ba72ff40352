// Drawing the next token. The same seed and logits give the same tokens on every machine and standard
// library.
//
// Steps, in llama.cpp's order: repetition penalty (CTRL, Keskar et al. 2019: logits of recent tokens divided
// by the penalty where positive, multiplied where negative) -> top-k -> top-p (nucleus, Holtzman et al. 2020)
// -> min-p (Nguyen et al. 2024)
// -> temperature -> draw. top-p and min-p see the distribution before the temperature. Among equal logits the
// lower id comes first. At least one token always remains.
//
// Where a setting is not given: if the model's generation_config.json has any of do_sample, temperature,
// top_k, top_p, min_p, repetition_penalty, those hold, "do_sample": false means temperature 0, and what it
// leaves out is as in transformers (temperature 1, top-k 50, others off). Else: temperature 0.8, top-k 40,
// top-p 0.95, min-p 0.05, no penalty.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/nibble.h"
#include "runtime/ranked_logit.h"

namespace nibble {

struct SamplerSettings {
  double temperature = 0.8;
  int64_t top_k = 40;
  double top_p = 0.95;
  double min_p = 0.05;
  double repeat_penalty = 1.0;
  int64_t repeat_last = 64;
  uint64_t seed = 0;
};

// Throws UsageError naming the option and its value for NaN and values out of range (temperature < 0, top-p
// outside [0, 1], min-p outside [0, 1], top-k < 0, repeat penalty <= 0, repeat-last < -1); Error for such
// values in generation_config.json, `source` naming it. A seed is drawn from the system when none is set.
SamplerSettings resolve_sampling(const SamplingOptions& options, const nlohmann::json& generation_config,
                                 const std::string& source);

// Random bits as a function of a seed and a counter: splitmix64's finalizer (Steele, Lea & Flood 2014) over a
// Weyl sequence that starts at a mix of the seed.
class CounterRandom {
 public:
  explicit CounterRandom(uint64_t seed) : start_(mix(seed ^ 0x6a09e667f3bcc909u)) {}
  uint64_t bits(uint64_t counter) const { return mix(start_ + (counter + 1) * 0x9e3779b97f4a7c15u); }
  // In [0, 1), a multiple of 2^-53.
  double uniform(uint64_t counter) const { return static_cast<double>(bits(counter) >> 11) * 0x1p-53; }

 private:
  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  uint64_t start_;
};

class Sampler {
 public:
  explicit Sampler(const SamplerSettings& settings) : settings_(settings), random_(settings.seed) {}

  // The next token of a sequence whose tokens so far are `history` (prompt included), from logits
  // [vocabulary]. Throws Error when a logit is NaN or none is finite.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history);

  // How many of the best logits are enough to draw what sample() would behind a history of so many tokens;
  // nothing where all of them count (no top-k, or a penalty below 1, which lifts tokens).
  std::optional<size_t> ranked_needed(size_t history) const;
  // sample() from the ranked_needed() best logits of a vocabulary (all of a smaller one), best first: the
  // same token.
  int32_t sample_ranked(std::span<const RankedLogit> best, std::span<const int32_t> history);

  const SamplerSettings& settings() const { return settings_; }

 private:
  // Of a history of so many tokens, those that the penalty is for; and the distinct ones, in order.
  size_t looked_back(size_t history) const;
  std::vector<int32_t> penalized(std::span<const int32_t> history) const;
  float after_penalty(float logit) const;
  int32_t draw();
  void keep_candidates();
  SamplerSettings settings_;
  CounterRandom random_;
  uint64_t draws_ = 0;
  std::vector<float> logits_;            // after the penalty
  std::vector<RankedLogit> candidates_;  // best first
  std::vector<double> weights_;
};

// The lowest id among the largest values. Throws Error when one is NaN or none is finite.
int32_t most_likely(std::span<const float> logits);

}  // namespace nibble
