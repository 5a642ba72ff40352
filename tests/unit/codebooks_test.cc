// Per-row codebooks: k-means in one dimension, the choice of sparse values, and the quantizers kmeans and
// lnq.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "base/half.h"
#include "formats/format.h"
#include "quantizer_cases.h"
#include "quantizers/kmeans_1d.h"
#include "quantizers/lnq.h"
#include "quantizers/row_vectors.h"
#include "quantizers/sparse_selection.h"

namespace nibble {

namespace scalar {
void add_scaled(float a, const float* x, int64_t count, float* y);
}

namespace {

double cost_of(const std::vector<float>& values, const std::vector<float>& weights,
               const std::vector<double>& levels) {
  double cost = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    double least = std::numeric_limits<double>::infinity();
    for (const double level : levels) least = std::min(least, std::pow(values[i] - level, 2));
    cost += weights[i] * least;
  }
  return cost;
}

std::vector<float> levels_of(const std::vector<float>& values, const std::vector<float>& weights,
                             int clusters, KmeansSolver solver) {
  std::vector<float> levels(static_cast<size_t>(clusters), NAN);
  Kmeans1d().solve(values, weights, clusters, solver, levels.data());
  for (int i = 1; i < clusters; ++i) EXPECT_LE(levels[i - 1], levels[i]);
  return levels;
}

double solved_cost(const std::vector<float>& values, const std::vector<float>& weights, int clusters,
                   KmeansSolver solver) {
  const std::vector<float> levels = levels_of(values, weights, clusters, solver);
  return cost_of(values, weights, {levels.begin(), levels.end()});
}

// The least cost over every way to cut the sorted values into runs.
double least_cost(std::vector<std::pair<float, float>> sorted, int clusters) {
  std::sort(sorted.begin(), sorted.end());
  const size_t count = sorted.size();
  double best = std::numeric_limits<double>::infinity();
  for (size_t cuts = 0; cuts < size_t{1} << (count - 1); ++cuts) {
    if (__builtin_popcountll(cuts) >= clusters) continue;
    double cost = 0;
    for (size_t begin = 0; begin < count;) {
      size_t end = begin + 1;
      while (end < count && (cuts >> (end - 1) & 1) == 0) ++end;
      double weight = 0, moment = 0, square = 0;
      for (size_t i = begin; i < end; ++i)
        weight += sorted[i].second, moment += double{sorted[i].second} * sorted[i].first;
      const double mean = weight > 0 ? moment / weight : 0;
      for (size_t i = begin; i < end; ++i) square += sorted[i].second * std::pow(sorted[i].first - mean, 2);
      cost += square;
      begin = end;
    }
    best = std::min(best, cost);
  }
  return best;
}

TEST(Kmeans1d, ExactIsTheBestOfAllCuts) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int repeat = 0; repeat < 60; ++repeat) {
    const int count = 1 + repeat % 12, clusters = 1 + repeat % 5;
    std::vector<float> values, weights;
    std::vector<std::pair<float, float>> pairs;
    for (int i = 0; i < count; ++i) {
      // Some values repeat, some weigh nothing, and weights differ by many orders of magnitude.
      values.push_back(i % 4 == 3 ? values[i - 1] : normal(random));
      weights.push_back(i % 5 == 4 ? 0.0f : std::exp(6 * normal(random)));
      pairs.emplace_back(values.back(), weights.back());
    }
    const double expected = least_cost(pairs, clusters);
    const double scale = cost_of(values, weights, {0.0});
    EXPECT_NEAR(solved_cost(values, weights, clusters, KmeansSolver::kExact), expected,
                1e-6 * expected + 1e-12 * scale)
        << count << " values in " << clusters;
  }
}

