// squeezellm: the layout byte by byte, saving and loading, refusals of broken tensors, and the kernels on
// shares of sparse values from none to all.
#include "formats/squeezellm/squeezellm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "base/half.h"
#include "formats/format.h"
#include "formats/packed_checkpoint.h"

namespace nibble {

extern const LinearFormat kSqueezellmFormat;

namespace {

float f16(float value) { return f16_to_float(float_to_f16(value)); }

// Random codes and levels; each weight is corrected with probability `share`.
QuantizedWeight make_weight(int64_t n, int64_t k, int bits, double share, unsigned seed) {
  std::mt19937 random(seed);
  QuantizedWeight weight;
  weight.out_features = n;
  weight.in_features = k;
  weight.weight_bits = bits;
  std::uniform_int_distribution<int> code(0, (1 << bits) - 1);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::bernoulli_distribution corrected(share);
  for (int64_t i = 0; i < n << bits; ++i) weight.codebooks.push_back(f16(normal(random)));
  weight.sparse.row_offsets.push_back(0);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t j = 0; j < k; ++j) {
      weight.codes.push_back(static_cast<int8_t>(code(random)));
      if (!corrected(random)) continue;
      weight.sparse.columns.push_back(static_cast<int32_t>(j));
      weight.sparse.values.push_back(f16(normal(random)));
    }
    weight.sparse.row_offsets.push_back(static_cast<int64_t>(weight.sparse.columns.size()));
  }
  return weight;
}

// W by the comment of QuantizedWeight.
std::vector<double> plain_weight(const QuantizedWeight& weight) {
  const int64_t n = weight.out_features, k = weight.in_features;
  std::vector<double> plain;
  for (int64_t i = 0; i < n * k; ++i)
    plain.push_back(weight.codebooks[(i / k << weight.weight_bits) + weight.codes[i]]);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = weight.sparse.row_offsets[row]; i < weight.sparse.row_offsets[row + 1]; ++i)
      plain[row * k + weight.sparse.columns[i]] += double{weight.sparse.values[i]};
  }
  return plain;
}

template <typename T>
std::vector<T> values_of(const PackedLinear& linear, const char* suffix) {
  const auto values = linear.find(suffix)->values<T>();
  return {values.begin(), values.end()};
}

TEST(Squeezellm, LayoutIsWhatTheReadmeSays) {
  QuantizedWeight weight;
  weight.out_features = 2;
  weight.in_features = 9;
  const std::vector<int> codes = {7, 0, 5, 2, 6, 1, 4, 3, 7, 1, 2, 3, 4, 5, 6, 7, 0, 1};
  struct Case {
    int bits;
    std::vector<uint8_t> bytes;
  };
  const Case cases[] = {
      // The codes above modulo 4: 3 0 1 2 2 1 0 3 3 and 1 2 3 0 1 2 3 0 1.
      {2, {0b10'01'00'11, 0b11'00'01'10, 0b11, 0b00'11'10'01, 0b00'11'10'01, 0b01}},
      {3, {0x47, 0xe5, 0x70, 0x07, 0xd1, 0x58, 0x1f, 0x01}},
      {4, {0x07, 0x25, 0x16, 0x34, 0x07, 0x21, 0x43, 0x65, 0x07, 0x01}},
  };
  weight.sparse = {.row_offsets = {0, 2, 3}, .columns = {0, 8, 4}, .values = {1.0f, -0.5f, 0x1p-24f}};
  for (const Case& test : cases) {
    weight.weight_bits = test.bits;
    weight.codes.clear();
    for (const int code : codes) weight.codes.push_back(static_cast<int8_t>(code % (1 << test.bits)));
    weight.codebooks.clear();
    for (int i = 0; i < 2 << test.bits; ++i) weight.codebooks.push_back(static_cast<float>(i) - 3);
    const PackedLinear packed = kSqueezellmFormat.pack(weight, "layer");
    EXPECT_EQ(values_of<uint8_t>(packed, "codes"), test.bytes) << test.bits;
    ASSERT_EQ(packed.find("codebooks")->dtype(), DType::kF16);
    EXPECT_EQ(packed.find("codebooks")->shape(), (Shape{2, 1 << test.bits}));
    EXPECT_EQ(values_of<uint16_t>(packed, "codebooks")[1], float_to_f16(-2.0f));
    EXPECT_EQ(values_of<uint32_t>(packed, "sparse_offsets"), (std::vector<uint32_t>{0, 2, 3}));
    EXPECT_EQ(values_of<uint16_t>(packed, "sparse_columns"), (std::vector<uint16_t>{0, 8, 4}));
    EXPECT_EQ(values_of<uint16_t>(packed, "sparse_values"), (std::vector<uint16_t>{0x3c00, 0xb800, 0x0001}));
    EXPECT_EQ(packed.parameters, (FormatParameters{{"weight_bits", test.bits}, {"sparse_values", 3}}));
    std::vector<float> dense(18);
    kSqueezellmFormat.dequantize(packed, dense.data());
    for (int i = 0; i < 18; ++i) {
      float expected = weight.codebooks[(i / 9 << test.bits) + weight.codes[i]];
      if (i == 0) expected += 1.0f;
      if (i == 8) expected -= 0.5f;
      if (i == 13) expected += 0x1p-24f;
      EXPECT_EQ(dense[i], expected) << i;
    }
  }
}

