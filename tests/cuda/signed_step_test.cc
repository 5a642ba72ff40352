// Signed activation codes made in the kernel of the step in front: of given floats bit for bit as defined,
// and of gates as good as FP32 lets them be (norms: quantize_step_test). Skipped where there is no GPU.
#include <cmath>

#include "cuda/device_arrays.h"
#include "formats/group_int_a8/cuda/group_product_layout.h"
#include "formats/group_int_a8/cuda/quantize_step.h"

namespace nibble::group_int_a8_cuda {
namespace {

using cuda::Stream;
using cuda::testing::DeviceArray;

struct Shape {
  int k, tokens;
  float activation_scale = 0;
};

class SignedStep : public cuda::testing::GpuTest, public ::testing::WithParamInterface<Shape> {
 protected:
  // Codes [tokens, k] by column, and the tokens' scales, in every order and with and without a zero point.
  template <typename Check>
  void run(const cuda::InputStep& step, const Check& check) const {
    const Shape& c = GetParam();
    const Stream stream;
    for (const CodeOrder order : {CodeOrder::kColumns, CodeOrder::kPrompt, CodeOrder::kNarrow}) {
      for (const bool shifted : {false, true}) {
        const int unit = order == CodeOrder::kColumns ? 16 : 64, stride = (c.k + unit - 1) / unit * unit;
        const auto rows = static_cast<size_t>(c.tokens);
        DeviceArray<uint8_t> codes(std::vector<uint8_t>(rows * static_cast<size_t>(stride), 0xEE));
        DeviceArray<float> scales(std::vector<float>(rows + 3, -1));
        DeviceArray<int32_t> zeros(std::vector<int32_t>(rows + 3, -1));
        const PromptActivations out = {codes.device(), stride, scales.device(),
                                       shifted ? zeros.device() : nullptr};
        cuda::check(launch_quantize_step(step, c.tokens, c.k, c.activation_scale, order, out, stream.get()),
                    "quantizing");
        stream.synchronize();
        codes.download();
        scales.download();
        zeros.download();
        for (int t = 0; t < c.tokens; ++t) {
          ASSERT_EQ(zeros.host()[static_cast<size_t>(t)], shifted ? 128 : -1);
          std::vector<int> of_columns;
          for (int j = 0; j < stride; ++j) {
            int place = j;
            if (order == CodeOrder::kPrompt) place = quik_cuda::code_position(j);
            if (order == CodeOrder::kNarrow) place = narrow_code_position(j);
            const uint8_t byte = codes.host()[static_cast<size_t>(t) * stride + place];
            const int code = shifted ? byte - 128 : static_cast<int8_t>(byte);
            if (j < c.k) {
              of_columns.push_back(code);
            } else {
              ASSERT_EQ(code, 0) << "beyond the columns";
            }
          }
          check(t, scales.host()[static_cast<size_t>(t)], of_columns);
        }
      }
    }
  }
};

TEST_P(SignedStep, CodesOfFloatsAreTheDefinitions) {
  const Shape& c = GetParam();
  std::mt19937 generator(static_cast<unsigned>(c.k));
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(c.tokens) * c.k);
  for (float& value : x) value = normal(generator);
  const auto row = [&](int t) { return x.begin() + static_cast<int64_t>(t) * c.k; };
  if (c.tokens > 2) std::fill(row(1), row(2), 0.0f);
  if (c.tokens > 3) *(row(2) + c.k / 2) = -INFINITY;
  if (c.tokens > 4) std::transform(row(3), row(4), row(3), [](float v) { return v * 1e-37f; });
  if (c.tokens > 5) *(row(4) + 3) = NAN;
  if (c.tokens > 6) *row(5) = 1e30f;
  const DeviceArray<float> device(x);
  run(cuda::FloatStep{device.device()}, [&](int t, float scale, const std::vector<int>& codes) {
    float largest = 0;
    bool finite = true;
    for (int j = 0; j < c.k; ++j) {
      finite = finite && std::isfinite(*(row(t) + j));
      largest = std::fmax(largest, std::fabs(*(row(t) + j)));
    }
    const float expected = c.activation_scale > 0 ? c.activation_scale : largest / 127.0f;
    if (finite) {
      ASSERT_EQ(scale, expected) << t;
    } else {
      ASSERT_TRUE(std::isnan(scale)) << t;
    }
    for (int j = 0; j < c.k; ++j) {
      float quotient = finite && expected > 0 ? *(row(t) + j) / expected : 0.0f;
      quotient = std::clamp(std::nearbyint(quotient), -127.0f, 127.0f);
      ASSERT_EQ(codes[static_cast<size_t>(j)], static_cast<int>(quotient))
          << "token " << t << " column " << j;
    }
  });
}

TEST_P(SignedStep, GatesAreQuantized) {
  const Shape& c = GetParam();
  std::mt19937 generator(static_cast<unsigned>(c.k));
  const DeviceArray<uint16_t> gate_up(
      cuda::testing::random_halves(2 * static_cast<size_t>(c.tokens) * c.k, generator, 2));
  run(cuda::GateStep{reinterpret_cast<const __half*>(gate_up.device())},
      [&](int t, float scale, const std::vector<int>& codes) {
        std::vector<double> x;
        double largest = 0;
        for (int j = 0; j < c.k; ++j) {
          const size_t at = 2 * static_cast<size_t>(t) * c.k + static_cast<size_t>(j);
          const double gate = f16_to_float(gate_up.host()[at]),
                       up = f16_to_float(gate_up.host()[at + static_cast<size_t>(c.k)]);
          x.push_back(gate / (1 + std::exp(-gate)) * up);
          largest = std::fmax(largest, std::fabs(x.back()));
        }
        const double step = c.activation_scale > 0 ? c.activation_scale : largest / 127;
        ASSERT_NEAR(scale, step, 1e-5 * step);
        for (int j = 0; j < c.k; ++j) {
          ASSERT_NEAR(codes[static_cast<size_t>(j)],
                      std::clamp(x[static_cast<size_t>(j)] / scale, -127.0, 127.0), 0.503);
        }
      });
}

INSTANTIATE_TEST_SUITE_P(Shapes, SignedStep,
                         ::testing::Values(Shape{8, 1}, Shape{64, 7}, Shape{576, 9}, Shape{1000, 3, 0.02f},
                                           Shape{4096, 40}, Shape{8192, 2}, Shape{11008, 1},
                                           Shape{11008, 33, 0.01f}, Shape{28672, 8}, Shape{28672, 9},
                                           Shape{32768, 2}));

}  // namespace
}  // namespace nibble::group_int_a8_cuda