TEST(Kmeans1d, ExactIsNeverWorseThanLloyd) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  int better = 0;
  for (const int count : {9, 40, 576, 1536}) {
    for (const int clusters : {2, 4, 8, 16}) {
      if (count < clusters) continue;
      for (int repeat = 0; repeat < 3; ++repeat) {
        std::vector<float> values, weights;
        for (int i = 0; i < count; ++i) {
          values.push_back(0.05f * normal(random) * (i % 50 == 7 ? 20.0f : 1.0f));
          weights.push_back(std::exp(2 * normal(random)));
        }
        const double exact = solved_cost(values, weights, clusters, KmeansSolver::kExact);
        const double lloyd = solved_cost(values, weights, clusters, KmeansSolver::kLloyd);
        EXPECT_LE(exact, lloyd * (1 + 1e-6)) << count << " values in " << clusters;
        if (count >= 40) {
          EXPECT_LE(lloyd, 2 * exact) << count << " values in " << clusters;  // a local optimum, not nonsense
        }
        better += exact < 0.999 * lloyd;
      }
    }
  }
  EXPECT_GT(better, 0);  // else one of the two is not what it says
}

TEST(Kmeans1d, RowsWithFewValues) {
  for (const KmeansSolver solver : {KmeansSolver::kExact, KmeansSolver::kLloyd}) {
    EXPECT_EQ(levels_of({}, {}, 4, solver), (std::vector<float>{0, 0, 0, 0}));
    EXPECT_EQ(levels_of({3}, {2}, 4, solver), (std::vector<float>{3, 3, 3, 3}));
    EXPECT_EQ(levels_of({0, 0, 0, 0, 0}, {1, 2, 3, 4, 5}, 2, solver), (std::vector<float>{0, 0}));
    EXPECT_EQ(levels_of({-0.0f, 0.0f, 1, 1}, {1, 1, 1, 1}, 2, solver), (std::vector<float>{0, 1}));
    EXPECT_EQ(levels_of({5, -1, 5, 2, -1}, {1, 1, 1, 1, 1}, 4, solver), (std::vector<float>{-1, 2, 5, 5}));
    // Without any weight all count alike.
    EXPECT_EQ(levels_of({1, 2, 9, 10}, {0, 0, 0, 0}, 2, solver), (std::vector<float>{1.5f, 9.5f}));
    // What weighs nothing has no say.
    EXPECT_EQ(levels_of({1, 100, 3, -50}, {1, 0, 1, 0}, 2, solver), (std::vector<float>{1, 3}));
  }
}

TEST(Sparse, QuartilesAreThoseOfTheSortedValues) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  ThreadPool pool(3);
  for (const int count : {1, 2, 3, 4, 5, 7, 100, 1001, 150001}) {
    std::vector<float> values;
    for (int i = 0; i < count; ++i)
      values.push_back(i % 3 == 0 ? std::round(normal(random)) : normal(random));
    const Quartiles found = find_quartiles(values.data(), count, pool);
    std::sort(values.begin(), values.end());
    const auto expected = [&](double q) {
      const double place = q * (count - 1);
      const auto low = static_cast<size_t>(place), high = std::min<size_t>(low + 1, count - 1);
      return static_cast<float>(values[low] +
                                (place - static_cast<double>(low)) * (double{values[high]} - values[low]));
    };
    EXPECT_EQ(found.first, expected(0.25)) << count;
    EXPECT_EQ(found.third, expected(0.75)) << count;
  }
}

TEST(Sparse, OneRatioHitsTheShareOfTheWholeModel) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  ThreadPool pool(2);
  OutlierRatio found;
  std::vector<std::vector<float>> matrices;
  for (const float heavy : {1.0f, 30.0f, 5.0f}) {
    std::vector<float> matrix(60000);
    for (size_t i = 0; i < matrix.size(); ++i)
      matrix[i] = normal(random) * (i % 97 == 0 ? heavy : 1.0f) + 0.2f;
    found.add(matrix.data(), static_cast<int64_t>(matrix.size()), pool);
    matrices.push_back(std::move(matrix));
  }
  matrices.emplace_back(1000, 2.5f);  // no spread: no outliers, but weights of the model
  found.add(matrices.back().data(), 1000, pool);
  EXPECT_EQ(found.weights(), 181000);
  for (const double percent : {0.05, 0.4, 5.0, 40.0}) {
    const double ratio = found.ratio(percent);
    int64_t count = 0;
    for (const std::vector<float>& matrix : matrices) {
      const float threshold =
          outlier_threshold(find_quartiles(matrix.data(), static_cast<int64_t>(matrix.size()), pool), ratio);
      for (const float weight : matrix) count += std::fabs(weight) >= threshold;
    }
    const double share = 100.0 * static_cast<double>(count) / 181000;
    EXPECT_NEAR(share, percent, 0.01 * percent + 0.002);
    EXPECT_NEAR(share, found.percent_at(ratio), 0.002);
  }
  EXPECT_EQ(found.ratio(100), -HUGE_VAL);
  EXPECT_EQ(found.percent_at(found.ratio(0)), 0);
}

