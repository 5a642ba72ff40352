// GPTQ against an implementation that shares nothing with it: plain loops in double precision that hold the
// whole inverse Hessian and remove every rounded column from it (Optimal Brain Quantization), without a
// Cholesky factor or blocks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "quantizer_cases.h"

namespace nibble {
namespace {

struct Expected {
  std::vector<double>
      weight;  // [n, k] integer columns: the value when their turn came; outlier columns: at the end
  std::vector<int> codes;        // [n, k], 0 for outlier columns
  std::vector<double> fraction;  // [n, k] distance of weight / scale from the nearest rounding boundary
  std::vector<int64_t> order;    // of processing
};

std::vector<double> inverse(std::vector<double> a, int64_t k) {
  std::vector<double> b(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) b[i * k + i] = 1;
  for (int64_t pivot = 0; pivot < k; ++pivot) {
    const double scale = 1 / a[pivot * k + pivot];
    for (int64_t j = 0; j < k; ++j) {
      a[pivot * k + j] *= scale;
      b[pivot * k + j] *= scale;
    }
    for (int64_t row = 0; row < k; ++row) {
      const double factor = a[row * k + pivot];
      if (row == pivot || factor == 0) continue;
      for (int64_t j = 0; j < k; ++j) {
        a[row * k + j] -= factor * a[pivot * k + j];
        b[row * k + j] -= factor * b[pivot * k + j];
      }
    }
  }
  return b;
}

Expected optimal_brain_quantization(const QuantizerCase& made, const QuantizedWeight& result) {
  const int64_t n = made.input.out_features, k = made.input.in_features;
  const LinearSettings& settings = made.settings;
  const float* hessian = made.statistics.hessian.data<float>();
  std::vector<bool> is_outlier(static_cast<size_t>(k));
  for (const int32_t column : made.input.outlier_columns) is_outlier[column] = true;
  std::vector<int64_t> place(static_cast<size_t>(k));  // among the integer columns
  int64_t integers = 0;
  for (int64_t j = 0; j < k; ++j) place[j] = is_outlier[j] ? -1 : integers++;

  std::vector<double> h(static_cast<size_t>(k * k));
  double mean = 0;
  int64_t alive = 0;
  for (int64_t i = 0; i < k * k; ++i) h[i] = hessian[i];
  for (int64_t i = 0; i < k; ++i) {
    mean += h[i * k + i];
    alive += h[i * k + i] > 0;
  }
  mean /= static_cast<double>(std::max<int64_t>(alive, 1));
  Expected expected;
  expected.weight.assign(made.weight.begin(), made.weight.end());
  for (int64_t j = 0; j < k; ++j) {
    if (h[j * k + j] == 0) {
      h[j * k + j] = 1;
      for (int64_t row = 0; row < n && !is_outlier[j]; ++row) expected.weight[row * k + j] = 0;
    }
    h[j * k + j] += settings.damping * (alive > 0 ? mean : 1);
  }
  std::vector<double> hinv = inverse(h, k);

  expected.order.resize(static_cast<size_t>(k));
  std::iota(expected.order.begin(), expected.order.end(), 0);
  std::erase_if(expected.order, [&](int64_t j) { return is_outlier[j]; });
  const auto key = [&](int64_t j) -> double {
    if (settings.column_order == "ascending") return made.statistics.max_abs[j];
    if (settings.column_order == "descending") return -double(hessian[j * k + j]);
    return double(j);
  };
  std::stable_sort(expected.order.begin(), expected.order.end(),
                   [&](int64_t a, int64_t b) { return key(a) < key(b); });

  const double high = (1 << (settings.weight_bits - 1)) - 1, low = -high - 1;
  const int64_t group_size = settings.group_size > 0 ? settings.group_size : integers;
  const int64_t groups = (integers + group_size - 1) / group_size;
  expected.codes.resize(static_cast<size_t>(n * k));
  expected.fraction.assign(static_cast<size_t>(n * k), 1);
  std::vector<bool> removed(static_cast<size_t>(k));
  for (const int64_t j : expected.order) {
    const std::vector<double> row(hinv.begin() + j * k, hinv.begin() + (j + 1) * k);
    for (int64_t r = 0; r < n; ++r) {
      double* w = expected.weight.data() + r * k;
      const double scale = result.scales[r * groups + place[j] / group_size];
      const double exact = w[j] / scale;
      const double code = std::clamp(std::nearbyint(exact), low, high);
      expected.codes[r * k + j] = static_cast<int>(code);
      expected.fraction[r * k + j] = std::fabs(exact - std::floor(exact) - 0.5);
      const double error = (w[j] - code * scale) / row[j];
      for (int64_t c = 0; c < k; ++c) {
        if (c != j && !removed[c]) w[c] -= error * row[c];
      }
    }
    removed[j] = true;
    for (int64_t a = 0; a < k; ++a) {
      const double factor = hinv[a * k + j] / row[j];
      if (factor == 0) continue;
      for (int64_t b = 0; b < k; ++b) hinv[a * k + b] -= factor * row[b];
    }
  }
  return expected;
}

double squared_output_error(const QuantizerCase& made, const std::vector<float>& approximation) {
  const int64_t n = made.input.out_features, k = made.input.in_features;
  const float* hessian = made.statistics.hessian.data<float>();
  double total = 0;
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = 0; i < k; ++i) {
      const double di = double(made.weight[r * k + i]) - approximation[r * k + i];
      for (int64_t j = 0; j < k; ++j) {
        total += di * hessian[i * k + j] * (double(made.weight[r * k + j]) - approximation[r * k + j]);
      }
    }
  }
  return total;
}

