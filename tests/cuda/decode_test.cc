// The GPU's products of 4-bit weights and FP16 tokens against plain loops in FP64. Skipped where there is no
// GPU.
#include "formats/group_int/cuda/decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "backend/cuda/device.h"
#include "base/half.h"
#include "cases/linear_cases.h"
#include "cuda/gpu.h"
#include "formats/group_int/cuda/choose.h"
#include "formats/group_int/cuda/decode_layout.h"
#include "formats/group_int/cuda/expand.h"
#include "formats/group_int/cuda/plain.h"
#include "formats/group_int/cuda/tile.h"

namespace nibble::group_int_cuda {
namespace {

// A linear on the GPU, and tokens.
struct Operands {
  DecodeShape shape;
  int tokens = 0;
  std::vector<float> weight, bias;  // [n, k] as the format says, [n]
  std::vector<uint16_t> x;          // [tokens, k]
  int64_t y_stride = 0;             // elements between tokens of y, more than n
  cuda::Buffer device_weight, device_bias, device_x, device_y;

  Operands(int64_t n, int64_t k, int64_t group_size, int tokens_) : tokens(tokens_) {
    cases::LinearCase linear_case = {n, k, 0, tokens};
    const PackedLinear linear =
        find_format("group_int")
            ->pack(cases::make_weight(linear_case, {.weight_bits = 4, .group_size = group_size}, false),
                   "linear");
    shape = decode_shape(linear);
    const std::vector<uint8_t> packed = pack_for_decode(linear);
    weight.resize(static_cast<size_t>(n * k));
    linear.format->dequantize(linear, weight.data());
    std::mt19937 generator(7);
    std::normal_distribution<float> normal;
    x.resize(static_cast<size_t>(tokens * k));
    for (uint16_t& value : x) value = float_to_f16(normal(generator));
    bias.resize(static_cast<size_t>(n));
    for (float& value : bias) value = normal(generator);
    device_weight = cuda::Buffer(packed.size());
    device_weight.upload(packed.data(), packed.size());
    device_bias = cuda::Buffer(4 * bias.size());
    device_bias.upload(bias.data(), 4 * bias.size());
    device_x = cuda::Buffer(2 * x.size());
    device_x.upload(x.data(), 2 * x.size());
    y_stride = n + (n % 2 == 0 ? 8 : 7);
    device_y = cuda::Buffer(static_cast<size_t>(2 * tokens * y_stride));
  }

  // Weights as a kernel multiplies them.
  std::vector<float> rounded_weight() const {
    std::vector<float> rounded = weight;
    for (float& w : rounded) w = f16_to_float(float_to_f16(w));
    return rounded;
  }

  DecodeProblem problem(bool with_bias) const {
    return {.weights = device_weight.as<uint8_t>(),
            .x = device_x.as<__half>(),
            .y = device_y.as<__half>(),
            .y_stride = y_stride,
            .bias = with_bias ? device_bias.as<float>() : nullptr,
            .n = static_cast<int>(shape.n),
            .k = static_cast<int>(shape.k),
            .tokens = tokens,
            .scales_per_block = static_cast<int>(shape.scales_per_block)};
  }

  struct Expected {
    double sum, bound;
  };
  // FP32 sums, then one rounding to F16.
  std::vector<Expected> expect(const std::vector<float>& w, bool with_bias) const {
    std::vector<float> values(x.size());
    for (size_t i = 0; i < x.size(); ++i) values[i] = f16_to_float(x[i]);
    std::vector<Expected> expected;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t row = 0; row < shape.n; ++row) {
        double sum = with_bias ? bias[static_cast<size_t>(row)] : 0.0, magnitude = std::fabs(sum);
        const float* const a = values.data() + t * shape.k;
        const float* const b = w.data() + row * shape.k;
        for (int64_t j = 0; j < shape.k; ++j) {
          const double product = double{a[j]} * double{b[j]};
          sum += product;
          magnitude += std::fabs(product);
        }
        expected.push_back({sum, 4.0 * static_cast<double>(shape.k) * 0x1p-24 * magnitude +
                                     std::fabs(sum) * 0x1p-11 + 0x1p-24});
      }
    }
    return expected;
  }