TEST(Sparse, TakesTheMostSensitiveThenTheLargest) {
  ThreadPool pool(1);
  const std::vector<float> weight = {1, -9, 2, 3, -4, 5, 0, 8, 7, 6};
  const std::vector<float> scores = {5, 0, 0, 7, 0, 0, 5, 0, 0, 1};
  SparseRequest request = {.weight = weight.data(),
                           .out_features = 2,
                           .in_features = 5,
                           .scores = scores.data(),
                           .score_stride = 5,
                           .sensitive_percent = 29,  // two of ten, and of the two with score 5 the first
                           .outlier_percent = 30};
  const auto taken = [&] {
    const SparseSelection selection = select_sparse(request, pool);
    return std::vector<uint8_t>(selection.taken);
  };
  EXPECT_EQ(taken(), (std::vector<uint8_t>{1, 1, 0, 1, 0, 0, 0, 1, 1, 0}));
  request.outlier_percent = 0;
  EXPECT_EQ(taken(), (std::vector<uint8_t>{1, 0, 0, 1, 0, 0, 0, 0, 0, 0}));
  request.sensitive_percent = request.outlier_percent = 100;
  EXPECT_EQ(taken(), std::vector<uint8_t>(10, 1));
  request.sensitive_percent = 0;
  request.outlier_percent = 30;
  request.outlier_ratio = 0.5;  // quartiles 0.25 and 5.75: |w| >= 5.75 + 2.75
  EXPECT_EQ(taken(), (std::vector<uint8_t>{0, 1, 0, 0, 0, 0, 0, 0, 0, 0}));
  // The same score for all rows: times w^2.
  request = {.weight = weight.data(),
             .out_features = 2,
             .in_features = 5,
             .scores = scores.data(),
             .sensitive_percent = 20};
  const SparseSelection selection = select_sparse(request, pool);
  EXPECT_EQ(selection.sensitive, 2);
  EXPECT_TRUE(selection.is_taken(8));  // 7 * 7^2
  EXPECT_TRUE(selection.is_taken(5));  // 5 * 5^2
  const SparsePart part = sparse_part(selection, 2, 5);
  EXPECT_EQ(part.row_offsets, (std::vector<int64_t>{0, 0, 2}));
  EXPECT_EQ(part.columns, (std::vector<int32_t>{0, 3}));
}

// The weight that a result stands for.
std::vector<float> dense_of(const QuantizedWeight& result) {
  const PackedLinear packed = find_format("squeezellm")->pack(result, "layer");
  find_format("squeezellm")->validate(packed);
  std::vector<float> dense(static_cast<size_t>(result.out_features * result.in_features));
  packed.format->dequantize(packed, dense.data());
  return dense;
}

QuantizedWeight quantize(QuantizerCase& made, const char* quantizer, int threads = 2) {
  ThreadPool pool(threads);
  made.settings.activation_bits = 16;
  QuantizerInput input = input_of(made);
  input.sensitivity = made.input.sensitivity;
  input.sparse_outlier_ratio = made.input.sparse_outlier_ratio;
  return find_quantizer(quantizer).quantize(input, pool);
}

double weighted_error(const QuantizerCase& made, const std::vector<float>& dense,
                      const std::vector<float>& weights) {
  double error = 0;
  for (size_t i = 0; i < dense.size(); ++i)
    error += weights[i] * std::pow(double{dense[i]} - double{made.weight[i]}, 2);
  return error;
}