// Codes are equal until, in some row, a value so close to a rounding boundary that 32 and 64 bits disagree;
// after that the row goes its own way. Such rows must be rare.
void expect_same(QuantizerCase& made) {
  ThreadPool pool(2);
  const QuantizedWeight result = find_quantizer("gptq").quantize(input_of(made), pool);
  const Expected expected = optimal_brain_quantization(made, result);
  const int64_t n = made.input.out_features, k = made.input.in_features;
  const int64_t outliers = static_cast<int64_t>(made.input.outlier_columns.size());
  ASSERT_EQ(result.codes.size(), static_cast<size_t>(n * (k - outliers)));
  std::vector<int64_t> place(static_cast<size_t>(k));
  int64_t integers = 0, outlier = 0;
  for (int64_t j = 0; j < k; ++j) {
    const bool out = outlier < outliers && made.input.outlier_columns[outlier] == j;
    place[j] = out ? outlier++ : integers++;
  }
  int64_t strayed = 0;
  for (int64_t r = 0; r < n; ++r) {
    bool same = true;
    for (const int64_t j : expected.order) {
      const int got = result.codes[r * integers + place[j]];
      if (got == expected.codes[r * k + j]) continue;
      ASSERT_LT(expected.fraction[r * k + j], 2e-3) << "row " << r << ", column " << j << ": code " << got
                                                    << " instead of " << expected.codes[r * k + j];
      same = false;
      break;
    }
    strayed += !same;
    for (int64_t o = 0; same && o < outliers; ++o) {
      const double want = expected.weight[r * k + made.input.outlier_columns[o]];
      ASSERT_NEAR(result.outlier_weights[r * outliers + o], want, 1e-3 * (std::fabs(want) + 0.05))
          << "row " << r;
    }
  }
  EXPECT_LE(strayed, n / 4);
}

TEST(Gptq, EqualsOptimalBrainQuantization) {
  const struct {
    int64_t n, k;
  } kShapes[] = {{1, 1}, {3, 1}, {1, 2}, {1, 40}, {5, 33}, {20, 128}, {33, 129}, {40, 200}, {17, 300}};
  for (const auto& shape : kShapes) {
    SCOPED_TRACE(std::to_string(shape.n) + " x " + std::to_string(shape.k));
    QuantizerCase made = make_case(shape.n, shape.k);
    expect_same(made);
  }
}

