// Activation codes made in the kernel of the step in front: of given floats bit for bit as defined, of norms
// and gates as good as FP32 lets them be. What needs a GPU is skipped without one.
#include "formats/quik/cuda/quantize_step.h"

#include <cmath>

#include "backend/cuda/input_cut.h"
#include "cases/linear_cases.h"
#include "cuda/device_arrays.h"
#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::quik_cuda {
namespace {

using cuda::Stream;
using cuda::testing::DeviceArray;
using cuda::testing::random_halves;

TEST(RowCuts, HoldEveryColumnOnce) {
  for (int columns = 8; columns <= cuda::rows::kMaximumColumns; columns += 8) {
    for (const int tokens : {1, 8, 9, 2048}) {
      for (const bool spread : {false, true}) {
        const cuda::rows::Cut cut = cuda::rows::cut_rows(columns, tokens, spread);
        ASSERT_LE(cut.threads, cuda::rows::most_threads(cut.vectors)) << columns;
        ASSERT_EQ(cut.threads % 32, 0);
        ASSERT_TRUE(cut.blocks == 1 || (spread && (tokens <= 8 || columns > 14336))) << columns;
        const int share = (columns / 8 + cut.blocks - 1) / cut.blocks;
        ASSERT_GE(cut.vectors * cut.threads, share) << columns;
      }
    }
  }
}

struct Shape {
  int k, outliers, tokens, bits;
};

class QuantizeStep : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
    cuda::open_device(0);
    shape_ = GetParam();
    outlier_columns_ = cases::spread_columns(shape_.k, shape_.outliers);
    for (int32_t column = 0; column < shape_.k; ++column) {
      if (!std::binary_search(outlier_columns_.begin(), outlier_columns_.end(), column))
        integer_columns_.push_back(column);
    }
  }

  std::vector<float> random_rows(int rows, unsigned seed) const {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(rows) * shape_.k);
    for (float& value : values) value = normal(generator);
    return values;
  }

  // Runs `step` in both orders and hands token, scale, zero, its codes by integer column, its outliers.
  template <typename Visit>
  void run(
      const cuda::InputStep& step, const Visit& visit, const std::function<void()>& before = [] {}) {
    const int integers = static_cast<int>(integer_columns_.size());
    const DeviceArray<uint32_t> words(column_words(shape_.k, outlier_columns_));
    const Stream stream;
    for (const CodeOrder order : {CodeOrder::kColumns, CodeOrder::kPrompt}) {
      SCOPED_TRACE(order == CodeOrder::kPrompt ? "prompt" : "columns");
      before();
      const cuda::Buffer memory(activation_bytes(shape_.tokens, shape_.k, shape_.outliers));
      cuda::check(cudaMemset(memory.data(), 0xFF, memory.bytes()), "filling");
      const Activations out = place_activations(memory.data(), shape_.tokens, shape_.k, shape_.outliers);
      const Columns columns = {.k = shape_.k, .outliers = shape_.outliers, .words = words.device()};
      cuda::check(launch_quantize_step(step, shape_.tokens, columns, shape_.bits, order, out, stream.get()),
                  "quantizing");
      stream.synchronize();
      std::vector<uint8_t> bytes(memory.bytes());
      memory.download(bytes.data(), bytes.size());
      const auto at = [&](const void* pointer) {
        return bytes.data() + (static_cast<const uint8_t*>(pointer) - static_cast<uint8_t*>(memory.data()));
      };
      for (int t = 0; t < shape_.tokens; ++t) {
        const uint8_t* const row = at(out.codes + t * out.code_stride);
        std::vector<int> codes;
        for (int j = 0; j < integers; ++j)
          codes.push_back(row[order == CodeOrder::kPrompt ? code_position(j) : j]);
        for (int64_t j = integers; j < out.code_stride; ++j) {
          ASSERT_EQ(row[order == CodeOrder::kPrompt ? code_position(static_cast<int>(j)) : j], 0) << j;
        }
        std::vector<float> outliers;
        const auto* const halves =
            reinterpret_cast<const uint16_t*>(at(out.outliers + t * out.outlier_stride));
        for (int o = 0; o < shape_.outliers; ++o)
          outliers.push_back(f16_to_float(halves[order == CodeOrder::kPrompt ? outlier_position(o) : o]));
        float scale = 0;
        int32_t zero = 0;
        std::memcpy(&scale, at(out.scales + t), 4);
        std::memcpy(&zero, at(out.zeros + t), 4);
        visit(t, scale, zero, codes, outliers);
      }
    }
  }

  // Codes of a token whose exact values are `x` may differ from theirs only where the FP32 value that the
  // kernel has, of relative error `error`, does.
  void expect_close(const std::vector<double>& x, double error, float scale, int zero,
                    const std::vector<int>& codes, const std::vector<float>& outliers) const {
    const int top = (1 << shape_.bits) - 1;
    double lo = 0, hi = 0;
    for (const int32_t column : integer_columns_) {
      lo = std::min(lo, x[static_cast<size_t>(column)]);
      hi = std::max(hi, x[static_cast<size_t>(column)]);
    }
    ASSERT_NEAR(scale, (hi - lo) / top, error * (hi - lo) / top);
    ASSERT_NEAR(zero, -lo / scale, 0.5 + top * 2 * error);
    for (size_t j = 0; j < codes.size(); ++j) {
      const double quotient = x[static_cast<size_t>(integer_columns_[j])] / scale;
      ASSERT_NEAR(codes[j], std::clamp(quotient + zero, 0.0, double(top)), 0.5 + top * 2 * error) << j;
    }
    for (size_t o = 0; o < outliers.size(); ++o) {
      const double value = x[static_cast<size_t>(outlier_columns_[o])];
      ASSERT_NEAR(outliers[o], value, (0x1p-11 + error) * std::fabs(value) + 1e-7) << o;
    }
  }

  Shape shape_ = {};
  std::vector<int32_t> outlier_columns_, integer_columns_;
};