TEST(Squeezellm, BlocksOfThreeBitCodesAreWhatTheReadmeSays) {
  // One block and 44 columns after it; one column at a time has code 7, so its bits show.
  QuantizedWeight weight = make_weight(1, 300, 3, 0, 2);
  for (int column = 0; column < 300; ++column) {
    std::fill(weight.codes.begin(), weight.codes.end(), int8_t{0});
    weight.codes[column] = 7;
    const std::vector<uint8_t> bytes = values_of<uint8_t>(kSqueezellmFormat.pack(weight, "layer"), "codes");
    ASSERT_EQ(bytes.size(), 96u + 17u);
    std::vector<int> expected;
    const auto add = [&](int word, int first, int count) {
      for (int bit = first; bit < first + count; ++bit) expected.push_back(32 * word + bit);
    };
    if (column < 192) {
      add(column / 8, column % 8 * 3, 3);
    } else if (column < 216) {
      add(column - 192, 24, 3);
    } else if (column < 240) {
      add(column - 216, 27, 3);
    } else if (column < 256) {
      add(column - 240, 30, 2);
      column < 248 ? add(column - 224, 30, 1) : add(column - 232, 31, 1);
    } else {
      add(24, (column - 256) * 3, 3);
    }
    std::vector<int> found;
    for (int bit = 0; bit < 8 * 113; ++bit)
      if ((bytes[bit / 8] >> (bit % 8) & 1) != 0) found.push_back(bit);
    ASSERT_EQ(found, expected) << "column " << column;
  }
}

TEST(Squeezellm, EveryCodeComesBack) {
  for (const int bits : {2, 3, 4}) {
    for (const int64_t k : {1, 2, 7, 8, 9, 56, 88, 136, 255, 256, 257, 511, 513, 1023, 1024, 1025, 2049}) {
      const QuantizedWeight weight = make_weight(3, k, bits, 0.1, static_cast<unsigned>(k));
      const PackedLinear packed = kSqueezellmFormat.pack(weight, "layer");
      ASSERT_NO_THROW(kSqueezellmFormat.validate(packed));
      std::vector<float> dense(static_cast<size_t>(3 * k));
      kSqueezellmFormat.dequantize(packed, dense.data());
      const std::vector<double> plain = plain_weight(weight);
      for (size_t i = 0; i < dense.size(); ++i) ASSERT_EQ(dense[i], static_cast<float>(plain[i])) << i;
    }
  }
}

TEST(Squeezellm, SparseTensorsAreAbsentWithoutEntries) {
  const PackedLinear packed = kSqueezellmFormat.pack(make_weight(4, 20, 3, 0, 1), "layer");
  EXPECT_EQ(packed.tensors.size(), 2u);
  EXPECT_EQ(packed.parameter("sparse_values", -1), 0);
  // What the README's formula says: 3 bits in 8 bytes per row, 8 levels of 2 bytes.
  EXPECT_EQ(packed.weight_bytes(), 4u * 8u + 4u * 16u);
  const PackedLinear sparse = kSqueezellmFormat.pack(make_weight(4, 20, 3, 1, 1), "layer");
  EXPECT_EQ(sparse.weight_bytes(), 4u * 8u + 4u * 16u + 80u * 4u + 5u * 4u);
  EXPECT_EQ(kSqueezellmFormat.arithmetic(sparse), "lut3xf32->f32");
  EXPECT_EQ(kSqueezellmFormat.multiply_adds(packed), (std::map<int, double>{{3, 80.0}}));
  EXPECT_EQ(kSqueezellmFormat.multiply_adds(sparse), (std::map<int, double>{{3, 0.0}, {16, 80.0}}));
}