TEST(Gptq, EqualsItInEveryColumnOrderWidthAndBlockSize) {
  for (const std::string order : {"ascending", "natural", "descending"}) {
    for (const int64_t bits : {2, 3, 4, 8}) {
      for (const int64_t block : {1, 24, 128, 1000}) {
        SCOPED_TRACE(order + ", " + std::to_string(bits) + " bits, blocks of " + std::to_string(block));
        QuantizerCase made = make_case(12, 90);
        made.settings.column_order = order;
        made.settings.weight_bits = bits;
        made.settings.block_size = block;
        expect_same(made);
      }
    }
  }
}

TEST(Gptq, EqualsItWithOutlierColumns) {
  for (const int64_t outliers : {1, 7, 32, 70}) {
    for (const std::string order : {"ascending", "natural", "descending"}) {
      SCOPED_TRACE(order + ", " + std::to_string(outliers) + " outlier columns");
      QuantizerCase made = make_case(21, 141, {.strong_columns = 9});
      made.settings.column_order = order;
      made.settings.outlier_columns = outliers;
      made.settings.clip = true;
      made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, 141, false);
      ASSERT_EQ(made.input.outlier_columns.size(), static_cast<size_t>(outliers));
      expect_same(made);
    }
  }
}

TEST(Gptq, EqualsItWithGroups) {
  for (const int64_t group_size : {1, 16, 50, 128, 500}) {
    for (const int64_t outliers : {0, 5}) {
      SCOPED_TRACE("groups of " + std::to_string(group_size) + ", outlier columns " +
                   std::to_string(outliers));
      QuantizerCase made = make_case(10, 131);
      made.settings.group_size = group_size;
      made.settings.outlier_columns = outliers;
      made.settings.column_order = "descending";
      made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, 131, false);
      expect_same(made);
    }
  }
}

TEST(Gptq, EqualsItWithDeadColumnsWhichBecomeZero) {
  QuantizerCase made = make_case(14, 96, {.dead_columns = 11});
  made.settings.outlier_columns = 8;
  made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, 96, false);
  expect_same(made);
  ThreadPool pool(1);
  const std::vector<float> weight = dequantize(find_quantizer("gptq").quantize(input_of(made), pool));
  int64_t dead = 0;
  for (int64_t j = 0; j < 96; ++j) {
    if (made.statistics.max_abs[j] > 0) continue;
    ++dead;
    for (int64_t r = 0; r < 14; ++r) EXPECT_EQ(weight[r * 96 + j], 0.0f);
  }
  EXPECT_EQ(dead, 11);
}

TEST(Gptq, LosesLessThanRounding) {
  ThreadPool pool(2);
  const struct {
    int64_t outliers;
    const char* order;
    double share;  // of the loss of rounding, at most
  } kRows[] = {{16, "ascending", 0.8}, {0, "descending", 0.6}, {0, "natural", 1.0}, {0, "ascending", 1.0}};
  for (const auto& row : kRows) {
    for (const int64_t bits : {3, 4, 8}) {
      QuantizerCase made = make_case(64, 192, {.strong_columns = 4});
      made.settings.weight_bits = bits;
      made.settings.column_order = row.order;
      made.settings.outlier_columns = row.outliers;
      made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, 192, false);
      const auto loss = [&](const char* quantizer) {
        return squared_output_error(made,
                                    dequantize(find_quantizer(quantizer).quantize(input_of(made), pool)));
      };
      const double gptq = loss("gptq"), rtn = loss("rtn");
      EXPECT_LT(gptq, row.share * rtn)
          << bits << " bits, " << row.outliers << " outlier columns, " << row.order;
    }
  }
}

