#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "base/error.h"
#include "io/json.h"

namespace nibble {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

SamplerSettings plain(double temperature = 1.0) {
  return {.temperature = temperature, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .seed = 7};
}

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + 3.0f);
  return logits;
}

std::map<int32_t, int> draw(const SamplerSettings& settings, const std::vector<float>& logits, int count) {
  Sampler sampler(settings);
  std::map<int32_t, int> seen;
  for (int i = 0; i < count; ++i) ++seen[sampler.sample(logits, {})];
  return seen;
}

std::set<int32_t> support(const SamplerSettings& settings, const std::vector<float>& logits,
                          int count = 4000) {
  std::set<int32_t> ids;
  for (const auto& [id, times] : draw(settings, logits, count)) ids.insert(id);
  return ids;
}

// Pearson's statistic of `seen` against `expected` probabilities.
double chi_square(const std::map<int32_t, int>& seen, const std::vector<double>& expected, int count) {
  double sum = 0;
  for (size_t id = 0; id < expected.size(); ++id) {
    const auto found = seen.find(static_cast<int32_t>(id));
    const double observed = found == seen.end() ? 0 : found->second;
    const double mean = expected[id] * count;
    sum += (observed - mean) * (observed - mean) / mean;
  }
  return sum;
}

TEST(CounterRandom, IsUniformAndDependsOnSeedAndCounter) {
  const CounterRandom random(1), other(2);
  std::vector<int> bins(64, 0);
  double sum = 0;
  std::set<uint64_t> distinct;
  const int count = 64000;
  for (int i = 0; i < count; ++i) {
    const double u = random.uniform(static_cast<uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++bins[static_cast<size_t>(u * 64)];
    sum += u;
    distinct.insert(random.bits(static_cast<uint64_t>(i)));
    distinct.insert(other.bits(static_cast<uint64_t>(i)));
  }
  EXPECT_EQ(distinct.size(), 2u * count);
  EXPECT_NEAR(sum / count, 0.5, 5 * std::sqrt(1.0 / 12 / count));
  double chi = 0;
  for (const int bin : bins) chi += (bin - 1000.0) * (bin - 1000.0) / 1000.0;
  EXPECT_LT(chi, 63 + 5 * std::sqrt(2 * 63.0));
}

TEST(CounterRandom, NearbySeedsGiveUnrelatedStreams) {
  // Bits that differ between the first outputs of neighbouring seeds: half of 64 on average.
  double differing = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    differing += std::popcount(CounterRandom(seed).bits(0) ^ CounterRandom(seed + 1).bits(0));
  }
  EXPECT_NEAR(differing / 1000, 32, 1);
}

TEST(Sampler, DrawsFromTheSoftmax) {
  const std::vector<double> expected = {0.5, 0.25, 0.15, 0.07, 0.03};
  const int count = 40000;
  EXPECT_LT(chi_square(draw(plain(), logits_of(expected), count), expected, count), 4 + 5 * std::sqrt(8.0));
}

TEST(Sampler, TemperatureSharpensTheDistribution) {
  const std::vector<double> p = {0.5, 0.25, 0.15, 0.07, 0.03};
  std::vector<double> expected = p;
  double total = 0;
  for (double& value : expected) total += value = value * value;  // temperature 1/2
  for (double& value : expected) value /= total;
  const int count = 40000;
  EXPECT_LT(chi_square(draw(plain(0.5), logits_of(p), count), expected, count), 4 + 5 * std::sqrt(8.0));
}

TEST(Sampler, TopKRenormalises) {
  SamplerSettings settings = plain();
  settings.top_k = 2;
  const int count = 20000;
  const auto seen = draw(settings, logits_of({0.1, 0.4, 0.2, 0.3}), count);
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_NEAR(seen.at(1) / double{count}, 4.0 / 7, 0.02);
  EXPECT_NEAR(seen.at(3) / double{count}, 3.0 / 7, 0.02);
}

TEST(Sampler, TopKBeyondTheVocabularyKeepsAll) {
  SamplerSettings settings = plain();
  settings.top_k = 1'000'000'000'000;
  EXPECT_EQ(support(settings, logits_of({0.4, 0.3, 0.2, 0.1})), (std::set<int32_t>{0, 1, 2, 3}));
}

TEST(Sampler, TopKOneIsGreedyWithTheLowestIdAmongTies) {
  SamplerSettings settings = plain();
  settings.top_k = 1;
  EXPECT_EQ(support(settings, {1, 5, 5, 5, 2}), (std::set<int32_t>{1}));
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesIt) {
  const std::vector<float> logits = logits_of({0.1, 0.45, 0.3, 0.15});
  SamplerSettings settings = plain();
  settings.top_p = 0.7;  // 0.45 + 0.3 = 0.75
  EXPECT_EQ(support(settings, logits), (std::set<int32_t>{1, 2}));
  settings.top_p = 0.4;
  EXPECT_EQ(support(settings, logits), (std::set<int32_t>{1}));
  settings.top_p = 0;  // one token always remains
  EXPECT_EQ(support(settings, logits), (std::set<int32_t>{1}));
  settings.top_p = 1;
  EXPECT_EQ(support(settings, logits), (std::set<int32_t>{0, 1, 2, 3}));
}