TEST_P(QuantizeStep, CodesOfFloatsAreTheDefinitions) {
  std::vector<float> x = random_rows(shape_.tokens, 1);
  const auto row = [&](int t) { return x.begin() + static_cast<int64_t>(t) * shape_.k; };
  if (shape_.tokens > 2) std::fill(row(1), row(2), 0.0f);
  if (shape_.tokens > 3) *(row(2) + integer_columns_.back()) = INFINITY;
  if (shape_.tokens > 4) std::transform(row(3), row(4), row(3), [](float v) { return v * 1e-36f; });
  if (shape_.tokens > 5) *(row(4) + integer_columns_.front()) = NAN;
  const DeviceArray<float> device(x);
  const int top = (1 << shape_.bits) - 1;
  run(cuda::FloatStep{device.device()},
      [&](int t, float scale, int zero, const std::vector<int>& codes, const std::vector<float>& outliers) {
        float lo = 0, hi = 0;
        bool finite = true;
        for (const int32_t column : integer_columns_) {
          const float value = *(row(t) + column);
          finite = finite && std::isfinite(value);
          lo = std::fmin(lo, value);
          hi = std::fmax(hi, value);
        }
        for (size_t o = 0; o < outliers.size(); ++o)
          ASSERT_EQ(outliers[o], f16_to_float(float_to_f16(*(row(t) + outlier_columns_[o]))));
        if (!finite) {
          ASSERT_TRUE(std::isnan(scale));
          ASSERT_EQ(zero, 0);
          for (const int code : codes) ASSERT_EQ(code, 0);
          return;
        }
        float step = (hi - lo) / static_cast<float>(top);
        if (step == 0) {
          lo = -1;
          step = 2.0f / static_cast<float>(top);
        }
        ASSERT_EQ(scale, step) << t;
        ASSERT_EQ(zero, std::lrint(-lo / step)) << t;
        for (size_t j = 0; j < codes.size(); ++j) {
          const int code = static_cast<int>(std::lrint(*(row(t) + integer_columns_[j]) / step)) + zero;
          ASSERT_EQ(codes[j], std::clamp(code, 0, top)) << "token " << t << " column " << integer_columns_[j];
        }
      });
}

