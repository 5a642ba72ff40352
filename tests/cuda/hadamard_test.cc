// Online rotations on the GPU against the CPU's. Skipped where there is no GPU.
#include "backend/cuda/hadamard.h"

#include <cmath>

#include "base/thread_pool.h"
#include "cuda/device_arrays.h"

namespace nibble::cuda {
namespace {

using testing::DeviceArray;
using testing::random_halves;

struct RotationCase {
  int64_t size;
  int tokens;
  HadamardShape shape = {};  // of this size; empty: the usual one
};

class DeviceRotation : public testing::GpuTest, public ::testing::WithParamInterface<RotationCase> {
 protected:
  void SetUp() override {
    testing::GpuTest::SetUp();
    if (IsSkipped()) return;
    open_device(0);
    shape_ = GetParam().shape.size > 0 ? GetParam().shape : choose_hadamard_shape(GetParam().size);
    tokens_ = GetParam().tokens;
    count_ = static_cast<size_t>(tokens_ * shape_.size);
  }

  // `x` [tokens, size] transformed by the CPU beside `got`.
  void expect_transformed(std::vector<float> x, const std::vector<float>& got, double error) const {
    const Hadamard hadamard(shape_);
    ThreadPool pool(2);
    Scratch scratch;
    hadamard.apply_rows(x.data(), tokens_, scratch, pool);
    for (int64_t t = 0; t < tokens_; ++t) {
      double squares = 0;
      for (int64_t i = 0; i < shape_.size; ++i) {
        const double value = x[static_cast<size_t>(t * shape_.size + i)];
        squares += value * value;
      }
      const double bound = error * std::sqrt(squares / static_cast<double>(shape_.size)) + 1e-7;
      for (int64_t i = 0; i < shape_.size; ++i) {
        const auto at = static_cast<size_t>(t * shape_.size + i);
        ASSERT_NEAR(got[at], x[at], bound + error * std::fabs(x[at]))
            << describe(shape_) << ", " << t << " " << i;
      }
    }
  }

  HadamardShape shape_;
  int64_t tokens_ = 0;
  size_t count_ = 0;
};

TEST_P(DeviceRotation, OfGates) {
  const Stream stream;
  std::mt19937 generator(1);
  const DeviceArray<uint16_t> gate_up(random_halves(2 * count_, generator, 2));
  std::vector<float> x;
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t i = 0; i < shape_.size; ++i) {
      const auto at = static_cast<size_t>(2 * t * shape_.size + i);
      const float gate = f16_to_float(gate_up.host()[at]),
                  up = f16_to_float(gate_up.host()[at + static_cast<size_t>(shape_.size)]);
      x.push_back(gate / (1 + std::exp(-gate)) * up);
    }
  }
  const GateStep step = {reinterpret_cast<const __half*>(gate_up.device())};
  const DeviceHadamard rotation(shape_);
  DeviceArray<float> floats(std::vector<float>(count_, NAN));
  DeviceArray<uint16_t> halves(std::vector<uint16_t>(count_, 0x7E00));
  rotation.launch(step, static_cast<int>(tokens_), floats.device(), stream.get());
  rotation.launch(step, static_cast<int>(tokens_), reinterpret_cast<__half*>(halves.device()), stream.get());
  stream.synchronize();
  floats.download();
  halves.download();
  expect_transformed(x, floats.host(), 2e-5);
  for (size_t i = 0; i < count_; ++i) ASSERT_EQ(halves.host()[i], float_to_f16(floats.host()[i])) << i;
}

TEST_P(DeviceRotation, OfNorms) {
  const Stream stream;
  std::mt19937 generator(2);
  std::normal_distribution<float> normal;
  std::vector<float> before(count_), weights(static_cast<size_t>(shape_.size));
  for (float& value : before) value = normal(generator);
  for (float& value : weights) value = normal(generator);
  DeviceArray<float> residual(before);
  const DeviceArray<float> weight(weights);
  const DeviceArray<uint16_t> update(random_halves(count_, generator));
  DeviceArray<float> got(std::vector<float>(count_, NAN));
  DeviceHadamard(shape_).launch(NormStep{residual.device(), reinterpret_cast<const __half*>(update.device()),
                                         residual.device(), weight.device(), 1e-5f},
                                static_cast<int>(tokens_), got.device(), stream.get());
  stream.synchronize();
  residual.download();
  got.download();
  std::vector<float> x(count_);
  for (int64_t t = 0; t < tokens_; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < shape_.size; ++i) {
      const auto at = static_cast<size_t>(t * shape_.size + i);
      ASSERT_EQ(residual.host()[at], before[at] + f16_to_float(update.host()[at]));
      squares += double{residual.host()[at]} * residual.host()[at];
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(shape_.size) + 1e-5);
    for (int64_t i = 0; i < shape_.size; ++i) {
      const auto at = static_cast<size_t>(t * shape_.size + i);
      x[at] = static_cast<float>(residual.host()[at] * scale * weights[static_cast<size_t>(i)]);
    }
  }
  expect_transformed(x, got.host(), 2e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, DeviceRotation,
    ::testing::Values(RotationCase{8, 1}, RotationCase{64, 3}, RotationCase{256, 40}, RotationCase{512, 2},
                      RotationCase{576, 5}, RotationCase{1536, 70}, RotationCase{2048, 1},
                      RotationCase{4096, 33}, RotationCase{5120, 2}, RotationCase{8192, 9},
                      RotationCase{11008, 1}, RotationCase{11008, 20}, RotationCase{13824, 2},
                      RotationCase{14336, 1}, RotationCase{28672, 3}, RotationCase{32768, 1},
                      // Blocks of a power of two; Hartley's matrix of an odd order; several mixed blocks.
                      RotationCase{1504, 3, {1504, 32, 1}}, RotationCase{376, 4, {376, 376, 47}},
                      RotationCase{1152, 2, {1152, 96, 12}}));

TEST(DeviceRotationShapes, RefusesWhatItCannotHold) {
  EXPECT_EQ(DeviceHadamard::refusal(choose_hadamard_shape(4096)), "");
  EXPECT_NE(DeviceHadamard::refusal(choose_hadamard_shape(65536)), "");
  EXPECT_NE(DeviceHadamard::refusal(choose_hadamard_shape(36)), "");
}

}  // namespace
}  // namespace nibble::cuda