TEST(Kmeans, CountsWeightsBySensitivity) {
  QuantizerCase made = make_case(12, 200);
  made.settings.weight_bits = 3;
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  std::vector<float> fisher;
  for (int i = 0; i < 12 * 200; ++i) fisher.push_back(std::exp(3 * normal(random)));
  std::fill_n(fisher.begin(), 200, 0.0f);  // a row without sensitivity counts all alike
  made.input.sensitivity = fisher.data();
  std::vector<float> diagonal(12 * 200), ones(12 * 200, 1.0f);
  for (int i = 0; i < 12 * 200; ++i) diagonal[i] = made.statistics.hessian.data<float>()[i % 200 * 201];
  const auto dense_by = [&](const char* sensitivity) {
    made.settings.sensitivity = sensitivity;
    return dense_of(quantize(made, "kmeans"));
  };
  const std::vector<float> by_fisher = dense_by("fisher"), by_hessian = dense_by("hessian_diagonal"),
                           by_none = dense_by("uniform");
  // Each is the best by its own measure.
  for (const auto* other : {&by_hessian, &by_none})
    EXPECT_LT(weighted_error(made, by_fisher, fisher), 0.9 * weighted_error(made, *other, fisher));
  for (const auto* other : {&by_fisher, &by_none})
    EXPECT_LT(weighted_error(made, by_hessian, diagonal), 0.999 * weighted_error(made, *other, diagonal));
  for (const auto* other : {&by_fisher, &by_hessian})
    EXPECT_LT(weighted_error(made, by_none, ones), 0.999 * weighted_error(made, *other, ones));
  EXPECT_EQ(std::vector<float>(by_fisher.begin(), by_fisher.begin() + 200),
            std::vector<float>(by_none.begin(), by_none.begin() + 200));
}

TEST(Kmeans, SparseValuesBringTheirWeightsBack) {
  for (const char* quantizer : {"kmeans", "lnq"}) {
    QuantizerCase made = make_case(9, 130);
    made.settings.weight_bits = 2;
    made.settings.sensitivity = "hessian_diagonal";
    made.settings.sparse_sensitive_percent = 1;
    made.settings.sparse_outlier_percent = 3;
    const QuantizedWeight result = quantize(made, quantizer);
    EXPECT_EQ(result.sparse.columns.size(), 11u + 35u);
    const std::vector<float> dense = dense_of(result);
    for (int64_t row = 0; row < 9; ++row) {
      for (int64_t i = result.sparse.row_offsets[row]; i < result.sparse.row_offsets[row + 1]; ++i) {
        const int64_t at = row * 130 + result.sparse.columns[i];
        // F16 rounds the difference to the nearest level, which is smaller than the weight's own spread.
        EXPECT_NEAR(dense[at], made.weight[at], 0x1p-11 * std::fabs(result.sparse.values[i]) + 0x1p-25);
      }
    }
    made.settings.sparse_outlier_percent = 100;
    const std::vector<float> all = dense_of(quantize(made, quantizer));
    for (size_t i = 0; i < all.size(); ++i)
      EXPECT_NEAR(all[i], made.weight[i], 0x1p-11 * std::fabs(made.weight[i]) + 0x1p-25);
  }
}

TEST(Kmeans, LevelsAreF16AndAscending) {
  QuantizerCase made = make_case(5, 64);
  made.settings.weight_bits = 4;
  made.settings.sensitivity = "hessian_diagonal";
  for (const char* quantizer : {"kmeans", "lnq"}) {
    const QuantizedWeight result = quantize(made, quantizer);
    for (size_t i = 0; i < result.codebooks.size(); ++i) {
      EXPECT_EQ(f16_to_float(float_to_f16(result.codebooks[i])), result.codebooks[i]);
      if (i % 16 != 0) {
        EXPECT_LE(result.codebooks[i - 1], result.codebooks[i]);
      }
    }
  }
  // Weights that F16 would lose keep all their digits.
  for (float& weight : made.weight) weight *= 1e-6f;
  made.settings.sensitivity = "uniform";
  const std::vector<float> ones(5 * 64, 1.0f);
  EXPECT_LT(weighted_error(made, dense_of(quantize(made, "kmeans")), ones),
            0.02 * weighted_error(made, std::vector<float>(5 * 64, 0.0f), ones));
}