TEST(Sampler, MinPIsRelativeToTheBest) {
  const std::vector<float> logits = logits_of({0.05, 0.5, 0.26, 0.19});
  SamplerSettings settings = plain();
  settings.min_p = 0.5;
  EXPECT_EQ(support(settings, logits), (std::set<int32_t>{1, 2}));
  settings.min_p = 0.2;
  EXPECT_EQ(support(settings, logits), (std::set<int32_t>{1, 2, 3}));
  settings.min_p = 1;
  EXPECT_EQ(support(settings, logits), (std::set<int32_t>{1}));
}

TEST(Sampler, FiltersApplyBeforeTheTemperature) {
  SamplerSettings settings = plain(100);
  settings.top_p = 0.7;
  EXPECT_EQ(support(settings, logits_of({0.1, 0.45, 0.3, 0.15})), (std::set<int32_t>{1, 2}));
}

TEST(Sampler, TheSameSeedDrawsTheSameTokens) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(std::sin(static_cast<double>(i)));
  const auto sequence = [&](uint64_t seed) {
    SamplerSettings settings = plain();
    settings.seed = seed;
    Sampler sampler(settings);
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.sample(logits, ids));
    return ids;
  };
  EXPECT_EQ(sequence(1), sequence(1));
  EXPECT_NE(sequence(1), sequence(2));
}

// What a GPU hands over is enough.
TEST(Sampler, TheBestLogitsDecideWhatAllOfThemDo) {
  const size_t vocabulary = 500;
  std::vector<SamplerSettings> all(6, plain(0.8));
  for (SamplerSettings& settings : all) settings.top_k = 20;
  all[1].top_p = 0.7;
  all[1].min_p = 0.05;
  all[2].repeat_penalty = 1.5;
  all[3] = {.temperature = 0, .top_k = 0, .repeat_penalty = 2, .repeat_last = 5, .seed = 1};
  all[4].top_k = 1000;  // more than there are
  all[5] = {.temperature = 0, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .seed = 1};
  for (const SamplerSettings& settings : all) {
    Sampler whole(settings), ranked(settings);
    const CounterRandom random(3);
    std::vector<int32_t> history = {3, 499, 7};
    for (uint64_t step = 0; step < 200; ++step) {
      std::vector<float> logits;
      for (size_t i = 0; i < vocabulary; ++i)  // coarse: many are equal, some negative
        logits.push_back(static_cast<float>(std::floor(random.uniform(step * vocabulary + i) * 64) / 8) - 2);
      logits[step] = -kInfinity;
      std::vector<RankedLogit> best;
      for (size_t i = 0; i < vocabulary; ++i) best.emplace_back(logits[i], static_cast<int32_t>(i));
      std::sort(best.begin(), best.end(), ranks_before);
      const std::optional<size_t> needed = ranked.ranked_needed(history.size());
      ASSERT_TRUE(needed);
      best.resize(std::min(*needed, vocabulary));
      const int32_t expected = whole.sample(logits, history);
      ASSERT_EQ(ranked.sample_ranked(best, history), expected) << "step " << step;
      history.push_back(expected);
    }
  }
  EXPECT_FALSE(Sampler(plain()).ranked_needed(0));
  SamplerSettings lifting = all[0];
  lifting.repeat_penalty = 0.9;
  EXPECT_FALSE(Sampler(lifting).ranked_needed(0));
  Sampler sampler(all[0]);
  EXPECT_THROW(sampler.sample_ranked(std::vector<RankedLogit>{{NAN, 1}, {2.0f, 0}}, {}), Error);
  EXPECT_THROW(sampler.sample_ranked({}, {}), Error);
}

TEST(Sampler, ZeroTemperatureTakesTheLargestAndTheLowestIdAmongTies) {
  Sampler sampler(plain(0));
  EXPECT_EQ(sampler.sample(std::vector<float>{0, 3, 3, -kInfinity}, {}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-5}, {}), 0);
}

TEST(Sampler, NeverDrawsMinusInfinity) {
  EXPECT_EQ(support(plain(1e6), {-kInfinity, 1, -kInfinity, 0}), (std::set<int32_t>{1, 3}));
}

TEST(Sampler, ExtremeTemperaturesStayFinite) {
  EXPECT_EQ(support(plain(1e-300), {1, 2, 3}), (std::set<int32_t>{2}));
  EXPECT_EQ(support(plain(1e300), {-1000, 0, 1000}), (std::set<int32_t>{0, 1, 2}));
}

TEST(Sampler, RepeatPenaltyDividesPositiveAndMultipliesNegativeLogits) {
  SamplerSettings settings = plain(0);
  settings.repeat_penalty = 2;
  Sampler sampler(settings);
  EXPECT_EQ(sampler.sample(std::vector<float>{4, 3, 1}, std::vector<int32_t>{0}), 1);        // 4 / 2 < 3
  EXPECT_EQ(sampler.sample(std::vector<float>{-1, -1.5f, -9}, std::vector<int32_t>{0}), 1);  // -1 * 2 < -1.5
  // Once per token, however often it occurred: 8 / 2 > 3 > 8 / 4.
  EXPECT_EQ(sampler.sample(std::vector<float>{8, 3, 1}, std::vector<int32_t>{0, 0, 0}), 0);
}

