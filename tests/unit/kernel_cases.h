// What the tests of the float kernels share: every path of this machine, random data, and comparison with
// doubles.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/format.h"
#include "kernels/float_kernels.h"

namespace nibble::testing {

// One test per instruction set with a table of float kernels; those beyond this machine (or NIBBLE_CPU) are
// skipped.
class EveryPath : public ::testing::TestWithParam<CpuPath> {
 protected:
  void SetUp() override {
    kernels_ = float_kernels_for(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << cpu_path_name(GetParam()) << " is not available in this process";
  }
  const FloatKernels& kernels() const { return *kernels_; }

 private:
  const FloatKernels* kernels_ = nullptr;
};

inline std::string path_name(const ::testing::TestParamInfo<CpuPath>& test) {
  return std::string(cpu_path_name(test.param));
}

#define NIBBLE_FOR_EVERY_PATH(suite) \
  INSTANTIATE_TEST_SUITE_P(          \
      Path, suite, ::testing::Values(CpuPath::kScalar, CpuPath::kAvx2, CpuPath::kAvx512Vnni), path_name)

inline std::vector<float> random_floats(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// Floats on a guarded allocation: the element behind the last one is watched.
constexpr float kGuard = 12345.678f;

inline void expect_near(double actual, double expected, double tolerance, const std::string& where) {
  if (!(std::fabs(actual - expected) <= tolerance)) {
    ADD_FAILURE() << where << ": " << actual << " instead of " << expected << ", off by " << actual - expected
                  << ", allowed " << tolerance;
  }
}

}  // namespace nibble::testing
