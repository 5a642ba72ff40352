// group_int: the layout byte by byte, refusals of broken tensors, and every kernel against plain loops in
// double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "base/half.h"
#include "formats/format.h"

namespace nibble {

extern const LinearFormat kGroupIntFormat;

namespace {

constexpr int kAllBits[] = {2, 3, 4, 8};

enum class Zeros { kNone, kInteger, kFractional };

struct Shape3 {
  int64_t n, k, group_size;
};

// A random weight whose scales are F16 numbers, so that packing keeps them as they are.
QuantizedWeight make_weight(const Shape3& shape, int bits, Zeros zeros, bool bias, unsigned seed) {
  std::mt19937 random(seed);
  QuantizedWeight weight;
  weight.out_features = shape.n;
  weight.in_features = shape.k;
  weight.weight_bits = bits;
  weight.group_size = shape.group_size;
  const int half = 1 << (bits - 1);
  std::uniform_int_distribution<int> code(-half, half - 1);
  weight.codes.resize(static_cast<size_t>(shape.n * shape.k));
  for (int8_t& value : weight.codes) value = static_cast<int8_t>(code(random));
  const int64_t groups = shape.group_size == 0 ? 1 : (shape.k + shape.group_size - 1) / shape.group_size;
  std::uniform_real_distribution<float> scale(0.001f, 0.1f);
  for (int64_t i = 0; i < shape.n * groups; ++i) {
    weight.scales.push_back(f16_to_float(float_to_f16(scale(random))));
    if (zeros == Zeros::kInteger) weight.zeros.push_back(static_cast<float>(code(random)));
    if (zeros == Zeros::kFractional) weight.zeros.push_back(static_cast<float>(code(random)) + 0.28125f);
  }
  std::normal_distribution<float> normal;
  if (bias) {
    for (int64_t i = 0; i < shape.n; ++i) weight.bias.push_back(normal(random));
  }
  return weight;
}

// W as the comment of QuantizedWeight defines it.
std::vector<double> plain_weight(const QuantizedWeight& weight) {
  const int64_t k = weight.in_features, group_size = weight.group_size == 0 ? k : weight.group_size;
  const int64_t groups = (k + group_size - 1) / group_size;
  std::vector<double> plain(weight.codes.size());
  for (int64_t r = 0; r < weight.out_features; ++r) {
    for (int64_t j = 0; j < k; ++j) {
      const size_t g = static_cast<size_t>(r * groups + j / group_size);
      const double zero = weight.zeros.empty() ? 0.0 : weight.zeros[g];
      const size_t at = static_cast<size_t>(r * k + j);
      plain[at] = static_cast<double>(weight.scales[g]) * (weight.codes[at] - zero);
    }
  }
  return plain;
}

std::vector<float> random_activations(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) value = normal(random);
  return x;
}

std::vector<const LinearKernel*> kernels_for(const PackedLinear& linear) {
  std::vector<const LinearKernel*> enabled;
  for (const LinearKernel* kernel : kGroupIntFormat.kernels) {
    if (kernel->refusal({&linear, linear.out_features}).empty()) enabled.push_back(kernel);
  }
  return enabled;
}

std::vector<float> run(const LinearKernel& kernel, std::vector<const PackedLinear*> linears,
                       const std::vector<float>& x, int64_t tokens, int threads) {
  ThreadPool pool(threads);
  Scratch scratch;
  int64_t columns = 0;
  for (const PackedLinear* linear : linears) columns += linear->out_features;
  // Two more columns than outputs: they must stay as they are.
  const int64_t stride = columns + 2;
  std::vector<float> y(static_cast<size_t>(tokens * stride), 777.0f);
  kernel.prepare(linears, pool)->forward(x.data(), tokens, y.data(), stride, scratch, pool);
  std::vector<float> result;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < stride; ++r) {
      const float value = y[static_cast<size_t>(t * stride + r)];
      if (r < columns) {
        result.push_back(value);
      } else {
        EXPECT_EQ(value, 777.0f) << kernel.name << " wrote beyond its outputs";
      }
    }
  }
  return result;
}

