#include "calibration/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "calibration/blas.h"

namespace nibble {
namespace {

std::vector<float> random_values(size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

InputStatistics collect(const std::vector<float>& x, int64_t k, int64_t chunk, int threads) {
  ThreadPool pool(threads);
  StatisticsCollector collector(k, true);
  const int64_t tokens = static_cast<int64_t>(x.size()) / k;
  for (int64_t t = 0; t < tokens; t += chunk) {
    collector.add(x.data() + t * k, std::min(chunk, tokens - t), pool, "test");
  }
  return collector.finish();
}

TEST(Statistics, EqualsPlainLoops) {
  for (const int64_t k : {1, 3, 16, 63, 64, 65, 257, 300, 530}) {
    const int64_t tokens = 37;
    const std::vector<float> x =
        random_values(static_cast<size_t>(tokens * k), 7u + static_cast<unsigned>(k));
    const InputStatistics statistics = collect(x, k, 10, 2);
    ASSERT_EQ(statistics.tokens, tokens);
    ASSERT_EQ(statistics.in_features, k);
    ASSERT_EQ(statistics.hessian.shape(), (Shape{k, k}));
    const float* hessian = statistics.hessian.data<float>();
    for (int64_t i = 0; i < k; ++i) {
      float largest = 0;
      for (int64_t t = 0; t < tokens; ++t) largest = std::max(largest, std::fabs(x[t * k + i]));
      ASSERT_EQ(statistics.max_abs[i], largest);
      for (int64_t j = 0; j < k; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          sum += double(x[t * k + i]) * x[t * k + j];
          magnitude += std::fabs(double(x[t * k + i]) * x[t * k + j]);
        }
        ASSERT_NEAR(hessian[i * k + j], sum * 2 / tokens, magnitude * 2 / tokens * 1e-5)
            << k << " " << i << " " << j;
        ASSERT_EQ(hessian[i * k + j], hessian[j * k + i]);
      }
    }
  }
}

TEST(Statistics, CrossMomentsEqualPlainLoops) {
  for (const int64_t k : {1, 5, 64, 300}) {
    const int64_t tokens = 41;
    const auto seed = static_cast<unsigned>(k);
    const std::vector<float> x = random_values(static_cast<size_t>(tokens * k), seed);
    const std::vector<float> other = random_values(static_cast<size_t>(tokens * k), seed + 100);
    const auto collected = [&](int threads) {
      ThreadPool pool(threads);
      StatisticsCollector collector(k, true, true);
      for (int64_t t = 0; t < tokens; t += 20) {
        const int64_t count = std::min<int64_t>(20, tokens - t);
        collector.add(x.data() + t * k, count, pool, "test");
        collector.add_cross(other.data() + t * k, x.data() + t * k, count, pool, "test");
      }
      return collector.finish();
    };
    const InputStatistics statistics = collected(2), one = collected(1);
    ASSERT_EQ(statistics.cross.shape(), (Shape{k, k}));
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          const double product = (double(other[t * k + i]) - x[t * k + i]) * x[t * k + j];
          sum += product;
          magnitude += std::fabs(product);
        }
        ASSERT_NEAR(statistics.cross.data<float>()[i * k + j], sum * 2 / tokens, magnitude / tokens * 1e-5);
        ASSERT_EQ(statistics.cross.data<float>()[i * k + j], one.cross.data<float>()[i * k + j]);
      }
    }
  }
}

TEST(Statistics, SameBitsForAnyThreadCount) {
  const int64_t k = 330;
  const std::vector<float> x = random_values(static_cast<size_t>(200 * k), 3);
  const InputStatistics one = collect(x, k, 64, 1);
  for (int threads : {2, 4}) {
    const InputStatistics many = collect(x, k, 64, threads);
    EXPECT_EQ(one.max_abs, many.max_abs);
    for (int64_t i = 0; i < k * k; ++i) {
      ASSERT_EQ(one.hessian.data<float>()[i], many.hessian.data<float>()[i])
          << threads << " threads, element " << i;
    }
  }
}