TEST(Codebooks, ThreadsDoNotChangeTheResult) {
  for (const char* quantizer : {"kmeans", "lnq"}) {
    QuantizerCase made = make_case(43, 88);
    made.settings.weight_bits = 3;
    made.settings.sensitivity = "hessian_diagonal";
    made.settings.sparse_sensitive_percent = 0.5;
    made.settings.sparse_outlier_percent = 0.5;
    const QuantizedWeight one = quantize(made, quantizer, 1);
    for (const int threads : {2, 5}) {
      const QuantizedWeight more = quantize(made, quantizer, threads);
      EXPECT_EQ(one.codes, more.codes);
      EXPECT_EQ(one.codebooks, more.codebooks);
      EXPECT_EQ(one.sparse.columns, more.sparse.columns);
      EXPECT_EQ(one.sparse.values, more.sparse.values);
    }
  }
}

TEST(Codebooks, RefuseWhatIsNotANumber) {
  for (const char* quantizer : {"kmeans", "lnq"}) {
    const auto expect_error = [&](const std::function<void(QuantizerCase&)>& change,
                                  const std::string& part) {
      QuantizerCase made = make_case(4, 24);
      made.settings.weight_bits = 3;
      made.settings.sensitivity = "hessian_diagonal";
      change(made);
      try {
        quantize(made, quantizer);
        ADD_FAILURE() << "no error; expected " << part;
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find("layers.7.test"), std::string::npos) << error.what();
      }
    };
    expect_error([](QuantizerCase& c) { c.weight[24 + 5] = NAN; }, "row 1, column 5 is nan");
    expect_error([](QuantizerCase& c) { c.statistics.hessian.mutable_data<float>()[3 * 25] = -1; },
                 "-1 at column 3");
    expect_error([](QuantizerCase& c) { c.settings.sensitivity = "fisher"; }, "none were measured");
    static std::vector<float> fisher;
    for (const float bad : {NAN, -1.0f, HUGE_VALF}) {
      expect_error(
          [&](QuantizerCase& c) {
            fisher.assign(4 * 24, 1.0f);
            fisher[2 * 24 + 1] = bad;
            c.settings.sensitivity = "fisher";
            c.input.sensitivity = fisher.data();
          },
          "sensitivity in row 2, column 1");
    }
  }
}

TEST(Lnq, EveryStepLowersTheOutputError) {
  for (const unsigned seed : {1u, 2u, 3u}) {
    QuantizerCase made =
        make_case(8, 96, {.dead_columns = seed == 3 ? 5 : 0, .strong_columns = 4, .seed = seed});
    const int64_t k = 96;
    std::vector<float> hessian(made.statistics.hessian.data<float>(),
                               made.statistics.hessian.data<float>() + k * k);
    for (int64_t j = 0; j < k; ++j) hessian[j * k + j] += 0.01f;
    for (const int levels : {2, 4, 8, 16}) {
      std::vector<float> table;
      std::vector<int8_t> codes;
      for (int row = 0; row < 8; ++row) {
        const std::vector<float> weights(made.weight.begin() + row * k, made.weight.begin() + (row + 1) * k);
        const std::vector<float> own =
            levels_of(weights, std::vector<float>(k, 1.0f), levels, KmeansSolver::kExact);
        table.insert(table.end(), own.begin(), own.end());
        for (const float weight : weights)
          codes.push_back(static_cast<int8_t>(nearest_level(own.data(), levels, weight)));
      }
      std::vector<uint8_t> taken(8 * k);
      if (seed == 2)
        for (size_t i = 0; i < taken.size(); i += 13) taken[i] = 1;
      std::vector<double> objectives;
      refine_rows({.weight = made.weight.data(),
                   .hessian = hessian.data(),
                   .rows = 8,
                   .in_features = k,
                   .levels = levels,
                   .taken = taken.data(),
                   .iterations = 6},
                  table.data(), codes.data(), &objectives);
      // Start, six times codes and levels, rounded levels, codes.
      ASSERT_EQ(objectives.size(), 1u + 12u + 2u);
      for (size_t step = 1; step < objectives.size(); ++step) {
        const bool rounding = step + 2 == objectives.size();  // the one that may cost something
        EXPECT_LE(objectives[step], objectives[step - 1] * (rounding ? 1.01 : 1 + 1e-5)) << "step " << step;
      }
      EXPECT_LT(objectives.back(), 0.8 * objectives.front()) << levels;
      // What was tracked is what a plain product says.
      double plain = 0;
      for (int64_t row = 0; row < 8; ++row) {
        std::vector<double> error(k);
        for (int64_t j = 0; j < k; ++j) {
          if (taken[row * k + j] == 0)
            error[j] = double{table[row * levels + codes[row * k + j]]} - made.weight[row * k + j];
        }
        for (int64_t i = 0; i < k; ++i)
          for (int64_t j = 0; j < k; ++j) plain += error[i] * hessian[i * k + j] * error[j];
      }
      EXPECT_NEAR(objectives.back(), plain, 1e-4 * plain + 1e-9);
    }
  }
}