TEST(GroupInt, LayoutIsWhatTheReadmeSays) {
  QuantizedWeight weight;
  weight.out_features = 2;
  weight.in_features = 9;
  weight.group_size = 4;
  weight.scales = {1, 2, 3, 4, 5, 6};
  // Stored codes are q + 2^(bits - 1).
  const std::vector<int> stored = {7, 0, 5, 2, 6, 1, 4, 3, 7, 1, 2, 3, 4, 5, 6, 7, 0, 1};
  struct Case {
    int bits;
    std::vector<uint8_t> row0, row1;
  };
  const Case cases[] = {
      // The codes above modulo 4: 3 0 1 2 2 1 0 3 3 and 1 2 3 0 1 2 3 0 1.
      {2, {0b10'01'00'11, 0b11'00'01'10, 0b11}, {0b00'11'10'01, 0b00'11'10'01, 0b01}},
      {3, {0x47, 0xe5, 0x70, 0x07}, {0xd1, 0x58, 0x1f, 0x01}},
      {4, {0x07, 0x25, 0x16, 0x34, 0x07}, {0x21, 0x43, 0x65, 0x07, 0x01}},
      {8, {7, 0, 5, 2, 6, 1, 4, 3, 7}, {1, 2, 3, 4, 5, 6, 7, 0, 1}},
  };
  for (const Case& test : cases) {
    weight.weight_bits = test.bits;
    weight.codes.clear();
    for (const int code : stored) {
      weight.codes.push_back(static_cast<int8_t>(code % (1 << test.bits) - (1 << (test.bits - 1))));
    }
    const PackedLinear packed = kGroupIntFormat.pack(weight, "layer");
    const auto bytes = packed.find("codes")->values<uint8_t>();
    std::vector<uint8_t> expected = test.row0;
    expected.insert(expected.end(), test.row1.begin(), test.row1.end());
    EXPECT_EQ(std::vector<uint8_t>(bytes.begin(), bytes.end()), expected) << test.bits;
    EXPECT_EQ(packed.find("scales")->shape(), (Shape{2, 3}));
    EXPECT_EQ(packed.find("scales")->dtype(), DType::kF16);
    EXPECT_EQ(packed.find("zeros"), nullptr);
    EXPECT_EQ(packed.weight_bytes(), bytes.size() + 12);
  }
}

TEST(GroupInt, UnpacksExactly) {
  const Shape3 shapes[] = {{1, 1, 0},   {3, 1, 4},     {1, 7, 0},    {5, 13, 4},
                           {2, 33, 16}, {3, 100, 128}, {4, 2053, 0}, {2, 1030, 48}};
  for (const int bits : kAllBits) {
    for (const Shape3& shape : shapes) {
      for (const Zeros zeros : {Zeros::kNone, Zeros::kInteger, Zeros::kFractional}) {
        const QuantizedWeight weight = make_weight(shape, bits, zeros, false, static_cast<unsigned>(shape.k));
        const PackedLinear packed = kGroupIntFormat.pack(weight, "layer");
        ASSERT_NO_THROW(kGroupIntFormat.validate(packed));
        const std::vector<double> plain = plain_weight(weight);
        std::vector<float> unpacked(plain.size());
        kGroupIntFormat.dequantize(packed, unpacked.data());
        for (size_t i = 0; i < plain.size(); ++i) {
          // Scales, codes and these zeros are exact in their types, so the only rounding is that of the
          // product.
          ASSERT_EQ(unpacked[i], static_cast<float>(plain[i]))
              << bits << " bits, k " << shape.k << ", element " << i;
        }
        std::vector<float> rows(static_cast<size_t>(shape.k));
        kGroupIntFormat.dequantize_rows(packed, shape.n - 1, 1, rows.data());
        EXPECT_EQ(0, std::memcmp(rows.data(), unpacked.data() + (shape.n - 1) * shape.k,
                                 rows.size() * sizeof(float)));
      }
    }
  }
}

