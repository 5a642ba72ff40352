// The quik format itself: its bytes, what it refuses, and inputs at the edges of its arithmetic. Kernels
// against plain loops on ordinary shapes are in tests/conformance.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "cases/linear_cases.h"
#include "format_testing.h"

namespace nibble {
namespace {

using testing::enabled_kernels;
using testing::refusal_of;
using testing::values_of;

const LinearFormat& quik() { return *find_format("quik"); }

QuantizedWeight small_weight(int weight_bits, int activation_bits) {
  QuantizedWeight weight;
  weight.out_features = 2;
  weight.in_features = 6;
  weight.weight_bits = weight_bits;
  weight.activation_bits = activation_bits;
  weight.codes = {1, -2, 7, -8, 3, -1, 0, 5, -5, 2};
  weight.scales = {0.5f, 0.25f};
  weight.outlier_columns = {2};
  weight.outlier_weights = {1.5f, -3.0f};
  weight.bias = {10.0f, 20.0f};
  return weight;
}

TEST(QuikFormat, CanonicalBytesOfFourBits) {
  const PackedLinear linear = quik().pack(small_weight(4, 4), "a");
  EXPECT_EQ(values_of<uint8_t>(linear, "codes"), (std::vector<uint8_t>{0xE1, 0x87, 0x03, 0x0F, 0xB5, 0x02}));
  EXPECT_EQ(linear.find("codes")->shape(), (Shape{2, 3}));
  EXPECT_EQ(linear.find("codes")->dtype(), DType::kU8);
  EXPECT_EQ(values_of<float>(linear, "scales"), (std::vector<float>{0.5f, 0.25f}));
  EXPECT_EQ(values_of<int32_t>(linear, "outlier_columns"), (std::vector<int32_t>{2}));
  EXPECT_EQ(values_of<uint16_t>(linear, "outlier_weights"), (std::vector<uint16_t>{0x3e00, 0xc200}));
  EXPECT_EQ(values_of<float>(linear, "bias"), (std::vector<float>{10.0f, 20.0f}));
  EXPECT_EQ(linear.parameters,
            (FormatParameters{{"activation_bits", 4}, {"outlier_columns", 1}, {"weight_bits", 4}}));
  EXPECT_EQ(linear.weight_bytes(), 6u + 8u + 4u + 4u);
  EXPECT_EQ(quik().arithmetic(linear), "int4xint4->int32");
  EXPECT_EQ(quik().code_bits(linear), 4);
  EXPECT_EQ(quik().multiply_adds(linear), (std::map<int, double>{{4, 10.0}, {16, 2.0}}));
}

TEST(QuikFormat, CanonicalBytesOfEightBits) {
  QuantizedWeight weight = small_weight(8, 8);
  weight.codes[3] = -128;
  weight.bias.clear();
  const PackedLinear linear = quik().pack(weight, "a");
  EXPECT_EQ(values_of<int8_t>(linear, "codes"), weight.codes);
  EXPECT_EQ(linear.find("codes")->shape(), (Shape{2, 5}));
  EXPECT_EQ(linear.find("codes")->dtype(), DType::kI8);
  EXPECT_EQ(linear.find("bias"), nullptr);
  EXPECT_EQ(quik().arithmetic(linear), "int8xint8->int32");
}

TEST(QuikFormat, HandComputedOutputs) {
  // x over the integer columns (0 1 3 4 5) spans -1..2: s = 3/15, z = 5, codes 5 15 0 10 8 (1.5/0.2
  // -> 7.5000001 -> 8: see z).
  const std::vector<float> x = {0.0f, 2.0f, 100.0f, -1.0f, 1.0f, 0.6f};
  const PackedLinear linear = quik().pack(small_weight(4, 4), "a");
  // Row 0: 0.2 * 0.5 * (0*1 + 10*-2 + -5*7 + 5*-8 + 3*3) + 1.5 * 100 + 10; row 1 alike.
  const double expected[] = {0.2 * 0.5 * (-20 - 35 - 40 + 9) + 150 + 10,
                             0.2 * 0.25 * (0 - 25 - 25 + 6) - 300 + 20};
  ThreadPool pool(1);
  Scratch scratch;
  const PackedLinear* pointer = &linear;
  for (const LinearKernel* kernel : enabled_kernels(linear)) {
    const auto op = kernel->prepare({&pointer, 1}, pool);
    float y[2];
    op->forward(x.data(), 1, y, 2, scratch, pool);
    EXPECT_NEAR(y[0], expected[0], 1e-4) << kernel->name;
    EXPECT_NEAR(y[1], expected[1], 1e-4) << kernel->name;
    std::vector<uint8_t> codes;
    std::vector<int32_t> sums;
    ASSERT_TRUE(op->integer_accumulators(x.data(), 1, &codes, &sums, scratch, pool));
    EXPECT_EQ(codes, (std::vector<uint8_t>{5, 15, 0, 10, 8})) << kernel->name;
    EXPECT_EQ(sums, (std::vector<int32_t>{5 - 30 + 0 - 80 + 24, -5 + 0 + 0 - 50 + 16})) << kernel->name;
    EXPECT_GT(op->prepared_bytes(), 0u);
  }
}

struct PackRefusal {
  const char* expected;
  std::function<void(QuantizedWeight&)> spoil;
};

TEST(QuikFormat, PackRefusesWhatItCannotHold) {
  const PackRefusal refusals[] = {
      {"weights of 4 or 8 bits, not 3", [](QuantizedWeight& w) { w.weight_bits = 3; }},
      {"activations of 4 or 8 bits, not 16", [](QuantizedWeight& w) { w.activation_bits = 16; }},
      {"not groups of 128", [](QuantizedWeight& w) { w.group_size = 128; }},
      {"symmetric",
       [](QuantizedWeight& w) {
         w.zeros = {0.0f, 0.0f};
       }},
      {"9 codes given", [](QuantizedWeight& w) { w.codes.pop_back(); }},
      {"3 scales given", [](QuantizedWeight& w) { w.scales.push_back(1.0f); }},
      {"1 outlier weights given", [](QuantizedWeight& w) { w.outlier_weights.pop_back(); }},
      {"bias of 1 values", [](QuantizedWeight& w) { w.bias.pop_back(); }},
      {"code 8 does not fit into 4 bits", [](QuantizedWeight& w) { w.codes[4] = 8; }},
      {"code -9 does not fit into 4 bits", [](QuantizedWeight& w) { w.codes[4] = -9; }},
      {"no finite 16-bit float", [](QuantizedWeight& w) { w.outlier_weights[1] = 70000.0f; }},
      {"outlier_columns", [](QuantizedWeight& w) { w.outlier_columns[0] = 6; }},
      {"scales", [](QuantizedWeight& w) { w.scales[0] = NAN; }},
      {"cannot hold a linear of 0 x 6", [](QuantizedWeight& w) { w.out_features = 0; }},
  };
  for (const PackRefusal& refusal : refusals) {
    QuantizedWeight weight = small_weight(4, 4);
    refusal.spoil(weight);
    const std::string message = refusal_of([&] { quik().pack(weight, "layers.3.up_proj"); });
    EXPECT_NE(message.find(refusal.expected), std::string::npos) << "message: '" << message << "'";
    EXPECT_NE(message.find("layers.3.up_proj"), std::string::npos) << "message: '" << message << "'";
  }
}

struct Corruption {
  const char* expected[2];  // parts of the message
  std::function<void(PackedLinear&)> spoil;
};

Tensor halves(const Shape& shape, uint16_t bits) {
  Tensor tensor = Tensor::empty(DType::kF16, shape);
  for (int64_t i = 0; i < tensor.elements(); ++i) tensor.mutable_data<uint16_t>()[i] = bits;
  return tensor;
}

TEST(QuikFormat, ValidateRefusesCorruptedTensors) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Corruption corruptions[] = {
      {{"up.codes", "missing"}, [](PackedLinear& l) { l.tensors.erase("codes"); }},
      {{"up.codes", "[2, 4]"},
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kU8, {2, 4});
       }},
      {{"up.codes", "[3, 3]"},
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kU8, {3, 3});
       }},
      {{"up.codes", "I8"},
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kI8, {2, 3});
       }},
      {{"up.codes", "nibble"}, [](PackedLinear& l) { l.tensors["codes"].mutable_data<uint8_t>()[5] = 0x12; }},
      {{"up.scales", "missing"}, [](PackedLinear& l) { l.tensors.erase("scales"); }},
      {{"up.scales", "[1]"}, [](PackedLinear& l) { l.tensors["scales"] = Tensor::zeros(DType::kF32, {1}); }},
      {{"up.scales", "F16"}, [](PackedLinear& l) { l.tensors["scales"] = halves({2}, 0x3c00); }},
      {{"up.scales", "nan"}, [&](PackedLinear& l) { l.tensors["scales"].mutable_data<float>()[1] = nan; }},
      {{"up.scales", "-1"}, [](PackedLinear& l) { l.tensors["scales"].mutable_data<float>()[0] = -1.0f; }},
      {{"up.outlier_columns", "missing"}, [](PackedLinear& l) { l.tensors.erase("outlier_columns"); }},
      {{"up.outlier_columns", "is 7"},
       [](PackedLinear& l) { l.tensors["outlier_columns"].mutable_data<int32_t>()[1] = 7; }},
      {{"up.outlier_columns", "-1"},
       [](PackedLinear& l) { l.tensors["outlier_columns"].mutable_data<int32_t>()[0] = -1; }},
      {{"up.outlier_columns", "ascending"},
       [](PackedLinear& l) { l.tensors["outlier_columns"].mutable_data<int32_t>()[1] = 2; }},
      {{"up.outlier_columns", "ascending"},
       [](PackedLinear& l) {
         l.tensors["outlier_columns"] = Tensor::copy_of<int32_t>({2}, std::vector<int32_t>{4, 2});
       }},
      {{"up.outlier_columns", "I64"},
       [](PackedLinear& l) {
         l.tensors["outlier_columns"] = Tensor::copy_of<int64_t>({2}, std::vector<int64_t>{2, 4});
       }},
      {{"up.outlier_weights", "[2, 1]"},
       [](PackedLinear& l) {
         l.tensors["outlier_weights"] = halves({2, 1}, 0);
       }},
      {{"up.outlier_weights", "inf"},
       [](PackedLinear& l) {
         l.tensors["outlier_weights"] = halves({2, 2}, 0x7c00);
       }},
      {{"up.bias", "[3]"}, [](PackedLinear& l) { l.tensors["bias"] = Tensor::zeros(DType::kF32, {3}); }},
      {{"up.bias", "nan"}, [&](PackedLinear& l) { l.tensors["bias"].mutable_data<float>()[0] = nan; }},
      {{"up.extra", "does not have"},
       [](PackedLinear& l) { l.tensors["extra"] = Tensor::zeros(DType::kF32, {1}); }},
      {{"up", "weight_bits is 5"}, [](PackedLinear& l) { l.parameters["weight_bits"] = 5; }},
      {{"up", "activation_bits is -1"}, [](PackedLinear& l) { l.parameters.erase("activation_bits"); }},
      {{"up", "outlier_columns is 4"}, [](PackedLinear& l) { l.parameters["outlier_columns"] = 4; }},
      {{"up", "outlier_columns is -9"}, [](PackedLinear& l) { l.parameters["outlier_columns"] = -9; }},
      {{"up.codes", "[2, 3]"}, [](PackedLinear& l) { l.parameters["outlier_columns"] = 0; }},
      {{"up", "group_size"}, [](PackedLinear& l) { l.parameters["group_size"] = 128; }},
      {{"up", "at most 65536"}, [](PackedLinear& l) { l.in_features = 70000; }},
      {{"up", "0 x 7"}, [](PackedLinear& l) { l.out_features = 0; }},
  };
  QuantizedWeight weight = small_weight(4, 4);
  weight.in_features = 7;
  weight.outlier_columns = {2, 4};
  weight.outlier_weights = {1.0f, 2.0f, 3.0f, 4.0f};
  for (const Corruption& corruption : corruptions) {
    PackedLinear linear = quik().pack(weight, "up");
    ASSERT_EQ(refusal_of([&] { quik().validate(linear); }), "");
    corruption.spoil(linear);
    const std::string message = refusal_of([&] { quik().validate(linear); });
    for (const char* expected : corruption.expected) {
      EXPECT_NE(message.find(expected), std::string::npos)
          << "expected '" << expected << "' in '" << message << "'";
    }
  }
}

