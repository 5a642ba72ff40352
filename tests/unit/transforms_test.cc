// Transforms: their rules at the limits, and that folding factors leaves a float model as it was.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "model_running.h"
#include "transforms/apply.h"
#include "transforms/transform.h"

namespace nibble {
namespace {

using testing::fixture;

TransformPlan log_equalize(std::vector<float> max_abs, bool foldable = true,
                           TransformSettings settings = {}) {
  const std::vector<float> weight_max(max_abs.size(), 1.0f);
  return find_transform("log_equalization")
      ->plan({.max_abs = max_abs, .weight_max = weight_max, .foldable = foldable, .settings = settings});
}

TEST(LogEqualization, RoutesByTheLargestActivation) {
  const struct {
    float largest;
    bool foldable;
    const char* expected;
  } kRows[] = {
      {1e-3f, true, "static"},
      {15.0f, true, "static"},
      {std::nextafter(15.0f, 16.0f), true, "equalized_static"},
      {std::nextafter(15.0f, 16.0f), false, "per_token"},
      {std::nextafter(150.0f, 0.0f), true, "equalized_static"},
      {std::nextafter(150.0f, 0.0f), false, "per_token"},
      {150.0f, true, "per_token"},
      {3e38f, true, "per_token"},
      {15.0f, false, "static"},
      {0.0f, true, "per_token"},  // no grid for an input of zeros
  };
  for (const auto& row : kRows) {
    const TransformPlan plan = log_equalize({row.largest / 4, row.largest, 0.0f}, row.foldable);
    EXPECT_EQ(activation_class(plan), row.expected) << row.largest;
    if (std::string(row.expected) == "static") {
      EXPECT_EQ(plan.activation_scale, row.largest / 127.0f);
    }
  }
  const TransformSettings narrow = {.static_limit = 1, .per_token_limit = 2};
  EXPECT_EQ(activation_class(log_equalize({1.5f}, true, narrow)), "equalized_static");
  EXPECT_EQ(activation_class(log_equalize({2.0f}, true, narrow)), "per_token");
}

TEST(LogEqualization, BringsEveryChannelToTheLogarithmOfItsRange) {
  const std::vector<float> max_abs = {149.0f, 100.0f, 3.0f, 0.25f, 1e-6f, 0.0f};
  const TransformPlan plan = log_equalize(max_abs);
  ASSERT_EQ(plan.factors.size(), max_abs.size());
  for (size_t j = 0; j + 1 < max_abs.size(); ++j) {
    const double reached = double{max_abs[j]} / plan.factors[j];
    EXPECT_NEAR(reached, std::log2(2.0 + max_abs[j]), 1e-5) << j;
  }
  EXPECT_EQ(plan.factors.back(), 1.0f);
  EXPECT_NEAR(plan.activation_scale, std::log2(151.0) / 127, 1e-6);
}

TEST(SmoothQuant, SharesTheRangeBetweenActivationsAndWeights) {
  const std::vector<float> max_abs = {64.0f, 4.0f, 0.0f, 2.0f}, weight_max = {0.25f, 1.0f, 1.0f, 0.0f};
  const auto plan = [&](double alpha, bool foldable) {
    return find_transform("smoothquant")
        ->plan({.max_abs = max_abs,
                .weight_max = weight_max,
                .foldable = foldable,
                .settings = {.smooth_alpha = alpha}});
  };
  const TransformPlan half = plan(0.5, true);
  EXPECT_EQ(half.factors, (std::vector<float>{16.0f, 2.0f, 1.0f, 1.0f}));
  EXPECT_EQ(half.activation_scale, 0.0f);
  EXPECT_EQ(activation_class(half), "equalized_per_token");
  EXPECT_EQ(plan(1.0, true).factors, (std::vector<float>{64.0f, 4.0f, 1.0f, 1.0f}));
  EXPECT_TRUE(plan(0.5, false).factors.empty());
}

TEST(Statistics, DivideAsIfTheInputHadBeenDivided) {
  constexpr int64_t kColumns = 5, kTokens = 40;
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(kTokens * kColumns), divided(x.size());
  const std::vector<float> factors = {0.125f, 4.0f, 1.0f, 0.3f, 20.0f};
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = normal(generator);
    divided[i] = x[i] / factors[i % kColumns];
  }
  ThreadPool pool(1);
  const auto collect = [&](const std::vector<float>& values) {
    StatisticsCollector collector(kColumns, true);
    collector.add(values.data(), kTokens, pool, "test");
    return collector.finish();
  };
  InputStatistics statistics = collect(x);
  const InputStatistics expected = collect(divided);
  divide_inputs(factors, &statistics);
  for (int64_t i = 0; i < kColumns; ++i) EXPECT_FLOAT_EQ(statistics.max_abs[i], expected.max_abs[i]);
  for (int64_t i = 0; i < kColumns * kColumns; ++i) {
    const float diagonal = std::sqrt(expected.hessian.data<float>()[i / kColumns * (kColumns + 1)] *
                                     expected.hessian.data<float>()[i % kColumns * (kColumns + 1)]);
    EXPECT_NEAR(statistics.hessian.data<float>()[i], expected.hessian.data<float>()[i], 1e-5f * diagonal);
    EXPECT_EQ(statistics.hessian.data<float>()[i],
              statistics.hessian.data<float>()[i % kColumns * kColumns + i / kColumns]);
  }
}

// Every input of every block divided by factors from 2^-5 to 2^5, taken up by the norm or the linear in
// front.
class Folding : public ::testing::TestWithParam<const char*> {};

TEST_P(Folding, LeavesTheLogitsAsTheyWere) {
  const Checkpoint checkpoint = Checkpoint::open(fixture(GetParam()));
  ThreadPool pool(2);
  const std::unique_ptr<Model> model = Model::load(checkpoint, pool);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 40; ++i) ids.push_back(i * 37 % 1000 + 1);
  const auto logits_of = [&] { return testing::Session(*model, pool, 64).feed(ids); };
  const std::vector<float> before = logits_of();

