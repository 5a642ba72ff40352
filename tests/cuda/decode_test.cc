// The GPU's product of 4-bit weights and FP16 tokens against plain loops in FP64. Skipped where there is no
// GPU.
#include "formats/group_int/cuda/decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backend/cuda/device.h"
#include "base/half.h"
#include "cases/linear_cases.h"
#include "cuda/gpu.h"
#include "formats/group_int/cuda/decode_layout.h"

namespace nibble::group_int_cuda {
namespace {

struct Case {
  int64_t n, k, group_size;
  int tokens, stages;
};

class Decode : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }
};

TEST_P(Decode, EqualsPlainLoops) {
  const auto [n, k, group_size, tokens, stages] = GetParam();
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  cases::LinearCase shape = {n, k, 0, tokens};
  const PackedLinear linear =
      find_format("group_int")
          ->pack(cases::make_weight(shape, {.weight_bits = 4, .group_size = group_size}, false), "linear");
  const std::vector<uint8_t> packed = pack_for_decode(linear);
  std::vector<float> weight(static_cast<size_t>(n * k));
  linear.format->dequantize(linear, weight.data());
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(static_cast<size_t>(tokens * k)), y(static_cast<size_t>(tokens * n), 0x7E00);
  for (uint16_t& value : x) value = float_to_f16(normal(generator));

  cuda::Buffer device_weight(packed.size()), device_x(2 * x.size()), device_y(2 * y.size());
  device_weight.upload(packed.data(), packed.size());
  device_x.upload(x.data(), 2 * x.size());
  for (int repeat = 0; repeat < 3; ++repeat) {
    device_y.upload(y.data(), 2 * y.size());  // NaN: every element must be written
    cuda::check(launch_decode({.weights = device_weight.as<uint8_t>(),
                               .x = device_x.as<__half>(),
                               .y = device_y.as<__half>(),
                               .n = static_cast<int>(n),
                               .k = static_cast<int>(k),
                               .tokens = tokens},
                              {.stages = stages}, device.multiprocessors, stream.get()),
                "launching");
    stream.synchronize();
    std::vector<uint16_t> got(y.size());
    device_y.download(got.data(), 2 * got.size());
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t row = 0; row < n; ++row) {
        double sum = 0, magnitude = 0;
        for (int64_t j = 0; j < k; ++j) {
          const double product = double{f16_to_float(x[t * k + j])} * double{weight[row * k + j]};
          sum += product;
          magnitude += std::fabs(product);
        }
        // FP32 sums, then one rounding to F16.
        const double bound =
            4.0 * static_cast<double>(k) * 0x1p-24 * magnitude + std::fabs(sum) * 0x1p-11 + 0x1p-24;
        ASSERT_NEAR(f16_to_float(got[t * n + row]), sum, bound) << "token " << t << " row " << row;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Decode,
                         ::testing::Values(Case{16, 128, 128, 1, 10}, Case{17, 136, 0, 1, 2},
                                           Case{48, 1152, 128, 2, 3}, Case{33, 1096, 128, 3, 1},
                                           Case{4096, 4096, 128, 1, 10}, Case{5120, 1024, 0, 4, 10},
                                           Case{64, 13824, 128, 4, 6}, Case{4100, 2048, 128, 4, 20},
                                           Case{1, 8, 0, 4, 10}));

}  // namespace
}  // namespace nibble::group_int_cuda