TEST_P(QuantizeStep, NormsAreAddedToTheResidualAndQuantized) {
  std::mt19937 generator(2);
  const auto count = static_cast<size_t>(shape_.tokens) * shape_.k;
  const std::vector<float> before = random_rows(shape_.tokens, 3);
  DeviceArray<float> residual(before);
  const DeviceArray<float> weight(random_rows(1, 4));
  const DeviceArray<uint16_t> update(random_halves(count, generator));
  for (const bool updated : {false, true}) {
    const cuda::NormStep step = {residual.device(),
                                 updated ? reinterpret_cast<const __half*>(update.device()) : nullptr,
                                 residual.device(), weight.device(), 1e-5f};
    const auto after = [&](int t, int i) {
      const size_t at = static_cast<size_t>(t) * shape_.k + static_cast<size_t>(i);
      return before[at] + (updated ? f16_to_float(update.host()[at]) : 0.0f);
    };
    run(
        step,
        [&](int t, float scale, int zero, const std::vector<int>& codes, const std::vector<float>& outliers) {
          double squares = 0;
          for (int i = 0; i < shape_.k; ++i) squares += double{after(t, i)} * after(t, i);
          std::vector<double> x;
          for (int i = 0; i < shape_.k; ++i) {
            x.push_back(after(t, i) / std::sqrt(squares / shape_.k + 1e-5) *
                        weight.host()[static_cast<size_t>(i)]);
          }
          expect_close(x, 1e-5, scale, zero, codes, outliers);
        },
        [&] {
          residual.host() = before;
          residual.upload();
        });
    residual.download();
    for (int t = 0; t < shape_.tokens; ++t) {
      for (int i = 0; i < shape_.k; ++i)
        ASSERT_EQ(residual.host()[static_cast<size_t>(t) * shape_.k + i], after(t, i)) << t << " " << i;
    }
  }
}

TEST_P(QuantizeStep, GatesAreQuantized) {
  std::mt19937 generator(5);
  const DeviceArray<uint16_t> gate_up(
      random_halves(2 * static_cast<size_t>(shape_.tokens) * shape_.k, generator, 4));
  run(cuda::GateStep{reinterpret_cast<const __half*>(gate_up.device())},
      [&](int t, float scale, int zero, const std::vector<int>& codes, const std::vector<float>& outliers) {
        std::vector<double> x;
        for (int i = 0; i < shape_.k; ++i) {
          const size_t at = 2 * static_cast<size_t>(t) * shape_.k + static_cast<size_t>(i);
          const double gate = f16_to_float(gate_up.host()[at]),
                       up = f16_to_float(gate_up.host()[at + static_cast<size_t>(shape_.k)]);
          x.push_back(gate / (1 + std::exp(-gate)) * up);
        }
        expect_close(x, 1e-5, scale, zero, codes, outliers);
      });
}

INSTANTIATE_TEST_SUITE_P(Shapes, QuantizeStep,
                         ::testing::Values(Shape{8, 0, 1, 4}, Shape{64, 1, 6, 8}, Shape{576, 64, 7, 4},
                                           Shape{1536, 0, 33, 8}, Shape{2056, 33, 2, 8},
                                           Shape{4096, 256, 70, 4}, Shape{8192, 256, 3, 4},
                                           Shape{11008, 688, 1, 8}, Shape{11008, 688, 65, 8},
                                           Shape{14336, 896, 8, 8}, Shape{28672, 1792, 1, 8},
                                           Shape{28672, 1792, 33, 8}, Shape{16392, 7, 9, 4},
                                           Shape{32768, 0, 9, 4}));

}  // namespace
}  // namespace nibble::quik_cuda