TEST(GroupInt, PackRoundsScalesToF16UnlessThatWouldLosePrecision) {
  QuantizedWeight weight = make_weight({2, 16, 0}, 4, Zeros::kNone, false, 1);
  weight.scales = {0.1f, 1.0f / 3.0f};
  const PackedLinear rounded = kGroupIntFormat.pack(weight, "layer");
  ASSERT_EQ(rounded.find("scales")->dtype(), DType::kF16);
  EXPECT_EQ(rounded.find("scales")->data<uint16_t>()[0], float_to_f16(0.1f));
  for (const float extreme : {0x1.001p-15f, 70000.0f}) {
    weight.scales = {0.1f, extreme};
    const PackedLinear kept = kGroupIntFormat.pack(weight, "layer");
    ASSERT_EQ(kept.find("scales")->dtype(), DType::kF32);
    EXPECT_EQ(kept.find("scales")->data<float>()[0], 0.1f);
    EXPECT_EQ(kept.find("scales")->data<float>()[1], extreme);
  }
  weight.scales = {0x1p-24f,
                   0.5f};  // exact, though not in the normal range: what quantizers give rows of zeros
  EXPECT_EQ(kGroupIntFormat.pack(weight, "layer").find("scales")->dtype(), DType::kF16);
  weight.scales = {0.0f, 0.5f};
  EXPECT_EQ(kGroupIntFormat.pack(weight, "layer").find("scales")->dtype(), DType::kF16);
}

TEST(GroupInt, EveryKernelMatchesPlainLoops) {
  const Shape3 shapes[] = {{1, 1, 0},
                           {1, 16, 0},
                           {1, 15, 128},
                           {3, 17, 0},
                           {5, 1, 0},
                           {4, 64, 32},
                           {7, 100, 32},
                           {9, 7, 4},
                           {9, 136, 0},
                           {16, 56, 128},
                           {33, 88, 32},
                           {70, 576, 64},
                           {12, 300, 128},
                           {13, 1530, 16},
                           {6, 612, 32},
                           {2, 1296, 0},
                           {259, 48, 0},
                           {10, 645, 128},
                           {66, 1000, 96},
                           {31, 416, 160},
                           // whole chunks of the integer kernels, some with a shorter last group
                           {33, 256, 128},
                           {9, 1280, 0},
                           {6, 640, 256},
                           {3, 2304, 1024}};
  for (const int bits : kAllBits) {
    for (const Shape3& shape : shapes) {
      for (const Zeros zeros : {Zeros::kNone, Zeros::kInteger, Zeros::kFractional}) {
        const bool bias = shape.n % 2 == 1;
        const QuantizedWeight weight =
            make_weight(shape, bits, zeros, bias, static_cast<unsigned>(shape.n + bits));
        const PackedLinear packed = kGroupIntFormat.pack(weight, "layer");
        const std::vector<double> plain = plain_weight(weight);
        for (const int64_t tokens : {1, 2, 3, 4, 5, 8, 9, 17, 49, 290}) {
          if (tokens > 200 && shape.n * shape.k > 6000) continue;
          const std::vector<float> x = random_activations(tokens * shape.k, static_cast<unsigned>(tokens));
          for (const LinearKernel* kernel : kernels_for(packed)) {
            const std::vector<float> y = run(*kernel, {&packed}, x, tokens, 1);
            for (int64_t t = 0; t < tokens; ++t) {
              for (int64_t r = 0; r < shape.n; ++r) {
                double expected = bias ? static_cast<double>(weight.bias[static_cast<size_t>(r)]) : 0.0;
                double magnitude = std::fabs(expected);
                for (int64_t j = 0; j < shape.k; ++j) {
                  const double product = plain[static_cast<size_t>(r * shape.k + j)] *
                                         static_cast<double>(x[static_cast<size_t>(t * shape.k + j)]);
                  expected += product;
                  magnitude += std::fabs(product);
                }
                const double tolerance = 4.0 * static_cast<double>(shape.k) * 0x1p-24 * magnitude;
                ASSERT_NEAR(y[static_cast<size_t>(t * shape.n + r)], expected, tolerance)
                    << kernel->name << ", " << bits << " bits, n " << shape.n << ", k " << shape.k
                    << ", group " << shape.group_size << ", zeros " << static_cast<int>(zeros) << ", token "
                    << t << ", row " << r;
              }
            }
          }
        }
      }
    }
  }
}

