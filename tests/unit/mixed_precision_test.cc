// The quantizer of 2-, 4- and 16-bit weights: its rounding against plain loops in double precision that hold
// the whole inverse Hessian, what it chooses, and awkward weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/half.h"
#include "formats/format.h"
#include "quantizer_cases.h"
#include "quantizers/mixed_grid.h"

namespace nibble {

extern const LinearFormat kMixed2416Format;

namespace {

const Quantizer& quantizer() { return find_quantizer("mixed_precision"); }

LinearSettings mixed_settings(double sparse_percent = 0, bool search = false) {
  LinearSettings settings;
  settings.quantizer = "mixed_precision";
  settings.format = "mixed_2_4_16";
  settings.weight_bits = 2;
  settings.activation_bits = 16;
  settings.column_order = "natural";
  settings.sparse_percent = sparse_percent;
  settings.clip = search;
  return settings;
}

QuantizerCase mixed_case(int64_t n, int64_t k, double sparse_percent = 0, const CaseOptions& options = {}) {
  QuantizerCase made = make_case(n, k, options);
  made.settings = mixed_settings(sparse_percent);
  return made;
}

QuantizedWeight quantize(QuantizerCase& made, int threads = 2) {
  ThreadPool pool(threads);
  return quantizer().quantize(input_of(made), pool);
}

int64_t groups_of(const QuantizedWeight& weight) { return (weight.in_features + 15) / 16; }

// By the definition in quantized_weight.h, in double precision.
std::vector<double> plain_weight(const QuantizedWeight& weight) {
  const int64_t n = weight.out_features, k = weight.in_features;
  std::vector<double> plain(static_cast<size_t>(n * k));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t group = row * groups_of(weight) + j / 16;
      plain[row * k + j] =
          double{weight.scales[group]} * (weight.codes[row * k + j] - double{weight.zeros[group]});
    }
    for (int64_t i = weight.sparse.empty() ? 0 : weight.sparse.row_offsets[row];
         !weight.sparse.empty() && i < weight.sparse.row_offsets[row + 1]; ++i) {
      plain[row * k + weight.sparse.columns[i]] += weight.sparse.values[i];
    }
  }
  return plain;
}

// Packing takes it as it is, and what is read back is what the quantizer said.
void expect_packs(const QuantizedWeight& weight) {
  const PackedLinear packed = kMixed2416Format.pack(weight, "layer");
  ASSERT_NO_THROW(kMixed2416Format.validate(packed));
  std::vector<float> read(weight.codes.size());
  kMixed2416Format.dequantize(packed, read.data());
  const std::vector<double> plain = plain_weight(weight);
  for (size_t i = 0; i < read.size(); ++i) ASSERT_EQ(read[i], static_cast<float>(plain[i])) << "weight " << i;
}

double output_error(const QuantizerCase& made, const QuantizedWeight& weight) {
  const std::vector<double> plain = plain_weight(weight);
  const float* hessian = made.statistics.hessian.data<float>();
  const int64_t n = weight.out_features, k = weight.in_features;
  double total = 0;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        total += (made.weight[row * k + i] - plain[row * k + i]) * hessian[i * k + j] *
                 (made.weight[row * k + j] - plain[row * k + j]);
      }
    }
  }
  return total;
}