  std::mt19937 generator(1);
  std::uniform_real_distribution<float> exponent(-5.0f, 5.0f);
  int norms = 0, linears = 0;
  for (Block& block : model->blocks()) {
    for (const auto& sublayer : block.sublayers) {
      for (LinearGroup* group : sublayer->groups()) {
        std::vector<float> factors(static_cast<size_t>(group->in_features()));
        for (float& factor : factors) factor = std::exp2(exponent(generator));
        if (NormWeights* norm = sublayer->norm_before(*group)) {
          EXPECT_NE(checkpoint.find(norm->name + ".weight"), nullptr) << norm->name;
          divide_norm(factors, norm);
          ++norms;
        } else {
          const ChannelSource source = sublayer->linear_before(*group);
          ASSERT_NE(source.group, nullptr);
          ASSERT_EQ(source.rows.size(), factors.size());
          LinearSlot& slot = source.group->slots()[source.slot];
          std::vector<float> rows(static_cast<size_t>(slot.out_features));
          for (size_t c = 0; c < factors.size(); ++c) rows[static_cast<size_t>(source.rows[c])] = factors[c];
          for (size_t c = 0; c < factors.size(); ++c) factors[c] = rows[static_cast<size_t>(source.rows[c])];
          for (const float row : rows) ASSERT_GT(row, 0.0f) << "a row that feeds no channel";
          divide_rows(rows, source.group->in_features(), &slot, pool);
          ++linears;
        }
        multiply_columns(factors, group, pool);
      }
      sublayer->prepare(pool);
    }
  }
  EXPECT_EQ(norms, 2 * static_cast<int>(model->blocks().size()));
  EXPECT_EQ(linears, norms);
  const std::vector<float> after = logits_of();
  EXPECT_LT(testing::max_difference(before, after), 1e-4 * testing::standard_deviation(before));
  EXPECT_GT(testing::max_difference(before, after), 0.0);  // it did change weights
}

// Shared value heads; biases of q, k and v; norms of heads; a head size beyond hidden / heads.
INSTANTIATE_TEST_SUITE_P(Models, Folding,
                         ::testing::Values("tiny/llama", "tiny/qwen2", "qwen3", "tiny/llama3_rope"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

}  // namespace
}  // namespace nibble