TEST(Squeezellm, SmallAndLargeLevelsAreKeptInF32) {
  QuantizedWeight weight = make_weight(2, 12, 2, 0.3, 3);
  ASSERT_EQ(kSqueezellmFormat.pack(weight, "layer").find("codebooks")->dtype(), DType::kF16);
  weight.codebooks[2] =
      0x1p-20f * 1.001f;  // far below the row's largest: what F16 moves it by does not count
  EXPECT_EQ(kSqueezellmFormat.pack(weight, "layer").find("codebooks")->dtype(), DType::kF16);
  for (const float factor : {0x1p-14f, 0x1p24f}) {
    QuantizedWeight changed = weight;
    for (int i = 0; i < 4; ++i) changed.codebooks[i] *= factor * 1.0001f;
    EXPECT_FALSE(f16_holds_levels(changed.codebooks.data(), 4));
    const PackedLinear packed = kSqueezellmFormat.pack(changed, "layer");
    ASSERT_NO_THROW(kSqueezellmFormat.validate(packed));
    EXPECT_EQ(values_of<float>(packed, "codebooks"), changed.codebooks);
    EXPECT_EQ(values_of<float>(packed, "sparse_values"), changed.sparse.values);
  }
}

TEST(Squeezellm, ComesBackFromItsTensors) {
  QuantizedWeight weight = make_weight(5, 37, 3, 0.2, 8);
  weight.bias = {1, 2, 3, 4, 5};
  const PackedLinear packed = kSqueezellmFormat.pack(weight, "layers.0.q");
  std::map<std::string, Tensor> tensors;
  for (const auto& [suffix, tensor] : packed.tensors) tensors["layers.0.q." + suffix] = tensor;
  const PackedLinear read =
      packed_linear_from_tensors("layers.0.q", packed_linear_config(packed), tensors, 5, 37, "file");
  std::vector<float> before(5 * 37), after(5 * 37);
  kSqueezellmFormat.dequantize(packed, before.data());
  kSqueezellmFormat.dequantize(read, after.data());
  EXPECT_EQ(before, after);
  EXPECT_EQ(values_of<float>(read, "bias"), weight.bias);
}

std::vector<const LinearKernel*> kernels_for(const PackedLinear& linear) {
  std::vector<const LinearKernel*> enabled;
  for (const LinearKernel* kernel : kSqueezellmFormat.kernels) {
    if (kernel->refusal({&linear, linear.out_features}).empty()) enabled.push_back(kernel);
  }
  return enabled;
}

TEST(Squeezellm, KernelsOfThisMachineAreTested) {
  const PackedLinear packed = kSqueezellmFormat.pack(make_weight(4, 256, 4, 0, 1), "layer");
  size_t expected = 1;
  if (cpu_path_enabled(CpuPath::kAvx512Vbmi)) ++expected;
  if (cpu_path_enabled(CpuPath::kAvx2)) ++expected;
  if (cpu_path_enabled(CpuPath::kAvx512Vnni)) ++expected;
  EXPECT_EQ(kernels_for(packed).size(), expected);
  EXPECT_STREQ(kernels_for(packed).back()->name, "squeezellm-reference");
}