TEST(QuikFormat, FusesOnlyWhatSharesColumnsAndBits) {
  const PackedLinear base = quik().pack(small_weight(4, 4), "a");
  EXPECT_TRUE(quik().can_fuse(base, quik().pack(small_weight(4, 4), "b")));
  EXPECT_FALSE(quik().can_fuse(base, quik().pack(small_weight(4, 8), "b")));
  EXPECT_FALSE(quik().can_fuse(base, quik().pack(small_weight(8, 4), "b")));
  QuantizedWeight other = small_weight(4, 4);
  other.outlier_columns = {3};
  EXPECT_FALSE(quik().can_fuse(base, quik().pack(other, "b")));
  QuantizedWeight without_bias = small_weight(4, 4);
  without_bias.bias.clear();
  EXPECT_TRUE(quik().can_fuse(base, quik().pack(without_bias, "b")));
}

TEST(QuikKernels, TheFastestEnabledOneIsChosen) {
  const PackedLinear linear = quik().pack(small_weight(4, 4), "a");
  const KernelChoice choice = choose_kernel({&linear, linear.out_features});
  std::string expected = "quik-reference";
  for (const CpuPath path : kAllCpuPaths) {
    // Neither has a kernel of its own: VBMI's instructions gain QUIK nothing.
    if (path == CpuPath::kScalar || path == CpuPath::kAvx512Vbmi) continue;
    if (cpu_path_enabled(path)) expected = "quik-" + std::string(cpu_path_name(path));
  }
  EXPECT_EQ(choice.kernel->name, expected);
  for (const auto& [kernel, reason] : choice.refused) EXPECT_FALSE(reason.empty()) << kernel->name;
}