TEST(Statistics, KeepsOnlyMagnitudesWhenNoHessianIsWanted) {
  ThreadPool pool(1);
  StatisticsCollector collector(3, false);
  const std::vector<float> x = {1, -2, 0, 3, 0.5f, -0.0f};
  collector.add(x.data(), 2, pool, "test");
  const InputStatistics statistics = collector.finish();
  EXPECT_EQ(statistics.max_abs, (std::vector<float>{3, 2, 0}));
  EXPECT_FALSE(statistics.hessian.defined());
}

TEST(Statistics, RefusesWhatIsNotFiniteAndNamesIt) {
  ThreadPool pool(2);
  for (const float bad :
       {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    // Both code paths of the magnitude pass: a full group of 16 columns, and the columns left over.
    for (const int64_t channel : {5, 18}) {
      const int64_t k = 20;
      std::vector<float> x = random_values(static_cast<size_t>(4 * k), 1);
      StatisticsCollector collector(k, true);
      collector.add(x.data(), 4, pool, "layer 3");
      std::vector<float> broken = x;
      broken[static_cast<size_t>(2 * k + channel)] = bad;
      try {
        collector.add(broken.data(), 4, pool, "model.layers.3.mlp.input");
        FAIL() << "accepted " << bad;
      } catch (const Error& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("model.layers.3.mlp.input"), std::string::npos) << message;
        EXPECT_NE(message.find("token 6"), std::string::npos) << message;
        EXPECT_NE(message.find("channel " + std::to_string(channel)), std::string::npos) << message;
      }
      const InputStatistics statistics = collector.finish();
      EXPECT_EQ(statistics.tokens, 4);
      EXPECT_TRUE(std::isfinite(statistics.max_abs[static_cast<size_t>(channel)]));
    }
  }
}

TEST(Statistics, RefusesToFinishWithoutTokens) {
  StatisticsCollector collector(4, true);
  EXPECT_THROW(collector.finish(), Error);
}

TEST(Blas, ProductsOfBothTypesFollowTheirDescription) {
  EXPECT_FALSE(blas_info().core.empty());
  const std::vector<double> a = {1, 2, 3, 4, 5, 6};  // [2, 3]
  const std::vector<double> b = {1, 0, 2, 1, 1, 1};  // [3, 2]
  std::vector<double> c(4, 100);
  gemm<double>(false, false, 2, 2, 3, 1.0, a.data(), 3, b.data(), 2, 0.0, c.data(), 2);
  EXPECT_EQ(c, (std::vector<double>{8, 5, 20, 11}));
  std::vector<double> transposed(9, 100);  // a^T b^T = (b a)^T
  gemm<double>(true, true, 3, 3, 2, 1.0, a.data(), 3, b.data(), 2, 0.0, transposed.data(), 3);
  EXPECT_EQ(transposed, (std::vector<double>{1, 6, 5, 2, 9, 7, 3, 12, 9}));

  std::vector<float> gram(4, -1);
  const std::vector<float> x = {1, 2, 3, 4};
  syrk_lower<float>(2, 2, 1.0f, x.data(), 2, 0.0f, gram.data(), 2);
  EXPECT_EQ(gram, (std::vector<float>{10, -1, 14, 20}));
}

TEST(Blas, CholeskyUsesTheLowerTriangleAndRefusesIndefiniteMatrices) {
  std::vector<double> a = {4, 77, 2, 5};  // 77 stands where the upper triangle is not read
  ASSERT_TRUE(cholesky_lower<double>(2, a.data(), 2));
  EXPECT_EQ(a, (std::vector<double>{2, 77, 1, 2}));
  std::vector<double> right = {2, 0, 1, 4};  // columns are right-hand sides
  solve_lower<double>(2, 2, a.data(), 2, right.data(), 2);
  EXPECT_EQ(right, (std::vector<double>{1, 0, 0, 2}));
  std::vector<double> row = {2, 5};
  solve_lower_transposed_right<double>(1, 2, a.data(), 2, row.data(), 2);
  EXPECT_EQ(row, (std::vector<double>{1, 2}));

  std::vector<float> indefinite = {1, 0, 2, 1};
  EXPECT_FALSE(cholesky_lower<float>(2, indefinite.data(), 2));
  std::vector<float> broken = {1, 0, std::nanf(""), 1};
  EXPECT_FALSE(cholesky_lower<float>(2, broken.data(), 2));
}

}  // namespace
}  // namespace nibble
