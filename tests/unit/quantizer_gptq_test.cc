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
#include "quantizers/hessian_factor.h"

namespace nibble {
namespace {

struct Expected {
  std::vector<double>
      weight;  // [n, k] integer columns: the value when their turn came; outlier columns: at the end
  std::vector<int> codes;           // [n, k], 0 for outlier columns
  std::vector<double> fraction;     // [n, k] distance of weight / scale from the nearest rounding boundary
  std::vector<int64_t> order;       // of processing
  std::vector<bool> unsure;         // [n, k] whether the mask of its group is a close choice
  std::vector<double> late_scales;  // without static groups: [groups, n]
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

// With `sparse`: of every four columns in the order of processing only two survive.
Expected optimal_brain_quantization(const QuantizerCase& made, const QuantizedWeight& result,
                                    bool sparse = false) {
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
  if (settings.asymmetric_calibration) {
    // The weights whose outputs on the quantized model's inputs come closest to the float model's.
    const float* cross = made.statistics.cross.data<float>();
    for (int64_t r = 0; r < n; ++r) {
      std::vector<double> product(static_cast<size_t>(k));
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) product[j] += double(made.weight[r * k + i]) * cross[i * k + j];
      }
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) expected.weight[r * k + j] += product[i] * hinv[i * k + j];
      }
    }
  }

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
  expected.unsure.resize(static_cast<size_t>(n * k));
  std::vector<bool> removed(static_cast<size_t>(k));
  const auto remove = [&](std::vector<double>& matrix, int64_t j, const std::vector<double>& row) {
    for (int64_t a = 0; a < k; ++a) {
      const double factor = matrix[a * k + j] / row[j];
      if (factor == 0) continue;
      for (int64_t b = 0; b < k; ++b) matrix[a * k + b] -= factor * row[b];
    }
  };
  std::vector<bool> pruned(static_cast<size_t>(n * k));
  for (size_t rank = 0; rank < expected.order.size(); ++rank) {
    const int64_t j = expected.order[rank];
    const std::vector<double> row(hinv.begin() + j * k, hinv.begin() + (j + 1) * k);
    if (sparse && rank % 4 == 0) {
      // What each column of the group would cost when its turn comes.
      std::vector<double> rest = hinv, cost;
      std::vector<int64_t> members;
      for (size_t i = rank; i < std::min(rank + 4, expected.order.size()); ++i) {
        const int64_t member = expected.order[i];
        members.push_back(member);
        cost.push_back(rest[member * k + member]);
        const std::vector<double> own(rest.begin() + member * k, rest.begin() + (member + 1) * k);
        remove(rest, member, own);
      }
      for (int64_t r = 0; r < n; ++r) {
        std::vector<std::pair<double, int64_t>> ranked;
        for (size_t i = 0; i < members.size(); ++i) {
          const double w = expected.weight[r * k + members[i]];
          ranked.emplace_back(-w * w / cost[i], members[i]);
        }
        std::stable_sort(ranked.begin(), ranked.end(), [](auto& a, auto& b) { return a.first < b.first; });
        for (size_t i = 2; i < ranked.size(); ++i) pruned[r * k + ranked[i].second] = true;
        // A choice so close that 32 bits may decide otherwise.
        if (ranked.size() > 2 && ranked[2].first < 0.999 * ranked[1].first) {
          for (const int64_t member : members) expected.unsure[r * k + member] = true;
        }
      }
    }
    for (int64_t r = 0; r < n; ++r) {
      double* w = expected.weight.data() + r * k;
      const int64_t group = r * groups + place[j] / group_size;
      const double scale = result.scales[group], zero = result.zeros.empty() ? 0 : result.zeros[group];
      if (!settings.static_groups && place[j] % group_size == 0) {
        double largest = 0;
        for (int64_t i = j; i < std::min(j + group_size, k); ++i)
          largest = std::max(largest, std::fabs(w[i]));
        expected.late_scales.push_back(largest / high);
      }
      const double exact = w[j] / scale;
      const double level = pruned[r * k + j] ? 0 : std::clamp(std::nearbyint(exact), low - zero, high - zero);
      expected.codes[r * k + j] = static_cast<int>(level + zero);
      expected.fraction[r * k + j] =
          expected.unsure[r * k + j] ? 0 : std::fabs(exact - std::floor(exact) - 0.5);
      const double error = (w[j] - level * scale) / row[j];
      for (int64_t c = 0; c < k; ++c) {
        if (c != j && !removed[c]) w[c] -= error * row[c];
      }
    }
    removed[j] = true;
    remove(hinv, j, row);
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
void expect_same(QuantizerCase& made, const std::string& quantizer = "gptq") {
  ThreadPool pool(2);
  const QuantizedWeight result = find_quantizer(quantizer).quantize(input_of(made), pool);
  const Expected expected = optimal_brain_quantization(made, result, quantizer == "sparse_gptq");
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

TEST(Gptq, EqualsItWithZeroPoints) {
  for (const int64_t group_size : {0, 16, 50}) {
    for (const int64_t bits : {2, 4, 8}) {
      SCOPED_TRACE("groups of " + std::to_string(group_size) + ", " + std::to_string(bits) + " bits");
      QuantizerCase made = make_case(12, 97);
      for (float& weight : made.weight) weight += 0.03f;
      made.settings.symmetric = false;
      made.settings.group_size = group_size;
      made.settings.weight_bits = bits;
      made.settings.column_order = "descending";
      made.settings.clip = bits == 4;
      expect_same(made);
    }
  }
}

TEST(Gptq, LateGroupsTakeTheirScaleFromWhatTheirWeightsHaveBecome) {
  for (const int64_t group_size : {1, 16, 48, 200}) {
    for (const int64_t block : {7, 128}) {
      SCOPED_TRACE("groups of " + std::to_string(group_size) + ", blocks of " + std::to_string(block));
      QuantizerCase made = make_case(9, 131);
      made.settings.group_size = group_size;
      made.settings.block_size = block;
      made.settings.column_order = "natural";
      made.settings.static_groups = false;
      expect_same(made);
      ThreadPool pool(2);
      const QuantizedWeight late = find_quantizer("gptq").quantize(input_of(made), pool);
      const Expected expected = optimal_brain_quantization(made, late);
      const int64_t groups = static_cast<int64_t>(late.scales.size()) / 9;
      // The first rounding that 32 and 64 bits see differently moves a row: most must agree closely.
      int64_t close = 0;
      for (int64_t i = 0; i < 9 * groups; ++i) {
        const double want = expected.late_scales[i % groups * 9 + i / groups];
        close += std::fabs(late.scales[i] - want) < 1e-3 * want;
      }
      EXPECT_GE(close, 9 * groups * 3 / 4);
      made.settings.static_groups = true;
      const QuantizedWeight early = find_quantizer("gptq").quantize(input_of(made), pool);
      if (group_size < 131) {
        EXPECT_NE(early.scales, late.scales);
      } else {
        EXPECT_EQ(early.scales, late.scales);
        EXPECT_EQ(early.codes, late.codes);
      }
    }
  }
}

// |w x_float - q x|^2 over the tokens, what asymmetric calibration minimises.
double asymmetric_error(const QuantizerCase& made, const std::vector<float>& q) {
  const int64_t n = made.input.out_features, k = made.input.in_features;
  double total = 0;
  for (size_t t = 0; t < made.x.size() / k; ++t) {
    for (int64_t r = 0; r < n; ++r) {
      double difference = 0;
      for (int64_t j = 0; j < k; ++j) {
        difference += double(made.weight[r * k + j]) * made.x_float[t * k + j] -
                      double(q[r * k + j]) * made.x[t * k + j];
      }
      total += difference * difference;
    }
  }
  return total;
}

TEST(Gptq, AsymmetricCalibrationEqualsPlainLoops) {
  for (const int64_t outliers : {0, 9}) {
    for (const std::string order : {"ascending", "natural", "descending"}) {
      SCOPED_TRACE(order + ", outlier columns " + std::to_string(outliers));
      QuantizerCase made = make_case(15, 70, {.dead_columns = 3, .strong_columns = 4, .drift = 0.2});
      made.settings.asymmetric_calibration = true;
      made.settings.column_order = order;
      made.settings.outlier_columns = outliers;
      made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, 70, false);
      expect_same(made);
    }
  }
}

TEST(Gptq, AsymmetricCalibrationComesCloserToTheFloatModel) {
  ThreadPool pool(2);
  for (const int64_t bits : {2, 3, 4, 8}) {
    for (const int64_t group_size : {0, 32}) {
      QuantizerCase made = make_case(24, 96, {.drift = 0.1});
      made.settings.weight_bits = bits;
      made.settings.group_size = group_size;
      made.settings.column_order = "descending";
      const double plain =
          asymmetric_error(made, dequantize(find_quantizer("gptq").quantize(input_of(made), pool)));
      made.settings.asymmetric_calibration = true;
      const double asymmetric =
          asymmetric_error(made, dequantize(find_quantizer("gptq").quantize(input_of(made), pool)));
      EXPECT_LT(asymmetric, 0.99 * plain) << bits << " bits, groups of " << group_size;
    }
  }
  // Without drift there is nothing to gain, and nothing changes.
  QuantizerCase made = make_case(24, 96, {.drift = 1e-30});
  const QuantizedWeight plain = find_quantizer("gptq").quantize(input_of(made), pool);
  made.settings.asymmetric_calibration = true;
  EXPECT_EQ(find_quantizer("gptq").quantize(input_of(made), pool).codes, plain.codes);
}

// Every choice of codes for a few columns, on the grid that was chosen.
TEST(Gptq, AsymmetricCalibrationIsNearTheBestOfAllCodes) {
  ThreadPool pool(1);
  double total = 0, best_total = 0;
  for (unsigned seed = 1; seed <= 12; ++seed) {
    QuantizerCase made = make_case(4, 5, {.drift = 0.3, .seed = seed});
    made.settings.weight_bits = 2;
    made.settings.damping = 1e-4;
    made.settings.asymmetric_calibration = true;
    const QuantizedWeight result = find_quantizer("gptq").quantize(input_of(made), pool);
    const std::vector<float> chosen = dequantize(result);
    std::vector<float> candidate = chosen;
    for (int64_t r = 0; r < 4; ++r) {
      double best = std::numeric_limits<double>::infinity();
      const auto error_of_row = [&](const std::vector<float>& weights) {
        double sum = 0;
        for (size_t t = 0; t < made.x.size() / 5; ++t) {
          double difference = 0;
          for (int64_t j = 0; j < 5; ++j) {
            difference += double(made.weight[r * 5 + j]) * made.x_float[t * 5 + j] -
                          double(weights[r * 5 + j]) * made.x[t * 5 + j];
          }
          sum += difference * difference;
        }
        return sum;
      };
      for (int code = 0; code < 1024; ++code) {
        for (int64_t j = 0; j < 5; ++j) {
          candidate[r * 5 + j] = result.scales[r] * static_cast<float>((code >> (2 * j) & 3) - 2);
        }
        best = std::min(best, error_of_row(candidate));
      }
      const double got = error_of_row(chosen);
      ASSERT_GE(got, best * (1 - 1e-6));
      total += got;
      best_total += best;
    }
  }
  // Rounding column after column is no search, but it comes close.
  EXPECT_LT(total, 1.6 * best_total);
}

TEST(Gptq, LinearsOfAGroupShareTheFactor) {
  ThreadPool pool(2);
  QuantizerCase made = make_case(20, 90, {.strong_columns = 5, .drift = 0.1});
  QuantizerCase second = make_case(30, 90, {.seed = 2});
  second.statistics = made.statistics;
  FactorCache cache;
  const auto with_cache = [&](QuantizerCase& which) {
    input_of(which);
    which.input.statistics = &made.statistics;
    which.input.factors = &cache;
    const QuantizedWeight shared = find_quantizer("gptq").quantize(which.input, pool);
    which.input.factors = nullptr;
    const QuantizedWeight alone = find_quantizer("gptq").quantize(which.input, pool);
    EXPECT_EQ(shared.codes, alone.codes);
    EXPECT_EQ(shared.scales, alone.scales);
    EXPECT_EQ(shared.outlier_weights, alone.outlier_weights);
  };
  with_cache(made);
  with_cache(second);
  EXPECT_EQ(cache.computed(), 1);
  // Bits, groups and clipping leave it alone; whatever it depends on does not.
  second.settings.weight_bits = 8;
  second.settings.group_size = 16;
  second.settings.clip = true;
  with_cache(second);
  EXPECT_EQ(cache.computed(), 1);
  second.settings.damping = 0.02;
  with_cache(second);
  EXPECT_EQ(cache.computed(), 2);
  second.settings.column_order = "descending";
  with_cache(second);
  EXPECT_EQ(cache.computed(), 3);
  second.settings.asymmetric_calibration = true;
  with_cache(second);
  EXPECT_EQ(cache.computed(), 4);
  second.settings.group_size = 0;
  second.input.outlier_columns = {3, 50};
  with_cache(second);
  EXPECT_EQ(cache.computed(), 5);
  with_cache(second);
  EXPECT_EQ(cache.computed(), 5);
}

TEST(SparseGptq, EqualsPlainLoops) {
  for (const int64_t k : {1, 2, 3, 4, 7, 64, 90, 131}) {
    for (const int64_t block : {1, 6, 128}) {
      for (const int64_t outliers : {0, 9}) {
        if (outliers > k / 2) continue;
        SCOPED_TRACE(std::to_string(k) + " columns, blocks of " + std::to_string(block) +
                     ", outlier columns " + std::to_string(outliers));
        QuantizerCase made = make_case(12, k, {.strong_columns = std::min<int64_t>(k / 4, 6)});
        made.settings.block_size = block;
        made.settings.outlier_columns = outliers;
        made.settings.clip = true;
        made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, k, false);
        expect_same(made, "sparse_gptq");
      }
    }
  }
}