// Runs every enabled kernel on x and hands its codes, sums and outputs to `check`.
void on_every_kernel(
    const PackedLinear& linear, const std::vector<float>& x, int64_t tokens,
    const std::function<void(const std::vector<uint8_t>&, const std::vector<float>&)>& check) {
  ThreadPool pool(2);
  Scratch scratch;
  const PackedLinear* pointer = &linear;
  for (const LinearKernel* kernel : enabled_kernels(linear)) {
    SCOPED_TRACE(kernel->name);
    const auto op = kernel->prepare({&pointer, 1}, pool);
    std::vector<float> y(static_cast<size_t>(tokens * linear.out_features));
    op->forward(x.data(), tokens, y.data(), linear.out_features, scratch, pool);
    std::vector<uint8_t> codes;
    std::vector<int32_t> sums;
    ASSERT_TRUE(op->integer_accumulators(x.data(), tokens, &codes, &sums, scratch, pool));
    check(codes, y);
  }
}

TEST(QuikKernels, TokensThatAreNotFiniteGiveNaNAndNothingElse) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const cases::LinearCase shape{40, 150, 4, 20, true};
  for (const int bits : {4, 8}) {
    const PackedLinear linear = quik().pack(cases::make_weight(shape, {bits, bits}, true), "a");
    std::vector<float> x = cases::normal_floats(static_cast<size_t>(shape.tokens * shape.k), 3);
    x[2 * shape.k + 7] = nan;
    x[5 * shape.k + 148] = inf;
    x[9 * shape.k + 1] = -inf;
    x[11 * shape.k + 3] = 3e38f;  // finite, but the range is not
    x[11 * shape.k + 4] = -3e38f;
    x[17 * shape.k + 64] = -nan;
    const auto bad = [](int64_t token) {
      return token == 2 || token == 5 || token == 9 || token == 11 || token == 17;
    };
    on_every_kernel(
        linear, x, shape.tokens, [&](const std::vector<uint8_t>& codes, const std::vector<float>& y) {
          const int64_t k_int = shape.k - shape.outliers;
          for (int64_t t = 0; t < shape.tokens; ++t) {
            for (int64_t j = 0; j < k_int && bad(t); ++j) ASSERT_EQ(codes[t * k_int + j], 0) << "token " << t;
            for (int64_t row = 0; row < shape.n; ++row) {
              ASSERT_EQ(std::isnan(y[t * shape.n + row]), bad(t)) << "token " << t << ", row " << row;
            }
          }
        });
  }
}

