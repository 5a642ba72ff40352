// Writing rows of a cache on every CPU path.
#include <algorithm>
#include <limits>

#include "cache_row_reading.h"
#include "kernel_cases.h"
#include "kernels/cache_row.h"

namespace nibble::testing {
namespace {

constexpr CacheType kTypes[] = {CacheType::kF32, CacheType::kF16, CacheType::kQ8, CacheType::kQ4};

class CacheRows : public EveryPath {
 protected:
  std::vector<unsigned char> stored(CacheType type, const std::vector<float>& values) {
    const auto head_dim = static_cast<int64_t>(values.size());
    const auto bytes = static_cast<size_t>(expected_row_bytes(type, head_dim));
    EXPECT_EQ(cache_row_bytes(type, head_dim), static_cast<int64_t>(bytes));
    std::vector<unsigned char> row(bytes + 8, 0xa5);
    kernels().store_cache_row(type, values.data(), head_dim, row.data());
    for (size_t i = bytes; i < row.size(); ++i) EXPECT_EQ(row[i], 0xa5) << "written beyond the row";
    return row;
  }
};

// Each value is off by half a step of its group at most, and by the rounding of the step itself.
TEST_P(CacheRows, ValuesAreWithinHalfAStep) {
  for (const int64_t head_dim : {2, 8, 10, 16, 32, 40, 56, 64, 80, 128, 258}) {
    std::vector<float> values = random_floats(static_cast<size_t>(head_dim), static_cast<uint32_t>(head_dim));
    values[0] *= 20;  // an outlier in the first group
    for (const CacheType type : kTypes) {
      const std::vector<unsigned char> row = stored(type, values);
      for (int64_t first = 0; first < head_dim; first += 32) {
        const auto begin = values.begin() + first;
        const auto [low, high] = std::minmax_element(begin, begin + std::min<int64_t>(32, head_dim - first));
        const double largest = std::max(std::fabs(*low), std::fabs(*high));
        double allowed = 0;
        if (type == CacheType::kF16) allowed = largest * 0x1p-11;
        if (type == CacheType::kQ8) allowed = 0.501 * largest / 127 + largest * 0x1p-11;
        if (type == CacheType::kQ4) allowed = 0.501 * (*high - *low) / 15 + largest * 0x1p-10;
        for (int64_t i = first; i < std::min(first + 32, head_dim); ++i) {
          expect_near(cache_value(type, row.data(), head_dim, i), values[static_cast<size_t>(i)], allowed,
                      format_text("type {}, head of {}, element {}", static_cast<int>(type), head_dim, i));
        }
      }
    }
  }
}

TEST_P(CacheRows, ExtremesOfAGroupAreCodes) {
  std::vector<float> values(64);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 32) * 0.125f - 1.0f;
  const std::vector<unsigned char> q4 = stored(CacheType::kQ4, values);
  for (const size_t group : {0, 1}) {
    EXPECT_EQ(q4[group * 16] & 15, 0);        // the least value
    EXPECT_EQ(q4[group * 16 + 15] >> 4, 15);  // the largest
  }
  const std::vector<unsigned char> q8 = stored(CacheType::kQ8, values);
  EXPECT_EQ(static_cast<int8_t>(q8[31]), 127);
}

TEST_P(CacheRows, ConstantsAndZeros) {
  for (const float constant : {0.0f, 3.5f, -3.5f, 1e-30f}) {
    const std::vector<float> values(48, constant);
    for (const CacheType type : kTypes) {
      const std::vector<unsigned char> row = stored(type, values);
      for (int64_t i = 0; i < 48; ++i) {
        expect_near(cache_value(type, row.data(), 48, i), constant, std::fabs(constant) * 2e-3 + 1e-29,
                    format_text("type {}", static_cast<int>(type)));
      }
    }
  }
}

// What is beyond F16 saturates; what is not a number stays so, and is not hidden as a code.
TEST_P(CacheRows, HugeAndNotFinite) {
  for (const CacheType type : {CacheType::kQ8, CacheType::kQ4}) {
    std::vector<float> values(64, 1.0f);
    values[3] = 1e20f;
    std::vector<unsigned char> row = stored(type, values);
    for (int64_t i = 0; i < 64; ++i) EXPECT_TRUE(std::isfinite(cache_value(type, row.data(), 64, i)));
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      values[3] = bad;
      row = stored(type, values);
      EXPECT_TRUE(std::isnan(cache_value(type, row.data(), 64, 3)));
      expect_near(cache_value(type, row.data(), 64, 40), 1.0, 1e-2, "the other group");
    }
  }
}

NIBBLE_FOR_EVERY_PATH(CacheRows);

}  // namespace
}  // namespace nibble::testing