  // Fills y with NaN: every element must be written, and none beyond a token's.
  void spoil() {
    cuda::check(cudaMemset(device_y.data(), 0x7F, device_y.bytes()), "spoiling");
    cuda::check(cudaDeviceSynchronize(), "spoiling");
  }
  // [tokens, n]
  std::vector<uint16_t> results() const {
    std::vector<uint16_t> all(static_cast<size_t>(tokens * y_stride)), y;
    device_y.download(all.data(), 2 * all.size());
    for (int64_t t = 0; t < tokens; ++t) {
      const auto row = all.begin() + t * y_stride;
      y.insert(y.end(), row, row + shape.n);
      EXPECT_EQ(std::count(row + shape.n, row + y_stride, 0x7F7F), y_stride - shape.n) << "token " << t;
    }
    return y;
  }
};

void compare(const std::vector<uint16_t>& got, const std::vector<Operands::Expected>& expected, int64_t n) {
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(f16_to_float(got[i]), expected[i].sum, expected[i].bound)
        << "token " << static_cast<int64_t>(i) / n << " row " << static_cast<int64_t>(i) % n;
  }
}

class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }
};

struct DecodeCase {
  int64_t n, k, group_size;
  int tokens, stages;
};

class Decode : public OnDevice, public ::testing::WithParamInterface<DecodeCase> {};