// Values on, just below and just above the boundaries between codes, for steps of every size: where an
// estimate instead of the division would round differently.
TEST(QuikKernels, CodesAreTheIeeeOnesAtEveryBoundary) {
  std::mt19937 generator(11);
  std::uniform_real_distribution<float> mantissa(1.0f, 2.0f);
  for (const int bits : {4, 8}) {
    const int top = (1 << bits) - 1;
    const int64_t k = 3 * top + 70, tokens = 300;
    const cases::LinearCase shape{1, k, 0, tokens};
    const PackedLinear linear = quik().pack(cases::make_weight(shape, {bits, bits}, true), "a");
    std::vector<float> x(static_cast<size_t>(tokens * k));
    std::vector<uint8_t> expected;
    for (int64_t t = 0; t < tokens; ++t) {
      float* row = x.data() + t * k;
      const float width = std::ldexp(mantissa(generator), static_cast<int>(t % 250) - 130);
      const float lo = -width * static_cast<float>(t % 7) / 7.0f, hi = lo + width;
      const float s = (std::fmax(hi, 0.0f) - std::fmin(lo, 0.0f)) / static_cast<float>(top);
      for (int64_t j = 0; j < k; ++j) row[j] = 0.0f;
      row[0] = lo;
      row[k - 1] = hi;
      for (int i = 0; i < top; ++i) {
        const float boundary = (static_cast<float>(i) + 0.5f) * s + lo;
        const float between = boundary < lo ? lo : boundary > hi ? hi : boundary;
        row[1 + 3 * i] = between;
        row[2 + 3 * i] = std::fmax(std::nextafter(between, -INFINITY), lo);
        row[3 + 3 * i] = std::fmin(std::nextafter(between, INFINITY), hi);
      }
      float low = 0, high = 0;
      for (int64_t j = 0; j < k; ++j) {
        low = std::fmin(low, row[j]);
        high = std::fmax(high, row[j]);
      }
      float step = (high - low) / static_cast<float>(top);
      if (step == 0) {
        low = -1;
        step = 2.0f / static_cast<float>(top);
      }
      const float quotient = -low / step;
      const long zero = std::lrint(quotient);
      for (int64_t j = 0; j < k; ++j) {
        const float divided = row[j] / step;
        const long code = std::lrint(divided) + zero;
        expected.push_back(static_cast<uint8_t>(code < 0 ? 0 : code > top ? top : code));
      }
    }
    on_every_kernel(linear, x, tokens, [&](const std::vector<uint8_t>& codes, const std::vector<float>&) {
      ASSERT_EQ(codes.size(), expected.size());
      for (size_t i = 0; i < codes.size(); ++i) {
        ASSERT_EQ(codes[i], expected[i]) << "token " << i / static_cast<size_t>(k) << ", value " << x[i];
      }
    });
  }
}

TEST(QuikKernels, NoTokensIsNothingToDo) {
  const PackedLinear linear = quik().pack(small_weight(4, 4), "a");
  on_every_kernel(linear, {}, 0, [](const std::vector<uint8_t>& codes, const std::vector<float>& y) {
    EXPECT_TRUE(codes.empty());
    EXPECT_TRUE(y.empty());
  });
}

}  // namespace
}  // namespace nibble