TEST(Squeezellm, EveryShareOfSparseValuesMatchesPlainLoops) {
  ThreadPool pool(2);
  Scratch scratch;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const double share : {0.0, 0.004, 0.3, 1.0}) {
    for (const int64_t k : {1, 15, 56, 88, 136, 256, 265, 641, 768, 1280, 1290}) {
      for (const int bits : {2, 3, 4}) {
        const int64_t n = 13;
        const QuantizedWeight weight = make_weight(n, k, bits, share, static_cast<unsigned>(k + bits));
        const PackedLinear packed = kSqueezellmFormat.pack(weight, "layer");
        const std::vector<double> plain = plain_weight(weight);
        for (const int64_t tokens : {1, 3, 5, 18}) {
          std::vector<float> x(static_cast<size_t>(tokens * k)), y(static_cast<size_t>(tokens * n));
          for (float& value : x) value = normal(random);
          for (const LinearKernel* kernel : kernels_for(packed)) {
            const PackedLinear* pointer = &packed;
            kernel->prepare({&pointer, 1}, pool)->forward(x.data(), tokens, y.data(), n, scratch, pool);
            for (int64_t i = 0; i < tokens * n; ++i) {
              // Level and sparse value are rounded apart, so both count in the bound.
              double expected = 0, magnitude = 0;
              for (int64_t j = 0; j < k; ++j) {
                const double input = x[i / n * k + j];
                const double level = weight.codebooks[(i % n << bits) + weight.codes[i % n * k + j]];
                const double sum = plain[i % n * k + j];
                expected += input * sum;
                magnitude += std::fabs(input) * (std::fabs(level) + std::fabs(sum - level));
              }
              ASSERT_NEAR(y[i], expected, 4.0 * static_cast<double>(k) * 0x1p-24 * magnitude)
                  << kernel->name << ", " << bits << " bits, k " << k << ", share " << share << ", output "
                  << i;
            }
          }
        }
      }
    }
  }
}

void expect_error(const std::function<void()>& action, const std::string& part) {
  try {
    action();
    ADD_FAILURE() << "no error; expected one with '" << part << "'";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("the.layer"), std::string::npos) << error.what();
  }
}

TEST(Squeezellm, RefusesToPackWhatItCannotHold) {
  const auto expect_refused = [](const std::function<void(QuantizedWeight&)>& change,
                                 const std::string& part) {
    QuantizedWeight weight = make_weight(2, 8, 3, 0.4, 1);
    change(weight);
    expect_error([&] { kSqueezellmFormat.pack(weight, "the.layer"); }, part);
  };
  expect_refused([](QuantizedWeight& w) { w.weight_bits = 8; }, "not 8");
  expect_refused([](QuantizedWeight& w) { w.activation_bits = 8; }, "8-bit");
  expect_refused([](QuantizedWeight& w) { w.outlier_columns = {3}; }, "outlier");
  expect_refused([](QuantizedWeight& w) { w.group_size = 4; }, "groups of 4");
  expect_refused([](QuantizedWeight& w) { w.codebooks.clear(); }, "table of levels");
  expect_refused([](QuantizedWeight& w) { w.codes[11] = 8; }, "code 8 at row 1, column 3");
  expect_refused([](QuantizedWeight& w) { w.codes[0] = -1; }, "code -1");
  expect_refused([](QuantizedWeight& w) { w.codebooks[1] = std::nanf(""); }, "level is nan");
  expect_refused([](QuantizedWeight& w) { w.sparse.values[0] = HUGE_VALF; }, "sparse value is inf");

  QuantizedWeight wide = make_weight(1, 65537, 2, 0, 1);
  EXPECT_NO_THROW(kSqueezellmFormat.pack(wide, "the.layer"));
  wide.sparse = {.row_offsets = {0, 1}, .columns = {65536}, .values = {1.0f}};
  expect_error([&] { kSqueezellmFormat.pack(wide, "the.layer"); }, "at most 65536 in-features, not 65537");
}