TEST_P(Decode, EqualsPlainLoops) {
  const auto [n, k, group_size, tokens, stages] = GetParam();
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  Operands operands(n, k, group_size, tokens);
  for (const bool bias : {false, true}) {
    const auto expected = operands.expect(operands.weight, bias);
    std::vector<uint16_t> first;
    for (int repeat = 0; repeat < 3; ++repeat) {
      operands.spoil();
      cuda::check(
          launch_decode(operands.problem(bias), {.stages = stages}, device.multiprocessors, stream.get()),
          "launching");
      stream.synchronize();
      const std::vector<uint16_t> got = operands.results();
      if (repeat == 0) {
        compare(got, expected, n);
        first = got;
      }
      EXPECT_EQ(got, first);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Decode,
                         ::testing::Values(DecodeCase{16, 128, 128, 1, 10}, DecodeCase{17, 136, 0, 1, 2},
                                           DecodeCase{48, 1152, 128, 2, 3}, DecodeCase{33, 1096, 128, 3, 2},
                                           DecodeCase{4096, 4096, 128, 1, 10},
                                           DecodeCase{5120, 1024, 0, 4, 10}, DecodeCase{64, 13824, 128, 4, 6},
                                           DecodeCase{4100, 2048, 128, 4, 16}, DecodeCase{1, 8, 0, 4, 10},
                                           DecodeCase{48, 1152, 64, 1, 3}, DecodeCase{33, 1096, 64, 4, 2},
                                           DecodeCase{4096, 4096, 64, 2, 8}));

// One token whose values a step yields on the way.
class DecodeFromSteps : public OnDevice, public ::testing::WithParamInterface<DecodeCase> {
 protected:
  // Of an input with these values, which the kernel rounds to F16.
  static void run(Operands& operands, const cuda::InputStep& step, const std::vector<double>& x, int stages) {
    const cuda::Device device = cuda::open_device(0);
    const cuda::Stream stream;
    const DecodeShape& shape = operands.shape;
    ASSERT_TRUE(decode_takes(step, static_cast<int>(shape.k)));
    operands.spoil();
    cuda::check(launch_decode_from(step, operands.problem(true), {.stages = stages}, device.multiprocessors,
                                   stream.get()),
                "launching");
    stream.synchronize();
    std::vector<Operands::Expected> expected;
    for (int64_t row = 0; row < shape.n; ++row) {
      double sum = operands.bias[static_cast<size_t>(row)], magnitude = 0;
      for (int64_t i = 0; i < shape.k; ++i) {
        const double product =
            operands.weight[static_cast<size_t>(row * shape.k + i)] * x[static_cast<size_t>(i)];
        sum += product;
        magnitude += std::fabs(product);
      }
      // Rounding each x, and what it takes to compute it; the sums; rounding y.
      expected.push_back(
          {sum, (0x1p-11 + 0x1p-18 + 4.0 * static_cast<double>(shape.k) * 0x1p-24) * magnitude +
                    std::fabs(sum) * 0x1p-11 + 0x1p-24});
    }
    compare(operands.results(), expected, shape.n);
  }
  template <typename T>
  static cuda::Buffer uploaded(const std::vector<T>& values) {
    cuda::Buffer buffer(sizeof(T) * values.size());
    buffer.upload(values.data(), buffer.bytes());
    return buffer;
  }
  static std::vector<float> random(size_t count, uint32_t seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
  }
  static std::vector<uint16_t> random_halves(size_t count, uint32_t seed) {
    std::vector<uint16_t> halves;
    for (const float value : random(count, seed)) halves.push_back(float_to_f16(value));
    return halves;
  }
};

TEST_P(DecodeFromSteps, Norms) {
  const DecodeCase c = GetParam();
  Operands operands(c.n, c.k, c.group_size, 1);
  const auto columns = static_cast<size_t>(c.k);
  const std::vector<float> residual = random(columns, 1), weight = random(columns, 2);
  const std::vector<uint16_t> update = random_halves(columns, 3);
  const cuda::Buffer device_residual = uploaded(residual), device_weight = uploaded(weight),
                     device_update = uploaded(update);
  for (const bool updated : {false, true}) {
    const cuda::Buffer sum = uploaded(std::vector<float>(columns, NAN));
    std::vector<float> after = residual;
    for (size_t i = 0; updated && i < columns; ++i) after[i] += f16_to_float(update[i]);
    double squares = 0;
    for (const float value : after) squares += double{value} * value;
    std::vector<double> x;
    for (size_t i = 0; i < columns; ++i)
      x.push_back(after[i] / std::sqrt(squares / static_cast<double>(columns) + 1e-5) * weight[i]);
    run(operands,
        cuda::NormStep{.residual = device_residual.as<float>(),
                       .update = updated ? device_update.as<__half>() : nullptr,
                       .sum = sum.as<float>(),
                       .weight = device_weight.as<float>(),
                       .epsilon = 1e-5f},
        x, c.stages);
    std::vector<float> got(columns);
    sum.download(got.data(), sum.bytes());
    EXPECT_EQ(got, after);
  }
}

TEST_P(DecodeFromSteps, GatesAndFloats) {
  const DecodeCase c = GetParam();
  Operands operands(c.n, c.k, c.group_size, 1);
  const auto columns = static_cast<size_t>(c.k);
  const std::vector<uint16_t> gate_up = random_halves(2 * columns, 4);
  const std::vector<float> floats = random(columns, 5);
  const cuda::Buffer device_gate_up = uploaded(gate_up), device_floats = uploaded(floats);
  std::vector<double> x;
  for (size_t i = 0; i < columns; ++i) {
    const double gate = f16_to_float(gate_up[i]);
    x.push_back(gate / (1 + std::exp(-gate)) * f16_to_float(gate_up[columns + i]));
  }
  run(operands, cuda::GateStep{device_gate_up.as<__half>()}, x, c.stages);
  run(operands, cuda::FloatStep{device_floats.as<float>()}, {floats.begin(), floats.end()}, c.stages);
}

INSTANTIATE_TEST_SUITE_P(Shapes, DecodeFromSteps,
                         ::testing::Values(DecodeCase{16, 128, 128, 1, 10}, DecodeCase{17, 136, 0, 1, 2},
                                           DecodeCase{33, 1096, 128, 1, 2}, DecodeCase{4096, 4096, 128, 1, 8},
                                           DecodeCase{64, 8192, 0, 1, 6}, DecodeCase{1, 8, 0, 1, 10},
                                           DecodeCase{48, 1152, 64, 1, 3}, DecodeCase{5120, 4096, 64, 1, 8}));

TEST(DecodeSteps, WiderNormsAreNotTaken) {
  EXPECT_FALSE(decode_takes(cuda::NormStep{}, 8200));
  EXPECT_TRUE(decode_takes(cuda::GateStep{}, 28672));
}

class PlainDecode : public OnDevice, public ::testing::WithParamInterface<DecodeCase> {};

TEST_P(PlainDecode, EqualsPlainLoops) {
  const DecodeCase c = GetParam();
  cuda::open_device(0);
  const cuda::Stream stream;
  Operands operands(c.n, c.k, c.group_size, c.tokens);
  for (const bool bias : {false, true}) {
    std::vector<uint16_t> first;
    for (int repeat = 0; repeat < 2; ++repeat) {
      operands.spoil();
      launch_plain(operands.problem(bias), stream.get());
      stream.synchronize();
      const std::vector<uint16_t> got = operands.results();
      if (repeat == 0) {
        compare(got, operands.expect(operands.weight, bias), c.n);
        first = got;
      }
      EXPECT_EQ(got, first);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, PlainDecode,
                         ::testing::Values(DecodeCase{16, 128, 128, 1}, DecodeCase{17, 136, 0, 5},
                                           DecodeCase{48, 1152, 128, 8}, DecodeCase{33, 1096, 64, 9},
                                           DecodeCase{512, 4096, 128, 17}, DecodeCase{1, 8, 0, 32},
                                           DecodeCase{64, 13824, 64, 31}));

class FewTokens : public OnDevice, public ::testing::WithParamInterface<DecodeCase> {};

TEST_P(FewTokens, EqualPlainLoopsWithEveryPlan) {
  const DecodeCase c = GetParam();
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  Operands operands(c.n, c.k, c.group_size, c.tokens);
  for (const bool bias : {false, true}) {
    const auto expected = operands.expect(operands.weight, bias);
    const DecodeProblem problem = operands.problem(bias);
    int plans = 0;
    for (const int split : {2, 4, 8}) {
      if (!few_fits(problem, {split})) continue;
      ++plans;
      SCOPED_TRACE("split " + std::to_string(split));
      std::vector<uint16_t> first;
      for (int repeat = 0; repeat < 2; ++repeat) {
        operands.spoil();
        cuda::check(launch_few(problem, {split}, device.multiprocessors, stream.get()), "launching");
        stream.synchronize();
        const std::vector<uint16_t> got = operands.results();
        if (repeat == 0) {
          compare(got, expected, c.n);
          if (HasFatalFailure()) return;
          first = got;
        }
        EXPECT_EQ(got, first);
      }
    }
    EXPECT_GT(plans, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FewTokens,
                         ::testing::Values(DecodeCase{16, 256, 128, 1}, DecodeCase{1, 136, 0, 5},
                                           DecodeCase{300, 1096, 0, 5}, DecodeCase{257, 1096, 64, 16},
                                           DecodeCase{4096, 1024, 128, 12}, DecodeCase{64, 14336, 128, 9},
                                           DecodeCase{20000, 640, 64, 8}, DecodeCase{33000, 520, 128, 16}));

struct TileCase {
  int64_t n, k, group_size;
  int tokens;
  bool bias = false;
};

class TileProduct : public OnDevice, public ::testing::WithParamInterface<TileCase> {};

TEST_P(TileProduct, EqualsPlainLoopsWithEveryTile) {
  const auto [n, k, group_size, tokens, bias] = GetParam();
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  Operands operands(n, k, group_size, tokens);
  const auto rounded = operands.expect(operands.rounded_weight(), bias),
             exact = operands.expect(operands.weight, bias);
  const cuda::Buffer workspace(tile_workspace_bytes(device.multiprocessors));
  cuda::Buffer flags(sizeof(uint32_t) * kTileFlags);
  const std::vector<uint32_t> zeros(kTileFlags);
  flags.upload(zeros.data(), flags.bytes());
  for (const TileSize& size : tile_sizes()) {
    struct Cluster {
      int split, share;
    };
    for (const auto [split, share] : {Cluster{1, 1}, {1, 2}, {2, 1}, {3, 1}, {5, 1}, {8, 1}}) {
      if (split > operands.shape.blocks() || (share > 1 && !can_share_tokens(size))) continue;
      SCOPED_TRACE("tile of " + std::to_string(size.rows) + " x " + std::to_string(size.tokens) + ", split " +
                   std::to_string(split) + ", share " + std::to_string(share));
      std::vector<uint16_t> first;
      for (int repeat = 0; repeat < 2; ++repeat) {
        operands.spoil();
        cuda::check(
            launch_tile({.weights = operands.device_weight.as<uint8_t>(),
                         .x = operands.device_x.as<__half>(),
                         .y = operands.device_y.as<__half>(),
                         .y_stride = operands.y_stride,
                         .bias = bias ? operands.device_bias.as<float>() : nullptr,
                         .n = static_cast<int>(n),
                         .k = static_cast<int>(k),
                         .tokens = tokens,
                         .scales_per_block = static_cast<int>(operands.shape.scales_per_block),
                         .workspace = workspace.data(),
                         .flags = flags.as<uint32_t>()},
                        {.size = size, .split = split, .share = share}, device.multiprocessors, stream.get()),
            "launching");
        stream.synchronize();
        const std::vector<uint16_t> got = operands.results();
        if (repeat == 0) {
          compare(got, size.tokens <= kMostScaledSums ? exact : rounded, n);
          if (HasFatalFailure()) return;
          first = got;
        }
        EXPECT_EQ(got, first);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, TileProduct,
                         ::testing::Values(TileCase{16, 128, 128, 1}, TileCase{1, 8, 0, 3},
                                           TileCase{300, 1096, 0, 5, true}, TileCase{257, 1096, 64, 16},
                                           TileCase{256, 4096, 128, 17}, TileCase{512, 1152, 64, 70, true},
                                           TileCase{1000, 640, 128, 300}, TileCase{4096, 1024, 128, 33},
                                           TileCase{64, 14336, 128, 129, true},
                                           TileCase{2561, 384, 0, 260, true}, TileCase{20000, 640, 128, 20},
                                           TileCase{9000, 520, 64, 530, true}));

TEST(Choose, OnlyWhatCanRun) {
  for (int tokens = 1; tokens <= 5000; tokens = tokens < 40 ? tokens + 1 : tokens * 3 / 2) {
    for (const int n : {1, 16, 576, 4096, 57344}) {
      for (const int k : {8, 128, 576, 4096, 28672}) {
        for (const int scales : {1, 2}) {
          const Choice choice = choose_packed(tokens, n, k, scales, 132);
          if (choice.method == Method::kDecode) {
            EXPECT_LE(tokens, kMaximumDecodeTokens);
            EXPECT_LE(decode_shared_bytes({.n = n, .k = k, .tokens = tokens, .scales_per_block = scales},
                                          choice.decode),
                      222 * 1024);
            continue;
          }
          if (choice.method == Method::kFew) {
            EXPECT_LE(tokens, kMaximumFewTokens);
            EXPECT_TRUE(few_fits({.n = n, .k = k, .tokens = tokens, .scales_per_block = scales}, choice.few));
            continue;
          }
          EXPECT_EQ(std::count(tile_sizes().begin(), tile_sizes().end(), choice.tile.size), 1);
          EXPECT_GE(choice.tile.split, 1);
          EXPECT_LE(choice.tile.split, std::min(8, (k + 127) / 128));
          EXPECT_TRUE(choice.tile.share == 1 || (choice.tile.share == 2 && choice.tile.split == 1 &&
                                                 can_share_tokens(choice.tile.size)));
        }
      }
    }
  }
  for (const int k : {576, 4096, 28672}) {
    for (const int n : {16, 1000, 57344}) {
      const int rows = expand_slice_rows(n, k, size_t{64} << 20);
      EXPECT_TRUE(rows == n || rows % 16 == 0);
      EXPECT_LE(size_t{2} * rows * k, size_t{64} << 20);
    }
  }
}

TEST_F(OnDevice, ExpansionsAreTheFormatsWeights) {
  const cuda::Device device = cuda::open_device(0);
  const cuda::Stream stream;
  for (const TileCase& one : {TileCase{16, 128, 128, 1}, TileCase{100, 1096, 64, 1},
                              TileCase{333, 2048, 0, 1}, TileCase{1, 8, 0, 1}}) {
    Operands operands(one.n, one.k, one.group_size, 1);
    const int first_row = one.n > 96 ? 32 : 0, rows = static_cast<int>(one.n) - first_row;
    cuda::Buffer w(static_cast<size_t>(2 * rows * one.k));
    cuda::check(launch_expand({.weights = operands.device_weight.as<uint8_t>(),
                               .w = w.as<__half>(),
                               .n = static_cast<int>(one.n),
                               .k = static_cast<int>(one.k),
                               .scales_per_block = static_cast<int>(operands.shape.scales_per_block),
                               .first_row = first_row,
                               .rows = rows},
                              device.multiprocessors, stream.get()),
                "launching");
    stream.synchronize();
    std::vector<uint16_t> got(static_cast<size_t>(rows * one.k));
    w.download(got.data(), 2 * got.size());
    for (size_t i = 0; i < got.size(); ++i) {
      // As numbers: there are two zeros.
      ASSERT_EQ(f16_to_float(got[i]),
                f16_to_float(float_to_f16(operands.weight[i + static_cast<size_t>(first_row * one.k)])));
    }
  }
}

}  // namespace
}  // namespace nibble::group_int_cuda