TEST(SparseGptq, KeepsTwoOfFourInTheOrderOfTheMask) {
  ThreadPool pool(2);
  for (const int64_t bits : {4, 8}) {
    for (const int64_t k : {96, 97, 98, 99}) {
      QuantizerCase made = make_case(30, k, {.dead_columns = 2, .strong_columns = 4});
      made.settings.weight_bits = bits;
      made.settings.outlier_columns = 8;
      made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, k, false);
      const QuantizedWeight result = find_quantizer("sparse_gptq").quantize(input_of(made), pool);
      const int64_t integers = k - 8;
      ASSERT_EQ(result.mask_order.size(), static_cast<size_t>(integers));
      std::vector<int64_t> place(static_cast<size_t>(k), -1);
      int64_t count = 0;
      size_t outlier = 0;
      for (int64_t j = 0; j < k; ++j) {
        if (outlier < 8 && made.input.outlier_columns[outlier] == j) {
          ++outlier;
        } else {
          place[j] = count++;
        }
      }
      for (size_t i = 1; i < result.mask_order.size(); ++i) {  // ascending by the largest activation
        EXPECT_LE(made.statistics.max_abs[result.mask_order[i - 1]],
                  made.statistics.max_abs[result.mask_order[i]]);
      }
      int64_t kept = 0;
      for (int64_t r = 0; r < 30; ++r) {
        for (int64_t first = 0; first < integers; first += 4) {
          int in_group = 0;
          for (int64_t i = first; i < std::min(first + 4, integers); ++i) {
            ASSERT_GE(place[result.mask_order[i]], 0);
            in_group += result.codes[r * integers + place[result.mask_order[i]]] != 0;
          }
          ASSERT_LE(in_group, 2);
          kept += in_group;
        }
      }
      EXPECT_GT(kept, 30 * integers * 4 / 10);  // survivors are not lost to rounding
    }
  }
}

TEST(SparseGptq, LosesLessThanPruningByMagnitude) {
  ThreadPool pool(2);
  QuantizerCase made = make_case(64, 192, {.strong_columns = 4});
  made.settings.weight_bits = 8;
  made.settings.outlier_columns = 16;
  made.input.outlier_columns = select_outlier_columns(made.statistics, made.settings, 192, false);
  const QuantizedWeight result = find_quantizer("sparse_gptq").quantize(input_of(made), pool);
  std::vector<float> magnitude = made.weight;
  for (int64_t r = 0; r < 64; ++r) {
    for (size_t first = 0; first < result.mask_order.size(); first += 4) {
      std::vector<int32_t> group(result.mask_order.begin() + static_cast<int64_t>(first),
                                 result.mask_order.begin() + static_cast<int64_t>(first) + 4);
      std::sort(group.begin(), group.end(), [&](int32_t a, int32_t b) {
        return std::fabs(made.weight[r * 192 + a]) > std::fabs(made.weight[r * 192 + b]);
      });
      for (int i : {2, 3}) magnitude[r * 192 + group[i]] = 0;
    }
  }
  EXPECT_LT(squared_output_error(made, dequantize(result)), 0.7 * squared_output_error(made, magnitude));
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