TEST(Sampler, RepeatPenaltyLooksBackOnlySoFar) {
  SamplerSettings settings = plain(0);
  settings.repeat_penalty = 2;
  settings.repeat_last = 2;
  EXPECT_EQ(Sampler(settings).sample(std::vector<float>{4, 3, 1}, std::vector<int32_t>{0, 2, 2}), 0);
  settings.repeat_last = -1;
  EXPECT_EQ(Sampler(settings).sample(std::vector<float>{4, 3, 1}, std::vector<int32_t>{0, 2, 2}), 1);
  settings.repeat_last = 0;
  EXPECT_EQ(Sampler(settings).sample(std::vector<float>{4, 3, 1}, std::vector<int32_t>{2, 2, 0}), 0);
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler(plain(temperature));
    EXPECT_THROW(sampler.sample(std::vector<float>{1, NAN}, {}), Error);
    EXPECT_THROW(sampler.sample(std::vector<float>{-kInfinity, -kInfinity}, {}), Error);
  }
}

TEST(ResolveSampling, DefaultsWhenNeitherOptionsNorModelSay) {
  const SamplerSettings settings = resolve_sampling({}, Json::object(), "test");
  EXPECT_EQ(settings.temperature, 0.8);
  EXPECT_EQ(settings.top_k, 40);
  EXPECT_EQ(settings.top_p, 0.95);
  EXPECT_EQ(settings.min_p, 0.05);
  EXPECT_EQ(settings.repeat_penalty, 1.0);
}

TEST(ResolveSampling, TheModelsConfigHolds) {
  const Json config = {{"do_sample", true}, {"temperature", 0.6}, {"top_p", 0.9}, {"eos_token_id", 2}};
  const SamplerSettings settings = resolve_sampling({}, config, "test");
  EXPECT_EQ(settings.temperature, 0.6);
  EXPECT_EQ(settings.top_k, 50);
  EXPECT_EQ(settings.top_p, 0.9);
  EXPECT_EQ(settings.min_p, 0.0);
  EXPECT_EQ(resolve_sampling({}, Json{{"do_sample", false}}, "test").temperature, 0.0);
}

TEST(ResolveSampling, OptionsOverrideTheModel) {
  const Json config = {{"do_sample", false}, {"temperature", 0.6}};
  const SamplerSettings settings = resolve_sampling(
      {.temperature = 0.3, .top_k = 5, .top_p = 0.5, .min_p = 0.1, .repeat_penalty = 1.2, .seed = 9}, config,
      "test");
  EXPECT_EQ(settings.temperature, 0.3);
  EXPECT_EQ(settings.top_k, 5);
  EXPECT_EQ(settings.top_p, 0.5);
  EXPECT_EQ(settings.min_p, 0.1);
  EXPECT_EQ(settings.repeat_penalty, 1.2);
  EXPECT_EQ(settings.seed, 9u);
}

TEST(ResolveSampling, RefusesOptionsOutOfRange) {
  const Json none = Json::object();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double value : {kNan, -0.1, infinity}) {
    EXPECT_THROW(resolve_sampling({.temperature = value}, none, "test"), UsageError) << value;
  }
  for (const double value : {kNan, -0.1, 1.1, infinity}) {
    EXPECT_THROW(resolve_sampling({.top_p = value}, none, "test"), UsageError) << value;
    EXPECT_THROW(resolve_sampling({.min_p = value}, none, "test"), UsageError) << value;
  }
  for (const double value : {kNan, 0.0, -1.0, infinity}) {
    EXPECT_THROW(resolve_sampling({.repeat_penalty = value}, none, "test"), UsageError) << value;
  }
  EXPECT_THROW(resolve_sampling({.top_k = -1}, none, "test"), UsageError);
  EXPECT_THROW(resolve_sampling({.repeat_last = -2}, none, "test"), UsageError);
}

TEST(ResolveSampling, RefusesABrokenModelConfigByName) {
  for (const Json& config : {Json{{"temperature", -1}}, Json{{"top_p", 2}}, Json{{"top_k", -3}},
                             Json{{"top_p", "x"}}, Json{{"do_sample", 3}}, Json{{"repetition_penalty", 0}}}) {
    try {
      resolve_sampling({}, config, "folder/generation_config.json");
      FAIL() << config.dump();
    } catch (const UsageError&) {
      FAIL() << "a file's fault is no usage error: " << config.dump();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("folder/generation_config.json"), std::string::npos)
          << error.what();
    }
  }
}

TEST(ResolveSampling, SeedsFromTheSystemDiffer) {
  EXPECT_NE(resolve_sampling({}, Json::object(), "test").seed,
            resolve_sampling({}, Json::object(), "test").seed);
}

}  // namespace
}  // namespace nibble
