#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/device_model.h"
#include "runtime/generate.h"
#include "runtime/perplexity.h"
#include "runtime/token_ids.h"

namespace nibble {
namespace {

std::string filtered(std::vector<std::string> stops, const std::vector<std::string>& pieces, bool* stopped) {
  StopFilter filter(std::move(stops));
  std::string text;
  for (const std::string& piece : pieces) text += filter.push(piece);
  *stopped = filter.stopped();
  return text + filter.finish();
}

TEST(StopFilter, FindsATextSplitOverPieces) {
  bool stopped = false;
  EXPECT_EQ(filtered({"END"}, {"abcE", "N", "Dxyz", "more"}, &stopped), "abc");
  EXPECT_TRUE(stopped);
}

TEST(StopFilter, HoldsBackOnlyWhatCouldBecomeAStopText) {
  StopFilter filter({"\n\n", "STOP"});
  EXPECT_EQ(filter.push("one\n"), "one");
  EXPECT_EQ(filter.push("two ST"), "\ntwo ");
  EXPECT_EQ(filter.push("AR"), "STAR");
  EXPECT_EQ(filter.push("S"), "");
  EXPECT_EQ(filter.finish(), "S");
  EXPECT_FALSE(filter.stopped());
}

TEST(StopFilter, TheEarliestOfSeveralWins) {
  bool stopped = false;
  EXPECT_EQ(filtered({"later", "now"}, {"a now b later"}, &stopped), "a ");
  EXPECT_TRUE(stopped);
}

TEST(StopFilter, AnOverlappingBeginningIsNotLost) {
  bool stopped = false;
  EXPECT_EQ(filtered({"aab"}, {"a", "a", "a", "b", "c"}, &stopped), "a");
  EXPECT_TRUE(stopped);
  EXPECT_EQ(filtered({"aab"}, {"a", "a", "a"}, &stopped), "aaa");
  EXPECT_FALSE(stopped);
}

TEST(StopFilter, EveryCutOfATextGivesTheSameResult) {
  const std::string text = "xabababcabx";
  for (size_t first = 0; first <= text.size(); ++first) {
    for (size_t second = first; second <= text.size(); ++second) {
      bool stopped = false;
      EXPECT_EQ(filtered({"ababc"},
                         {text.substr(0, first), text.substr(first, second - first), text.substr(second)},
                         &stopped),
                "xab");
      EXPECT_TRUE(stopped);
    }
  }
}

TEST(StopFilter, RefusesAnEmptyText) { EXPECT_THROW(StopFilter({"a", ""}), UsageError); }

TEST(ClusteredMean, EqualClustersGiveTheStandardErrorOfTheirMeans) {
  // Means 1, 2, 3 over 4 tokens each: mean 2, standard error sqrt(1 / 3).
  const std::vector<double> sums = {4, 8, 12};
  const std::vector<int64_t> counts = {4, 4, 4};
  const ClusteredMean result = clustered_mean(sums, counts);
  EXPECT_DOUBLE_EQ(result.mean, 2);
  EXPECT_DOUBLE_EQ(result.standard_error, std::sqrt(1.0 / 3));
}

TEST(ClusteredMean, UnequalClustersAreWeightedByTokens) {
  const std::vector<double> sums = {1, 9};
  const std::vector<int64_t> counts = {1, 3};
  const ClusteredMean result = clustered_mean(sums, counts);
  EXPECT_DOUBLE_EQ(result.mean, 2.5);
  EXPECT_DOUBLE_EQ(result.standard_error, std::sqrt(2 * (1.5 * 1.5 + 1.5 * 1.5)) / 4);
}

TEST(ClusteredMean, OneClusterHasNoStandardError) {
  EXPECT_TRUE(std::isnan(clustered_mean(std::vector<double>{3}, std::vector<int64_t>{2}).standard_error));
}

TEST(ScoreToken, MatchesPlainSoftmax) {
  const std::vector<float> q = {0.5f, -1.25f, 3.0f, 0.0f}, r = {1.5f, -0.25f, 2.0f, -4.0f};
  const auto softmax = [](const std::vector<float>& logits) {
    std::vector<double> p;
    double total = 0;
    for (const float x : logits) total += std::exp(double{x});
    for (const float x : logits) p.push_back(std::exp(double{x}) / total);
    return p;
  };
  const std::vector<double> pq = softmax(q), pr = softmax(r);
  double kl = 0;
  for (size_t i = 0; i < pq.size(); ++i) kl += pr[i] * std::log(pr[i] / pq[i]);
  const TokenScore score = score_token(q.data(), r.data(), 4, 1);
  EXPECT_NEAR(score.negative_log_likelihood, -std::log(pq[1]), 1e-12);
  EXPECT_NEAR(score.reference_negative_log_likelihood, -std::log(pr[1]), 1e-12);
  EXPECT_NEAR(score.kl, kl, 1e-12);
  EXPECT_TRUE(score.same_top);
}

TEST(ScoreToken, HugeLogitsNeitherOverflowNorVanish) {
  const std::vector<float> q = {-30000, 30000, 29999};
  EXPECT_NEAR(score_token(q.data(), nullptr, 3, 0).negative_log_likelihood,
              60000 + std::log1p(std::exp(-1.0)), 1e-6);
}

TEST(ScoreToken, EqualLogitsHaveNoDivergenceAndTiesTakeTheLowestId) {
  const std::vector<float> q = {1, 2, 2, -INFINITY}, r = {1, 2, 2.5f, -INFINITY};
  EXPECT_EQ(score_token(q.data(), q.data(), 4, 1).kl, 0);
  EXPECT_TRUE(score_token(q.data(), q.data(), 4, 1).same_top);
  EXPECT_FALSE(score_token(q.data(), r.data(), 4, 1).same_top);
  EXPECT_GT(score_token(q.data(), r.data(), 4, 1).kl, 0);
}

TEST(ScoreToken, NanStaysVisible) {
  const std::vector<float> bad = {1, NAN, 2}, good = {1, 2, 3};
  EXPECT_TRUE(std::isnan(score_token(bad.data(), nullptr, 3, 0).negative_log_likelihood));
  EXPECT_TRUE(std::isnan(score_token(good.data(), bad.data(), 3, 0).kl));
}

TEST(CutWindows, TakesTheFirstWholeWindows) {
  const std::vector<int32_t> ids = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  EXPECT_EQ(cut_windows(ids, 4, 0, -1, "text").windows, 2);
  const ScoringWindows one = cut_windows(ids, 4, 1, 3, "text");
  EXPECT_EQ(one.windows, 1);
  EXPECT_EQ(one.bos, 3);
  EXPECT_EQ(one.ids, (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(cut_windows(ids, 4, 7, -1, "text").windows, 2);
}

TEST(CutWindows, RefusesTooLittleTextWithBothCounts) {
  const std::vector<int32_t> ids = {0, 1, 2};
  try {
    cut_windows(ids, 4, 0, -1, "book.txt");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "book.txt: has 3 tokens, less than one window of 4");
  }
  EXPECT_THROW(cut_windows(ids, 1, 0, -1, "book.txt"), UsageError);
  EXPECT_THROW(cut_windows(ids, 2, -1, -1, "book.txt"), UsageError);
}

TEST(DeviceCacheType, IsF16OrQ8ForBoth) {
  EXPECT_EQ(device_cache_type(CacheType::kF32), CacheType::kF16);
  EXPECT_EQ(device_cache_type({CacheType::kF16, CacheType::kF32}), CacheType::kF16);
  EXPECT_EQ(device_cache_type(CacheType::kQ8), CacheType::kQ8);
  for (const CacheTypes types : {CacheTypes(CacheType::kQ4), CacheTypes(CacheType::kQ8, CacheType::kF16),
                                 CacheTypes(CacheType::kF16, CacheType::kQ4)}) {
    EXPECT_THROW(device_cache_type(types), UsageError);
  }
}

TEST(ParseTokenIds, AcceptsTheUsualSeparators) {
  EXPECT_EQ(parse_token_ids("1 2,3\n[4, 5]\t", "-p"), (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_TRUE(parse_token_ids(" \n", "-p").empty());
}

TEST(ParseTokenIds, RefusesWhatIsNoId) {
  for (const char* text : {"1 x", "-1", "1.5", "2147483648", "0x10", "99999999999999999999", "1;2"}) {
    EXPECT_THROW(parse_token_ids(text, "-p"), Error) << text;
  }
}

}  // namespace
}  // namespace nibble