// Activations at both ends of FP32's range: products underflow or overflow in FP32 only where the result
// does.
class GroupIntActivations : public testing::TestWithParam<Shape3> {
 protected:
  // Every kernel against plain loops, for tokens of which scale(token, column) says how large they are.
  template <typename Scale>
  void expect_plain_results(const Scale& scale) {
    const Shape3& shape = GetParam();
    const QuantizedWeight weight = make_weight(shape, 4, Zeros::kNone, false, 4);
    const PackedLinear packed = kGroupIntFormat.pack(weight, "layer");
    const std::vector<double> plain = plain_weight(weight);
    for (const int64_t tokens : {4, 20}) {
      std::vector<float> x = random_activations(tokens * shape.k, 8);
      for (int64_t i = 0; i < tokens * shape.k; ++i)
        x[static_cast<size_t>(i)] *= scale(i / shape.k, i % shape.k);
      for (const LinearKernel* kernel : kernels_for(packed)) {
        const std::vector<float> y = run(*kernel, {&packed}, x, tokens, 1);
        for (int64_t i = 0; i < tokens * shape.n; ++i) {
          double expected = 0, magnitude = 0;
          for (int64_t j = 0; j < shape.k; ++j) {
            const double product = plain[static_cast<size_t>(i % shape.n * shape.k + j)] *
                                   double{x[static_cast<size_t>(i / shape.n * shape.k + j)]};
            expected += product;
            magnitude += std::fabs(product);
          }
          const double tolerance = 4.0 * static_cast<double>(shape.k) * 0x1p-24 * magnitude;
          ASSERT_NEAR(y[static_cast<size_t>(i)], expected, tolerance)
              << kernel->name << ", token " << i / shape.n << ", row " << i % shape.n;
        }
      }
    }
  }
};

TEST_P(GroupIntActivations, AtBothEndsOfTheRange) {
  constexpr float kSizes[] = {1e-36f, 1e-30f, 1e30f, 1e36f};
  expect_plain_results([&](int64_t token, int64_t) { return kSizes[token % 4]; });
}

TEST_P(GroupIntActivations, WithOutliers) {
  expect_plain_results(
      [](int64_t token, int64_t column) { return column % 61 == token % 61 ? 3000.0f : 1.0f; });
}

INSTANTIATE_TEST_SUITE_P(Shapes, GroupIntActivations,
                         testing::Values(Shape3{20, 96, 32}, Shape3{20, 256, 128}, Shape3{7, 640, 0}),
                         [](const auto& test) { return "k" + std::to_string(test.param.k); });

TEST(GroupInt, KernelsOfThisMachineAreTested) {
  const PackedLinear packed =
      kGroupIntFormat.pack(make_weight({4, 256, 128}, 4, Zeros::kNone, false, 1), "layer");
  size_t expected = 1;
  if (cpu_path_enabled(CpuPath::kAvx2)) ++expected;
  if (cpu_path_enabled(CpuPath::kAvx512Vbmi)) ++expected;
  if (cpu_path_enabled(CpuPath::kAvx512Vnni)) ++expected;
  if (cpu_path_enabled(CpuPath::kAmx)) ++expected;
  EXPECT_EQ(kernels_for(packed).size(), expected);
  EXPECT_STREQ(kernels_for(packed).back()->name, "group_int-reference");

  const PackedLinear odd = kGroupIntFormat.pack(make_weight({4, 64, 7}, 4, Zeros::kNone, false, 1), "layer");
  ASSERT_EQ(kernels_for(odd).size(), 1u);
  const KernelChoice choice = choose_kernel({&odd, odd.out_features});
  EXPECT_STREQ(choice.kernel->name, "group_int-reference");
  EXPECT_EQ(choice.refused.size(), kGroupIntFormat.kernels.size() - 1);
  if (cpu_path_enabled(CpuPath::kAvx2)) {
    EXPECT_EQ(choice.refused.back().second, "group size 7 is no multiple of 16");
  }
}