TEST(Gptq, OutlierColumnsTakeUpTheError) {
  QuantizerCase made = make_case(40, 128, {.strong_columns = 12});
  made.settings.outlier_columns = 12;
  made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, 128, false);
  ThreadPool pool(1);
  const QuantizedWeight result = find_quantizer("gptq").quantize(input_of(made), pool);
  std::vector<float> weight = dequantize(result);
  const double moved = squared_output_error(made, weight);
  for (int64_t r = 0; r < 40; ++r) {
    for (const int32_t j : made.input.outlier_columns) weight[r * 128 + j] = made.weight[r * 128 + j];
  }
  EXPECT_LT(moved, 0.9 * squared_output_error(made, weight));
}

TEST(Gptq, SameBitsForAnyThreadCount) {
  for (const int64_t n : {1, 30, 300}) {
    QuantizerCase made = make_case(n, 333, {.tokens = 400, .dead_columns = 3, .strong_columns = 6});
    made.settings.outlier_columns = 20;
    made.settings.clip = true;
    made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, 333, false);
    ThreadPool one(1);
    const QuantizedWeight reference = find_quantizer("gptq").quantize(input_of(made), one);
    for (const int threads : {2, 4}) {
      ThreadPool pool(threads);
      const QuantizedWeight result = find_quantizer("gptq").quantize(input_of(made), pool);
      EXPECT_EQ(reference.codes, result.codes) << n << " rows, " << threads << " threads";
      EXPECT_EQ(reference.scales, result.scales);
      EXPECT_EQ(reference.outlier_weights, result.outlier_weights);
    }
  }
}

TEST(Gptq, SurvivesFewerTokensThanColumns) {
  QuantizerCase made = make_case(8, 150, {.tokens = 10});
  expect_same(made);
}

TEST(Gptq, RaisesTheDampingOfASingularHessianAndSaysWhenItCannot) {
  ThreadPool pool(2);
  QuantizerCase made = make_case(8, 150, {.tokens = 10});
  made.settings.damping = 0;
  const QuantizedWeight result = find_quantizer("gptq").quantize(input_of(made), pool);
  EXPECT_EQ(result.codes.size(), size_t{8 * 150});

  // Indefinite far beyond any damping: off-diagonal sums larger than the diagonal allows.
  QuantizerCase broken = make_case(8, 40);
  float* hessian = broken.statistics.hessian.mutable_data<float>();
  for (int64_t i = 0; i < 40 * 40; ++i) hessian[i] = i % 41 == 0 ? 1.0f : 10.0f;
  try {
    find_quantizer("gptq").quantize(input_of(broken), pool);
    FAIL() << "accepted an indefinite Hessian";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("layers.7.test"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("positive definite"), std::string::npos) << error.what();
  }
}

TEST(Gptq, NamesTheLayerForHessiansThatAreNotFinite) {
  ThreadPool pool(2);
  for (const int64_t place : {0, 41 * 12, 41 * 12 + 1, 1599}) {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      QuantizerCase made = make_case(8, 40);
      float* hessian = made.statistics.hessian.mutable_data<float>();
      hessian[place] = bad;
      hessian[place % 40 * 40 + place / 40] = bad;
      try {
        find_quantizer("gptq").quantize(input_of(made), pool);
        FAIL() << "accepted " << bad << " at " << place;
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("layers.7.test"), std::string::npos) << error.what();
      }
    }
  }
}

TEST(Gptq, StopsAtWeightsThatOverflow) {
  ThreadPool pool(2);
  QuantizerCase made = make_case(40, 100);
  made.settings.group_size = 10;
  // The largest floats: the error of one column overflows when its neighbours take it up.
  for (int64_t j = 0; j < 100; ++j) made.weight[33 * 100 + j] = j % 2 ? 3.4e38f : -3.4e38f;
  for (int64_t j = 0; j < 100; j += 3) made.weight[33 * 100 + j] = 1e38f;
  try {
    find_quantizer("gptq").quantize(input_of(made), pool);
    FAIL() << "accepted overflowing weights";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("layers.7.test"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("row 33"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace nibble
