// The steps between products on the GPU against plain loops. Skipped where there is no GPU.
#include "backend/cuda/elementwise.h"

#include <algorithm>
#include <cmath>

#include "backend/cuda/ranking.h"
#include "cuda/device_arrays.h"
#include "runtime/ranked_logit.h"

namespace nibble::cuda {
namespace {

using testing::DeviceArray;
using testing::random_halves;
class Elementwise : public testing::GpuTest {};

__half* halves(const DeviceArray<uint16_t>& array) { return reinterpret_cast<__half*>(array.device()); }

std::vector<float> random_floats(size_t count, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

TEST_F(Elementwise, AddsAndNormalises) {
  open_device(0);
  const Stream stream;
  std::mt19937 generator(1);
  for (const int hidden : {8, 64, 576, 4096, 16384}) {
    for (const int tokens : {1, 3, 70}) {
      for (const bool update : {false, true}) {
        const auto count = static_cast<size_t>(tokens) * hidden;
        DeviceArray<float> residual(random_floats(count, generator));
        const std::vector<float> before = residual.host();
        const DeviceArray<float> weight(random_floats(static_cast<size_t>(hidden), generator));
        const DeviceArray<uint16_t> more(random_halves(count, generator));
        DeviceArray<uint16_t> out(std::vector<uint16_t>(count, 0x7E00));
        launch_norm(
            {residual.device(), update ? halves(more) : nullptr, residual.device(), weight.device(), 1e-5f},
            tokens, hidden, halves(out), stream.get());
        stream.synchronize();
        residual.download();
        out.download();
        for (int t = 0; t < tokens; ++t) {
          double squares = 0;
          for (int i = 0; i < hidden; ++i) {
            const auto at = static_cast<size_t>(t) * hidden + i;
            const float sum = before[at] + (update ? f16_to_float(more.host()[at]) : 0.0f);
            ASSERT_EQ(residual.host()[at], sum);
            squares += double{sum} * sum;
          }
          const double scale = 1 / std::sqrt(squares / hidden + 1e-5);
          for (int i = 0; i < hidden; ++i) {
            const auto at = static_cast<size_t>(t) * hidden + i;
            const double expected = residual.host()[at] * scale * weight.host()[static_cast<size_t>(i)];
            ASSERT_NEAR(f16_to_float(out.host()[at]), expected, 0x1p-10 * std::fabs(expected) + 1e-7)
                << hidden << " " << t << " " << i;
          }
        }
      }
    }
  }
}

TEST_F(Elementwise, MultipliesGates) {
  open_device(0);
  const Stream stream;
  std::mt19937 generator(2);
  for (const int width : {8, 176, 1536, 11008}) {
    const int tokens = 5;
    const DeviceArray<uint16_t> gate_up(random_halves(static_cast<size_t>(2 * tokens * width), generator, 4));
    DeviceArray<uint16_t> out(std::vector<uint16_t>(static_cast<size_t>(tokens * width), 0x7E00));
    launch_silu_multiply(halves(gate_up), tokens, width, halves(out), stream.get());
    stream.synchronize();
    out.download();
    for (int t = 0; t < tokens; ++t) {
      for (int i = 0; i < width; ++i) {
        const double gate = f16_to_float(gate_up.host()[static_cast<size_t>(2 * t * width + i)]),
                     up = f16_to_float(gate_up.host()[static_cast<size_t>((2 * t + 1) * width + i)]);
        const double expected = gate / (1 + std::exp(-gate)) * up;
        ASSERT_NEAR(f16_to_float(out.host()[static_cast<size_t>(t * width + i)]), expected,
                    0x1p-10 * std::fabs(expected) + 1e-7);
      }
    }
  }
}

TEST_F(Elementwise, LooksEmbeddingsUpAndAdds) {
  open_device(0);
  const Stream stream;
  std::mt19937 generator(3);
  const int hidden = 72, tokens = 7;
  const DeviceArray<uint16_t> table(random_halves(50 * hidden, generator)),
      more(random_halves(tokens * hidden, generator));
  const DeviceArray<int32_t> ids({3, 49, 0, 7, 7, 12, 1});
  DeviceArray<float> residual(std::vector<float>(tokens * hidden, NAN));
  launch_embed(halves(table), ids.device(), tokens, hidden, residual.device(), stream.get());
  launch_add(residual.device(), halves(more), tokens * hidden, stream.get());
  stream.synchronize();
  residual.download();
  for (int i = 0; i < tokens * hidden; ++i) {
    const auto from = static_cast<size_t>(ids.host()[static_cast<size_t>(i / hidden)] * hidden + i % hidden);
    EXPECT_EQ(residual.host()[static_cast<size_t>(i)],
              f16_to_float(table.host()[from]) + f16_to_float(more.host()[static_cast<size_t>(i)]));
  }
}

TEST_F(Elementwise, AddsABias) {
  open_device(0);
  const Stream stream;
  std::mt19937 generator(4);
  const int tokens = 3, n = 37, stride = 64;
  DeviceArray<uint16_t> y(random_halves(tokens * stride, generator));
  const std::vector<uint16_t> before = y.host();
  const DeviceArray<float> bias(random_floats(n, generator));
  launch_add_bias(halves(y), stride, bias.device(), tokens, n, stream.get());
  stream.synchronize();
  y.download();
  for (int i = 0; i < tokens * stride; ++i) {
    const auto at = static_cast<size_t>(i);
    const bool inside = i % stride < n;
    const uint16_t expected =
        inside ? float_to_f16(f16_to_float(before[at]) + bias.host()[static_cast<size_t>(i % stride)])
               : before[at];
    EXPECT_EQ(y.host()[at], expected) << i;
  }
}

TEST_F(Elementwise, ChoosesTheFirstOfTheLargest) {
  open_device(0);
  const Stream stream;
  std::mt19937 generator(5);
  for (const int vocabulary : {1, 31, 1000, 49152}) {
    std::vector<float> logits = random_floats(static_cast<size_t>(vocabulary), generator);
    const int first = vocabulary / 3, second = vocabulary - 1;
    logits[static_cast<size_t>(first)] = logits[static_cast<size_t>(second)] = 50;
    for (const bool bad : {false, true}) {
      if (bad) logits[static_cast<size_t>(vocabulary / 2)] = NAN;
      const DeviceArray<float> device(logits);
      DeviceArray<int32_t> control({4, -7}), history(std::vector<int32_t>(8, -5));
      launch_argmax(device.device(), vocabulary, control.device() + 1, control.device(), history.device(),
                    stream.get());
      stream.synchronize();
      control.download();
      history.download();
      EXPECT_EQ(control.host()[0], 5);
      EXPECT_EQ(history.host()[5], bad ? -1 : first);
      EXPECT_EQ(history.host()[4], -5);
      EXPECT_GE(control.host()[1], 0);
      EXPECT_LT(control.host()[1], vocabulary);
    }
  }
}

TEST_F(Elementwise, RanksLogits) {
  open_device(0);
  const Stream stream;
  std::mt19937 generator(11);
  for (const int vocabulary : {1, 63, 64, 1000, 1024, 1025, 32000, 151936}) {
    std::vector<float> logits = random_floats(static_cast<size_t>(vocabulary), generator);
    for (float& value : logits) value = std::round(value * 16) / 16;  // many are equal, zeros of both signs
    logits[static_cast<size_t>(vocabulary / 2)] = -INFINITY;
    for (const bool bad : {false, true}) {
      if (bad) logits[static_cast<size_t>(vocabulary / 3)] = NAN;
      std::vector<RankedLogit> expected;
      for (int i = 0; i < vocabulary; ++i) expected.emplace_back(logits[static_cast<size_t>(i)], i);
      std::sort(expected.begin(), expected.end(), [](const RankedLogit& a, const RankedLogit& b) {
        if (std::isnan(a.first) || std::isnan(b.first)) return std::isnan(a.first) && !std::isnan(b.first);
        return ranks_before(a, b);
      });
      const DeviceArray<float> device(logits);
      const Buffer workspace(ranking_bytes(vocabulary));
      const RankKey* const best = launch_ranking(device.device(), vocabulary, workspace.data(), stream.get());
      stream.synchronize();
      std::vector<RankKey> got(kRankedLogits);
      check(cudaMemcpy(got.data(), best, sizeof(RankKey) * got.size(), cudaMemcpyDeviceToHost), "fetching");
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i].any(), i < expected.size()) << vocabulary << " " << i;
        if (!got[i].any()) continue;
        EXPECT_EQ(got[i].token(), expected[i].second) << vocabulary << " " << i;
        if (std::isnan(expected[i].first)) {
          EXPECT_TRUE(std::isnan(got[i].logit()));
        } else {
          EXPECT_EQ(got[i].logit(), expected[i].first);
        }
      }
    }
  }
}