TEST(Lnq, FindsTheBestCodesOfATinyRow) {
  // Two levels, three columns: small enough to try all codes, each with its least-squares levels.
  const std::vector<float> weight = {1.0f, 0.35f, -0.6f};
  const std::vector<float> hessian = {2, 1.2f, 0.3f, 1.2f, 1.5f, -0.2f, 0.3f, -0.2f, 1};
  std::vector<float> levels = {-0.6f, 0.675f};
  std::vector<int8_t> codes = {1, 1, 0};
  std::vector<double> objectives;
  refine_rows({.weight = weight.data(),
               .hessian = hessian.data(),
               .rows = 1,
               .in_features = 3,
               .levels = 2,
               .iterations = 10},
              levels.data(), codes.data(), &objectives);
  double best = std::numeric_limits<double>::infinity();
  for (int mask = 0; mask < 8; ++mask) {
    for (int a = -400; a <= 400; ++a) {
      for (int b = -400; b <= 400; ++b) {
        double error[3], sum = 0;
        for (int j = 0; j < 3; ++j) error[j] = ((mask >> j & 1) != 0 ? a : b) / 250.0 - weight[j];
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j) sum += error[i] * hessian[i * 3 + j] * error[j];
        best = std::min(best, sum);
      }
    }
  }
  EXPECT_LE(objectives.back(), best * 1.01);
}

TEST(Lnq, BeatsKmeansByOutputError) {
  QuantizerCase made = make_case(24, 128, {.strong_columns = 3});
  made.settings.weight_bits = 3;
  made.settings.sensitivity = "hessian_diagonal";
  ThreadPool pool(2);
  const auto output_error = [&](const char* quantizer) {
    const std::vector<float> dense = dense_of(quantize(made, quantizer));
    return quantization_error(input_of(made), dense.data(), pool).output_relative;
  };
  EXPECT_LT(output_error("lnq"), 0.7 * output_error("kmeans"));
}

TEST(RowVectors, AreTheSameOnEveryPath) {
  const std::vector<float> x = [] {
    std::mt19937 random(6);
    std::normal_distribution<float> normal;
    std::vector<float> made(77);
    for (float& value : made) value = normal(random);
    return made;
  }();
  for (int64_t count = 0; count <= 77; ++count) {
    std::vector<float> chosen(x.rbegin(), x.rend()), plain = chosen;
    add_scaled(0.37f, x.data(), count, chosen.data());
    scalar::add_scaled(0.37f, x.data(), count, plain.data());
    EXPECT_EQ(chosen, plain) << count;
    for (int64_t i = count; i < 77; ++i) ASSERT_EQ(chosen[i], x[76 - i]);
  }
}

}  // namespace
}  // namespace nibble