std::vector<double> inverse(std::vector<double> a, int64_t k) {
  std::vector<double> b(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) b[i * k + i] = 1;
  for (int64_t pivot = 0; pivot < k; ++pivot) {
    const double scale = 1 / a[pivot * k + pivot];
    for (int64_t j = 0; j < k; ++j) a[pivot * k + j] *= scale, b[pivot * k + j] *= scale;
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

std::vector<double> damped_hessian(const QuantizerCase& made) {
  const int64_t k = made.input.in_features;
  const float* hessian = made.statistics.hessian.data<float>();
  std::vector<double> h(hessian, hessian + k * k);
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += h[i * k + i] / static_cast<double>(k);
  for (int64_t i = 0; i < k; ++i) h[i * k + i] += made.settings.damping * mean;
  return h;
}

// Optimal Brain Quantization over the columns in the documented order, with the grids that the result states.
TEST(MixedPrecision, RoundsAsPlainLoopsDo) {
  for (const auto& [n, k, percent] : {std::tuple{20, 150, 0.0}, {33, 208, 2.0}, {5, 40, 1.0}}) {
    SCOPED_TRACE(testing::Message() << n << " x " << k);
    QuantizerCase made = mixed_case(n, k, percent);
    const QuantizedWeight result = quantize(made);
    expect_packs(result);
    const float* hessian = made.statistics.hessian.data<float>();
    // 2-bit groups by place, then 4-bit ones; within a group from the largest diagonal on.
    std::vector<int64_t> order;
    for (const bool wide : {false, true}) {
      for (size_t place = 0; place < result.mixed.order.size(); ++place) {
        if ((place % 4 == 3) != wide) continue;
        const size_t begin = order.size();
        for (int64_t j = result.mixed.order[place] * 16;
             j < std::min<int64_t>(k, result.mixed.order[place] * 16 + 16); ++j) {
          order.push_back(j);
        }
        std::sort(order.begin() + static_cast<int64_t>(begin), order.end(),
                  [&](int64_t a, int64_t b) { return hessian[a * k + a] > hessian[b * k + b]; });
      }
    }
    ASSERT_EQ(order.size(), static_cast<size_t>(k));
    std::set<std::pair<int64_t, int64_t>> kept;
    for (int64_t row = 0; row < n && !result.sparse.empty(); ++row) {
      for (int64_t i = result.sparse.row_offsets[row]; i < result.sparse.row_offsets[row + 1]; ++i) {
        kept.emplace(row, result.sparse.columns[i]);
      }
    }
    std::set<int64_t> wide_groups;
    for (size_t place = 3; place < result.mixed.order.size(); place += 4)
      wide_groups.insert(result.mixed.order[place]);

    std::vector<double> w(made.weight.begin(), made.weight.end()), hinv = inverse(damped_hessian(made), k);
    std::vector<bool> removed(static_cast<size_t>(k));
    int64_t compared = 0, different = 0;
    for (const int64_t j : order) {
      const std::vector<double> column(hinv.begin() + j * k, hinv.begin() + (j + 1) * k);
      for (int64_t row = 0; row < n; ++row) {
        const double scale = result.scales[row * groups_of(result) + j / 16];
        const double zero = result.zeros[row * groups_of(result) + j / 16];
        const double highest = wide_groups.count(j / 16) ? 15 : 3;
        const double exact = w[row * k + j] / scale + zero;
        const double code = std::clamp(std::nearbyint(exact), 0.0, highest);
        ++compared;
        if (code != result.codes[row * k + j]) {
          // Only where the value lies between two codes, within the rounding of FP32.
          ++different;
          EXPECT_NEAR(std::fabs(exact - std::floor(exact) - 0.5), 0, 2e-3)
              << "row " << row << ", column " << j;
        }
        const double rounded = (result.codes[row * k + j] - zero) * scale;
        // Weights of the sparse part are kept, but for F16.
        double error = w[row * k + j] - rounded;
        if (kept.count({row, j})) error -= f16_to_float(float_to_f16(static_cast<float>(error)));
        for (int64_t c = 0; c < k; ++c) {
          if (c != j && !removed[c]) w[row * k + c] -= error / column[j] * column[c];
        }
      }
      removed[j] = true;
      const double pivot = column[j];
      for (int64_t a = 0; a < k; ++a) {
        const double factor = hinv[a * k + j] / pivot;
        for (int64_t b = 0; b < k; ++b) hinv[a * k + b] -= factor * column[b];
      }
    }
    EXPECT_LE(different * 200, compared);
  }
}

TEST(MixedPrecision, QuarterOfTheGroupsHasFourBits) {
  // 320 columns: 20 groups, 5 of 4 bits. Strong columns stand in groups 0, 2, 4, ...: they must get them.
  QuantizerCase made = mixed_case(24, 320);
  for (int64_t row = 0; row < 24; ++row) {
    for (const int64_t group : {1, 4, 11, 12, 19}) {
      for (int64_t i = 0; i < 16; ++i) made.weight[row * 320 + group * 16 + i] *= 20;
    }
  }
  for (const char* ranking : {"sensitivity", "range", "loss"}) {
    made.settings.group_ranking = ranking;
    const QuantizedWeight result = quantize(made);
    std::set<int32_t> wide;
    for (size_t place = 3; place < result.mixed.order.size(); place += 4)
      wide.insert(result.mixed.order[place]);
    EXPECT_EQ(wide, (std::set<int32_t>{1, 4, 11, 12, 19})) << ranking;
  }
}

TEST(MixedPrecision, SparsePartHasTheShareAskedFor) {
  QuantizerCase made = mixed_case(40, 256, 0.5);
  // One weight far beyond its row's others, in the group that matters least.
  ThreadPool pool(1);
  const QuantizedWeight before = quantize(made);
  const int64_t column = before.mixed.order[0] * 16 + 5;
  made.weight[7 * 256 + column] = 0.6f;
  const QuantizedWeight result = quantize(made);
  expect_packs(result);
  EXPECT_EQ(result.sparse.columns.size(), 51u);  // 0.5 % of 40 * 256
  std::set<int64_t> wide;
  for (size_t place = 3; place < result.mixed.order.size(); place += 4)
    wide.insert(result.mixed.order[place]);
  bool found = wide.count(column / 16) > 0;
  for (int64_t row = 0; row < 40; ++row) {
    for (int64_t i = result.sparse.row_offsets[row]; i < result.sparse.row_offsets[row + 1]; ++i) {
      EXPECT_EQ(wide.count(result.sparse.columns[i] / 16), 0u) << "4-bit groups need none";
      found = found || (row == 7 && result.sparse.columns[i] == column);
    }
  }
  EXPECT_TRUE(found);
  QuantizerCase without = made;
  without.settings.sparse_percent = 0;
  EXPECT_LT(output_error(made, result), output_error(without, quantize(without)));
}

TEST(MixedPrecision, SearchLowersTheError) {
  QuantizerCase made = mixed_case(64, 256);
  const double plain = output_error(made, quantize(made));
  made.settings.clip = true;
  const QuantizedWeight searched = quantize(made);
  expect_packs(searched);
  EXPECT_LT(output_error(made, searched), 0.9 * plain);
}

TEST(MixedPrecision, SameBitsForAnyNumberOfThreads) {
  for (const bool search : {false, true}) {
    QuantizerCase made = mixed_case(150, 200, 1.0);
    made.settings.clip = search;
    const QuantizedWeight one = quantize(made, 1), four = quantize(made, 4);
    EXPECT_EQ(one.codes, four.codes);
    EXPECT_EQ(one.scales, four.scales);
    EXPECT_EQ(one.zeros, four.zeros);
    EXPECT_EQ(one.mixed.order, four.mixed.order);
    EXPECT_EQ(one.mixed.scale_codes, four.mixed.scale_codes);
    EXPECT_EQ(one.mixed.second_scales, four.mixed.second_scales);
    EXPECT_EQ(one.sparse.columns, four.sparse.columns);
    EXPECT_EQ(one.sparse.values, four.sparse.values);
  }
}

TEST(MixedPrecision, AwkwardSizesAndWeights) {
  for (const auto& [n, k] : {std::pair{1, 1}, {3, 7}, {17, 16}, {15, 63}, {16, 65}, {2, 136}, {40, 600}}) {
    for (const bool search : {false, true}) {
      SCOPED_TRACE(testing::Message() << n << " x " << k << " search " << search);
      QuantizerCase made = mixed_case(n, k, 1.0, {.dead_columns = k > 8 ? 3 : 0});
      made.settings.clip = search;
      expect_packs(quantize(made));
    }
  }
  for (const bool search : {false, true}) {
    QuantizerCase made = mixed_case(20, 128, 0.5);
    made.settings.clip = search;
    for (int64_t j = 0; j < 128; ++j) {
      made.weight[0 * 128 + j] = 0;      // a row of zeros
      made.weight[1 * 128 + j] = 0.25f;  // constant rows
      made.weight[2 * 128 + j] = -0.25f;
      made.weight[3 * 128 + j] *= 1e-7f;  // far below F16's numbers
      if (j < 16) {
        for (int64_t row = 0; row < 20; ++row) made.weight[row * 128 + j] = 0;  // a group of zeros
      }
    }
    const QuantizedWeight result = quantize(made);
    expect_packs(result);
    for (const float scale : result.scales) EXPECT_GT(scale, 0.0f);
    const std::vector<double> plain = plain_weight(result);
    for (int64_t j = 0; j < 128; ++j) EXPECT_EQ(plain[j], 0.0);

    std::fill(made.weight.begin(), made.weight.end(), 0.0f);
    const QuantizedWeight zeros = quantize(made);
    expect_packs(zeros);
    for (const double value : plain_weight(zeros)) EXPECT_EQ(value, 0.0);
  }
}

// Columns that no token reached become zero and do not disturb the others.
TEST(MixedPrecision, DeadColumnsAreZero) {
  QuantizerCase made = mixed_case(18, 96, 1.0, {.dead_columns = 4});
  const QuantizedWeight result = quantize(made);
  const std::vector<double> plain = plain_weight(result);
  const float* hessian = made.statistics.hessian.data<float>();
  int dead = 0;
  for (int64_t j = 0; j < 96; ++j) {
    if (hessian[j * 96 + j] != 0) continue;
    ++dead;
    for (int64_t row = 0; row < 18; ++row) EXPECT_EQ(plain[row * 96 + j], 0.0);
  }
  EXPECT_EQ(dead, 4);
}

// Fewer tokens than columns: the Hessian is singular, and damping carries the factor.
TEST(MixedPrecision, SingularHessian) {
  QuantizerCase made = mixed_case(20, 128, 0.5, {.tokens = 9});
  expect_packs(quantize(made));
  made.settings.damping = 0;
  expect_packs(quantize(made));
}

TEST(MixedPrecision, RefusesWhatCannotWork) {
  const auto refused = [](const std::function<void(QuantizerCase&)>& change, const std::string& part) {
    QuantizerCase made = mixed_case(4, 64);
    change(made);
    try {
      quantize(made);
      FAIL() << "expected: " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("layers.7.test"), std::string::npos) << error.what();
    }
  };
  refused([](QuantizerCase& made) { made.weight[64 + 3] = std::numeric_limits<float>::quiet_NaN(); },
          "row 1, column 3 is nan");
  refused([](QuantizerCase& made) { made.weight[7] = 1e6f; }, "row 0, column 7 is 1");
  refused([](QuantizerCase& made) { made.input.outlier_columns = {1, 2}; }, "not 2 whole columns");
  refused([](QuantizerCase& made) { made.statistics.hessian.mutable_data<float>()[65] = -1; }, "at column 1");
}

TEST(MixedPrecision, SampleIsAsLargeAsTheResult) {
  QuantizerCase made = mixed_case(32, 320, 0.5);
  const PackedLinear real = kMixed2416Format.pack(quantize(made), "layer");
  const PackedLinear sample = kMixed2416Format.pack(quantizer().sample(made.settings, 32, 320, {}), "layer");
  ASSERT_NO_THROW(kMixed2416Format.validate(sample));
  EXPECT_EQ(sample.weight_bytes(), real.weight_bytes());
}

// Every scale the second order offers is used where it is nearest: rows whose spans are (z2 + c) * s2 exactly
// come back exactly.
TEST(MixedGrid, SecondOrderHoldsScalesOnItsGrid) {
  for (const int limit : {7, 15}) {
    GroupTile tile;
    for (int r = 0; r < kTileRows; ++r) {
      const float scale = static_cast<float>(5 + r % (limit + 1)) * 0x1p-6f;
      for (int j = 0; j < kGroupColumns; ++j) {
        tile.weight[j][r] = static_cast<float>(j % 4 - 1) * scale;
        tile.importance[j][r] = 1;
      }
    }
    for (const bool search : {false, true}) {
      const NarrowGrid grid = choose_narrow_grid(tile, limit, search);
      for (int r = 0; r < kTileRows; ++r) {
        EXPECT_EQ(grid.scale[r], static_cast<float>(5 + r % (limit + 1)) * 0x1p-6f) << limit << ", row " << r;
        EXPECT_EQ(grid.zero[r], 1.0f);
      }
    }
  }
}

TEST(MixedGrid, CodesAreNearestAndClamped) {
  EXPECT_EQ(grid_code(0.0f, 1.0f, 2.0f, 3.0f), 2.0f);
  EXPECT_EQ(grid_code(1.4f, 1.0f, 1.0f, 3.0f), 2.0f);
  EXPECT_EQ(grid_code(1.5f, 1.0f, 1.0f, 3.0f), 3.0f);
  EXPECT_EQ(grid_code(0.5f, 1.0f, 1.0f, 3.0f), 1.0f);  // ties to even
  EXPECT_EQ(grid_code(1e30f, 1.0f, 1.0f, 3.0f), 3.0f);
  EXPECT_EQ(grid_code(-1e30f, 1.0f, 7.0f, 15.0f), 0.0f);
}

}  // namespace
}  // namespace nibble