TEST_F(Elementwise, RoundsWeights) {
  open_device(0);
  const Stream stream;
  std::mt19937 generator(6);
  const std::vector<float> values = random_floats(1001, generator);
  std::vector<uint16_t> bf16;
  for (const float value : values) bf16.push_back(float_to_bf16(value));
  const DeviceArray<float> from(values);
  const DeviceArray<uint16_t> from_bf16(bf16);
  DeviceArray<uint16_t> out(std::vector<uint16_t>(values.size(), 0x7E00)),
      out_bf16 = DeviceArray<uint16_t>(out.host());
  DeviceArray<int> overflowed({0});
  const auto count = static_cast<int64_t>(values.size());
  launch_half_from_float(from.device(), count, halves(out), overflowed.device(), stream.get());
  launch_half_from_bf16(from_bf16.device(), count, halves(out_bf16), overflowed.device(), stream.get());
  stream.synchronize();
  out.download();
  out_bf16.download();
  overflowed.download();
  EXPECT_EQ(overflowed.host()[0], 0);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(out.host()[i], float_to_f16(values[i]));
    EXPECT_EQ(out_bf16.host()[i], float_to_f16(bf16_to_float(bf16[i])));
  }
  const DeviceArray<float> large({70000.0f});
  launch_half_from_float(large.device(), 1, halves(out), overflowed.device(), stream.get());
  stream.synchronize();
  overflowed.download();
  EXPECT_EQ(overflowed.host()[0], 1);
}

}  // namespace
}  // namespace nibble::cuda