TEST(GroupInt, ThreadsAndFusionDoNotChangeResults) {
  for (const int bits : kAllBits) {
    const PackedLinear a =
        kGroupIntFormat.pack(make_weight({530, 208, 64}, bits, Zeros::kNone, false, 1), "a");
    const PackedLinear b = kGroupIntFormat.pack(make_weight({37, 208, 64}, bits, Zeros::kNone, true, 2), "b");
    ASSERT_TRUE(kGroupIntFormat.can_fuse(a, b));
    for (const int64_t tokens : {1, 5, 150}) {
      const std::vector<float> x = random_activations(tokens * 208, 3);
      for (const LinearKernel* kernel : kernels_for(a)) {
        const std::vector<float> fused = run(*kernel, {&a, &b}, x, tokens, 1);
        EXPECT_EQ(fused, run(*kernel, {&a, &b}, x, tokens, 2)) << kernel->name;
        EXPECT_EQ(fused, run(*kernel, {&a, &b}, x, tokens, 4)) << kernel->name;
        const std::vector<float> ya = run(*kernel, {&a}, x, tokens, 2), yb = run(*kernel, {&b}, x, tokens, 1);
        std::vector<float> beside;
        for (int64_t t = 0; t < tokens; ++t) {
          beside.insert(beside.end(), ya.begin() + t * 530, ya.begin() + (t + 1) * 530);
          beside.insert(beside.end(), yb.begin() + t * 37, yb.begin() + (t + 1) * 37);
        }
        EXPECT_EQ(fused, beside) << kernel->name;
      }
    }
  }
}

// Equal weights of a code at its zero point give exactly zero: no kernel may correct for zero points after
// the sum.
TEST(GroupInt, CodesAtTheirZeroGiveExactlyZero) {
  for (const int bits : kAllBits) {
    QuantizedWeight weight = make_weight({6, 80, 16}, bits, Zeros::kInteger, false, 5);
    for (int64_t r = 0; r < 6; ++r) {
      for (int64_t j = 0; j < 80; ++j) {
        weight.codes[static_cast<size_t>(r * 80 + j)] =
            static_cast<int8_t>(weight.zeros[static_cast<size_t>(r * 5 + j / 16)]);
      }
    }
    const PackedLinear packed = kGroupIntFormat.pack(weight, "layer");
    for (const int64_t tokens : {1, 20}) {
      const std::vector<float> x = random_activations(tokens * 80, 6);
      for (const LinearKernel* kernel : kernels_for(packed)) {
        for (const float value : run(*kernel, {&packed}, x, tokens, 1))
          EXPECT_EQ(value, 0.0f) << kernel->name;
      }
    }
  }
}

TEST(GroupInt, SaysWhatItComputes) {
  const PackedLinear packed =
      kGroupIntFormat.pack(make_weight({8, 32, 0}, 3, Zeros::kNone, false, 1), "layer");
  EXPECT_EQ(kGroupIntFormat.arithmetic(packed), "int3xf32->f32");
  EXPECT_EQ(kGroupIntFormat.code_bits(packed), 3);
  EXPECT_EQ(kGroupIntFormat.multiply_adds(packed), (std::map<int, double>{{3, 256.0}}));
  EXPECT_EQ(packed.weight_bytes(), 8u * 12u + 8u * 2u);
}