TEST(Squeezellm, RefusesCorruptedTensors) {
  struct Case {
    const char* what;
    std::function<void(PackedLinear&)> corrupt;
    const char* message;
  };
  // Three rows of seven 3-bit codes with the sparse columns {1, 5}, {}, {0, 2, 6}.
  const auto replace = [](const char* suffix, DType dtype, Shape shape) {
    return [=](PackedLinear& l) { l.tensors[suffix] = Tensor::zeros(dtype, shape); };
  };
  const auto column = [](int64_t at, uint16_t value) {
    return [=](PackedLinear& l) { l.tensors["sparse_columns"].mutable_data<uint16_t>()[at] = value; };
  };
  const auto offset = [](int64_t at, uint32_t value) {
    return [=](PackedLinear& l) { l.tensors["sparse_offsets"].mutable_data<uint32_t>()[at] = value; };
  };
  const auto parameter = [](const char* name, int64_t value) {
    return [=](PackedLinear& l) { l.parameters[name] = value; };
  };
  const auto without = [](const char* suffix) { return [=](PackedLinear& l) { l.tensors.erase(suffix); }; };
  const Case cases[] = {
      {"no codes", without("codes"), "the.layer.codes is missing"},
      {"no codebooks", without("codebooks"), "the.layer.codebooks is missing"},
      {"no offsets", without("sparse_offsets"), "the.layer.sparse_offsets is missing"},
      {"no columns", without("sparse_columns"), "the.layer.sparse_columns is missing"},
      {"no values", without("sparse_values"), "the.layer.sparse_values is missing"},
      {"signed codes", replace("codes", DType::kI8, {3, 3}), "type I8, expected U8"},
      {"too few code bytes", replace("codes", DType::kU8, {3, 2}), "[3, 2], expected [3, 3]"},
      {"levels of another width", replace("codebooks", DType::kF16, {3, 4}), "[3, 4], expected [3, 8]"},
      {"BF16 levels", replace("codebooks", DType::kBF16, {3, 8}), "expected F16 or F32"},
      {"levels and values of two types", replace("codebooks", DType::kF32, {3, 8}),
       "sparse_values has type F16, expected F32"},
      {"infinite level", [](PackedLinear& l) { l.tensors["codebooks"].mutable_data<uint16_t>()[9] = 0xfc00; },
       "the.layer.codebooks is not finite at element 9"},
      {"NaN value", [](PackedLinear& l) { l.tensors["sparse_values"].mutable_data<uint16_t>()[4] = 0x7e00; },
       "the.layer.sparse_values is not finite at element 4"},
      {"signed offsets", replace("sparse_offsets", DType::kI32, {4}), "type I32, expected U32"},
      {"too few offsets", replace("sparse_offsets", DType::kU32, {3}), "[3], expected [4]"},
      {"too few columns", replace("sparse_columns", DType::kU16, {4}), "[4], expected [5]"},
      {"first offset", offset(0, 1), "starts with 1, expected 0"},
      {"last offset", offset(3, 6), "ends with 6, expected 5"},
      {"falling offsets", offset(1, 4), "falls from 4 to 2 at row 1"},
      {"huge offset", offset(1, 0xffffffffu), "falls from 4294967295 to 2"},
      {"column beyond k", column(4, 7), "is 7 at element 4, expected less than 7"},
      {"equal columns", column(1, 1), "goes from 1 to 1 within row 0"},
      {"falling columns", column(3, 0), "goes from 0 to 0 within row 2"},
      {"more entries", parameter("sparse_values", 6), "expected [6]"},
      {"no entries", parameter("sparse_values", 0), "although sparse_values is 0"},
      {"negative entries", parameter("sparse_values", -1), "sparse_values is -1, expected 0 to 21"},
      {"more entries than weights", parameter("sparse_values", 22), "expected 0 to 21"},
      {"5 bits", parameter("weight_bits", 5), "weight_bits is 5"},
      {"huge bits", parameter("weight_bits", int64_t{1} << 40), "weight_bits"},
      {"other bits", parameter("weight_bits", 4), "expected [3, 4]"},
      {"unknown parameter", parameter("group_size", 0), "group_size"},
      {"a tensor of another format", replace("scales", DType::kF16, {3, 1}), "the.layer.scales"},
      {"padding bits", [](PackedLinear& l) { l.tensors["codes"].mutable_data<uint8_t>()[5] |= 0x20; },
       "padding bits at the end of row 1"},
      {"NaN bias",
       [](PackedLinear& l) {
         l.tensors["bias"] = Tensor::zeros(DType::kF32, {3});
         l.tensors["bias"].mutable_data<float>()[1] = std::nanf("");
       },
       "the.layer.bias is not finite"},
      {"bias of a wrong size", replace("bias", DType::kF32, {4}), "[4], expected [3]"},
      {"no rows", [](PackedLinear& l) { l.out_features = 0; }, "0 x 7"},
      {"huge rows", [](PackedLinear& l) { l.out_features = int64_t{1} << 62; }, "out of range"},
      {"fewer columns", [](PackedLinear& l) { l.in_features = 6; }, "is 6 at element 4"},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.what);
    QuantizedWeight weight = make_weight(3, 7, 3, 0, 9);
    weight.sparse = {.row_offsets = {0, 2, 2, 5}, .columns = {1, 5, 0, 2, 6}, .values = {1, 2, 3, 4, 5}};
    PackedLinear linear = kSqueezellmFormat.pack(weight, "the.layer");
    ASSERT_NO_THROW(kSqueezellmFormat.validate(linear));
    test.corrupt(linear);
    expect_error([&] { kSqueezellmFormat.validate(linear); }, test.message);
  }
}

}  // namespace
}  // namespace nibble
