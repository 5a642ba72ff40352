// Arrays that exist on the host and on the GPU, for tests of kernels.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "backend/cuda/device.h"
#include "base/half.h"
#include "cuda/gpu.h"

namespace nibble::cuda::testing {

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }
};

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::vector<T> values) : host_(std::move(values)), device_(sizeof(T) * host_.size()) {
    upload();
  }
  T* device() const { return device_.as<T>(); }
  std::vector<T>& host() { return host_; }
  const std::vector<T>& host() const { return host_; }
  void upload() { device_.upload(host_.data(), sizeof(T) * host_.size()); }
  void download() { device_.download(host_.data(), sizeof(T) * host_.size()); }

 private:
  std::vector<T> host_;
  Buffer device_;
};

// F16 bits of normal numbers.
inline std::vector<uint16_t> random_halves(size_t count, std::mt19937& generator, float deviation = 1) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = float_to_f16(normal(generator));
  return values;
}

}  // namespace nibble::cuda::testing