TEST(GroupInt, FusesOnlyEqualSettings) {
  const auto packed = [](const Shape3& shape, int bits, Zeros zeros) {
    return kGroupIntFormat.pack(make_weight(shape, bits, zeros, false, 1), "layer");
  };
  const PackedLinear base = packed({8, 64, 32}, 4, Zeros::kNone);
  EXPECT_TRUE(kGroupIntFormat.can_fuse(base, packed({3, 64, 32}, 4, Zeros::kNone)));
  EXPECT_FALSE(kGroupIntFormat.can_fuse(base, packed({8, 64, 32}, 8, Zeros::kNone)));
  EXPECT_FALSE(kGroupIntFormat.can_fuse(base, packed({8, 64, 16}, 4, Zeros::kNone)));
  EXPECT_FALSE(kGroupIntFormat.can_fuse(base, packed({8, 80, 32}, 4, Zeros::kNone)));
  EXPECT_FALSE(kGroupIntFormat.can_fuse(base, packed({8, 64, 32}, 4, Zeros::kInteger)));
  EXPECT_FALSE(kGroupIntFormat.can_fuse(packed({8, 64, 32}, 4, Zeros::kFractional),
                                        packed({8, 64, 32}, 4, Zeros::kInteger)));
}

void expect_error(const std::function<void()>& action, const std::string& part) {
  try {
    action();
    ADD_FAILURE() << "no error; expected one with '" << part << "'";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(GroupInt, RefusesToPackWhatItCannotHold) {
  const auto expect_refused = [](const std::function<void(QuantizedWeight&)>& change,
                                 const std::string& part) {
    QuantizedWeight weight = make_weight({2, 8, 4}, 4, Zeros::kInteger, false, 1);
    change(weight);
    expect_error([&] { kGroupIntFormat.pack(weight, "the.layer"); }, part);
    expect_error([&] { kGroupIntFormat.pack(weight, "the.layer"); }, "the.layer");
  };
  expect_refused([](QuantizedWeight& w) { w.weight_bits = 5; }, "not 5");
  expect_refused([](QuantizedWeight& w) { w.activation_bits = 8; }, "8-bit");
  expect_refused([](QuantizedWeight& w) { w.outlier_columns = {3}; }, "outlier");
  expect_refused([](QuantizedWeight& w) { w.group_size = -1; }, "group_size -1");
  expect_refused([](QuantizedWeight& w) { w.codes[11] = 8; }, "code 8 at row 1, column 3");
  expect_refused([](QuantizedWeight& w) { w.codes[0] = -9; }, "code -9");
  expect_refused([](QuantizedWeight& w) { w.scales[1] = std::nanf(""); }, "scale");
  expect_refused([](QuantizedWeight& w) { w.zeros[1] = std::numeric_limits<float>::infinity(); },
                 "zero point");
}

TEST(GroupInt, RefusesCorruptedTensors) {
  struct Case {
    const char* what;
    std::function<void(PackedLinear&)> corrupt;
    const char* message;
  };
  const auto set_f32 = [](Tensor& tensor, size_t at, float value) {
    tensor.mutable_data<float>()[at] = value;
  };
  const Case cases[] = {
      {"no codes", [](PackedLinear& l) { l.tensors.erase("codes"); }, "the.layer.codes is missing"},
      {"no scales", [](PackedLinear& l) { l.tensors.erase("scales"); }, "the.layer.scales is missing"},
      {"codes of a wrong type",
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kI32, {3, 4});
       },
       "the.layer.codes has type I32, expected U8"},
      {"signed codes",
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kI8, {3, 4});
       },
       "type I8"},
      {"too few code bytes",
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kU8, {3, 3});
       },
       "the.layer.codes has shape [3, 3], expected [3, 4]"},
      {"flat codes", [](PackedLinear& l) { l.tensors["codes"] = Tensor::zeros(DType::kU8, {12}); }, "[12]"},
      {"too few scales",
       [](PackedLinear& l) {
         l.tensors["scales"] = Tensor::zeros(DType::kF16, {3, 1});
       },
       "the.layer.scales has shape [3, 1], expected [3, 2]"},
      {"BF16 scales",
       [](PackedLinear& l) {
         l.tensors["scales"] = Tensor::zeros(DType::kBF16, {3, 2});
       },
       "expected F16 or F32"},
      {"infinite F16 scale",
       [](PackedLinear& l) { l.tensors["scales"].mutable_data<uint16_t>()[4] = 0xfc00; },
       "the.layer.scales is not finite at element 4"},
      {"NaN F32 scale",
       [&](PackedLinear& l) {
         l.tensors["scales"] = Tensor::zeros(DType::kF32, {3, 2});
         set_f32(l.tensors["scales"], 5, std::nanf(""));
       },
       "the.layer.scales is not finite at element 5"},
      {"zeros of a wrong shape",
       [](PackedLinear& l) {
         l.tensors["zeros"] = Tensor::zeros(DType::kU8, {2, 3});
       },
       "the.layer.zeros has shape [2, 3]"},
      {"zeros of a wrong type",
       [](PackedLinear& l) {
         l.tensors["zeros"] = Tensor::zeros(DType::kI8, {3, 2});
       },
       "the.layer.zeros has type I8"},
      {"infinite zero",
       [&](PackedLinear& l) {
         l.tensors["zeros"] = Tensor::zeros(DType::kF32, {3, 2});
         set_f32(l.tensors["zeros"], 0, std::numeric_limits<float>::infinity());
       },
       "the.layer.zeros is not finite"},
      {"bias of a wrong size", [](PackedLinear& l) { l.tensors["bias"] = Tensor::zeros(DType::kF32, {4}); },
       "the.layer.bias has shape [4], expected [3]"},
      {"NaN bias", [&](PackedLinear& l) { set_f32(l.tensors["bias"], 2, std::nanf("")); },
       "the.layer.bias is not finite"},
      {"a tensor of another format",
       [](PackedLinear& l) { l.tensors["outlier_columns"] = Tensor::zeros(DType::kI32, {3}); },
       "the.layer.outlier_columns"},
      {"padding bits", [](PackedLinear& l) { l.tensors["codes"].mutable_data<uint8_t>()[7] |= 0x10; },
       "padding bits at the end of row 1"},
      {"5 bits", [](PackedLinear& l) { l.parameters["weight_bits"] = 5; }, "weight_bits is 5"},
      {"no bits", [](PackedLinear& l) { l.parameters.erase("weight_bits"); }, "weight_bits is 0"},
      {"huge bits", [](PackedLinear& l) { l.parameters["weight_bits"] = int64_t{1} << 40; }, "weight_bits"},
      {"other bits", [](PackedLinear& l) { l.parameters["weight_bits"] = 8; }, "expected [3, 7]"},
      {"negative group", [](PackedLinear& l) { l.parameters["group_size"] = -4; }, "group_size is -4"},
      {"other group", [](PackedLinear& l) { l.parameters["group_size"] = 1; }, "expected [3, 7]"},
      {"unknown parameter", [](PackedLinear& l) { l.parameters["act_order"] = 1; }, "act_order"},
      {"no rows", [](PackedLinear& l) { l.out_features = 0; }, "0 x 7"},
      {"huge rows", [](PackedLinear& l) { l.out_features = int64_t{1} << 62; }, "out of range"},
      {"more columns", [](PackedLinear& l) { l.in_features = 9; },
       "the.layer.codes has shape [3, 4], expected [3, 5]"},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.what);
    PackedLinear linear = kGroupIntFormat.pack(make_weight({3, 7, 4}, 4, Zeros::kNone, true, 9), "the.layer");
    ASSERT_NO_THROW(kGroupIntFormat.validate(linear));
    test.corrupt(linear);
    expect_error([&] { kGroupIntFormat.validate(linear); }, test.message);
  }
}

}  // namespace
}  // namespace nibble
