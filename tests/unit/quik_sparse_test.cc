// The quik_sparse format itself: its bytes, what it refuses, and that it is what quik computes with zeros.
// Kernels against plain loops on ordinary shapes are in tests/conformance.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "cases/linear_cases.h"
#include "format_testing.h"
#include "formats/packed_checkpoint.h"

namespace nibble {
namespace {

using testing::refusal_of;
using testing::values_of;

const LinearFormat& quik_sparse() { return *find_format("quik_sparse"); }

// The example of the format's README, with a second row.
QuantizedWeight small_weight(int weight_bits) {
  QuantizedWeight weight;
  weight.out_features = 2;
  weight.in_features = 7;
  weight.weight_bits = weight_bits;
  weight.activation_bits = weight_bits;
  weight.mask_order = {6, 0, 5, 1, 4, 3};
  // Columns 0 1 3 4 5 6.
  weight.codes = {-2, 7, 0, -8, 0, 0, 0, 0, 3, 0, 5, -1};
  weight.scales = {0.5f, 0.25f};
  weight.outlier_columns = {2};
  weight.outlier_weights = {1.5f, -3.0f};
  return weight;
}

TEST(QuikSparseFormat, CanonicalBytesOfFourBits) {
  const PackedLinear linear = quik_sparse().pack(small_weight(4), "a");
  // Row 1: group 0 (columns 6 0 5 1) keeps places 0 and 2, codes -1 and 5; group 1 places 0 and 1, codes 0
  // and 3.
  EXPECT_EQ(values_of<uint8_t>(linear, "codes"), (std::vector<uint8_t>{0x7E, 0x08, 0x5F, 0x30}));
  EXPECT_EQ(values_of<uint8_t>(linear, "positions"), (std::vector<uint8_t>{0x4D, 0x48}));
  EXPECT_EQ(values_of<int32_t>(linear, "integer_columns"), (std::vector<int32_t>{6, 0, 5, 1, 4, 3}));
  EXPECT_EQ(linear.find("codes")->shape(), (Shape{2, 2}));
  EXPECT_EQ(linear.find("positions")->shape(), (Shape{2, 1}));
  EXPECT_EQ(linear.find("bias"), nullptr);
  EXPECT_EQ(linear.weight_bytes(), 4u + 2u + 24u + 8u + 4u + 4u);
  EXPECT_EQ(quik_sparse().arithmetic(linear), "int4xint4->int32");
  EXPECT_EQ(quik_sparse().multiply_adds(linear), (std::map<int, double>{{4, 12.0}, {16, 2.0}}));
  std::vector<float> weight(14);
  quik_sparse().dequantize(linear, weight.data());
  EXPECT_EQ(weight, (std::vector<float>{-1, 3.5f, 1.5f, 0, -4, 0, 0, 0, 0, -3, 0.75f, 0, 1.25f, -0.25f}));
}

TEST(QuikSparseFormat, CanonicalBytesOfEightBits) {
  QuantizedWeight weight = small_weight(8);
  weight.codes[3] = -128;
  const PackedLinear linear = quik_sparse().pack(weight, "a");
  EXPECT_EQ(values_of<int8_t>(linear, "codes"), (std::vector<int8_t>{-2, 7, -128, 0, -1, 5, 0, 3}));
  EXPECT_EQ(values_of<uint8_t>(linear, "positions"), (std::vector<uint8_t>{0x4D, 0x48}));
  EXPECT_EQ(linear.find("codes")->dtype(), DType::kI8);
  EXPECT_EQ(linear.find("codes")->shape(), (Shape{2, 4}));
}

// Every number of columns in the last group, every pair of places, every code.
TEST(QuikSparseFormat, PackingLosesNothing) {
  for (const int bits : {4, 8}) {
    for (const int64_t k_int : {1, 2, 3, 4, 5, 6, 7, 8, 41, 64}) {
      const cases::LinearCase shape = {40, k_int, 0, 1};
      const QuantizedWeight weight = cases::prune(cases::make_weight(shape, {bits, bits}, false));
      std::vector<float> unpacked(static_cast<size_t>(40 * k_int));
      const PackedLinear linear = quik_sparse().pack(weight, "a");
      quik_sparse().dequantize(linear, unpacked.data());
      for (int64_t i = 0; i < 40 * k_int; ++i) {
        ASSERT_EQ(unpacked[i], static_cast<float>(weight.codes[i]) * weight.scales[i / k_int]) << k_int;
      }
      // As a checkpoint gives it back.
      std::map<std::string, Tensor> tensors;
      for (const auto& [suffix, tensor] : linear.tensors) tensors["a." + suffix] = tensor;
      const PackedLinear again =
          packed_linear_from_tensors("a", packed_linear_config(linear), tensors, 40, k_int, "test");
      std::vector<float> reread(unpacked.size());
      again.format->dequantize(again, reread.data());
      ASSERT_EQ(reread, unpacked);
    }
  }
}

TEST(QuikSparseFormat, IsQuikWithZeros) {
  const LinearFormat& quik = *find_format("quik");
  ThreadPool pool(2);
  Scratch scratch;
  for (const int bits : {4, 8}) {
    for (const cases::LinearCase& shape :
         {cases::LinearCase{33, 129, 32, 7, true}, cases::LinearCase{64, 576, 64, 40}}) {
      const QuantizedWeight weight = cases::prune(cases::make_weight(shape, {bits, bits}, true));
      const PackedLinear sparse = quik_sparse().pack(weight, "a"), dense = quik.pack(weight, "a");
      EXPECT_LT(sparse.find("codes")->bytes() + sparse.find("positions")->bytes(),
                0.8 * static_cast<double>(dense.find("codes")->bytes()));
      const std::vector<float> x = cases::make_input(shape, bits);
      const PackedLinear *pointer = &sparse, *dense_pointer = &dense;
      for (size_t i = 0; i + 1 < quik.kernels.size(); ++i) {
        const LinearKernel* kernel = quik_sparse().kernels[i];
        EXPECT_EQ(std::string(kernel->name),
                  "quik_sparse-expanded-" + std::string(quik.kernels[i]->name).substr(5));
        EXPECT_EQ(kernel->refusal({&sparse, shape.n}), quik.kernels[i]->refusal({&dense, shape.n}));
        if (!kernel->refusal({&sparse, shape.n}).empty()) continue;
        std::vector<float> y(static_cast<size_t>(shape.tokens * shape.n)), expected(y.size());
        kernel->prepare({&pointer, 1}, pool)
            ->forward(x.data(), shape.tokens, y.data(), shape.n, scratch, pool);
        quik.kernels[i]
            ->prepare({&dense_pointer, 1}, pool)
            ->forward(x.data(), shape.tokens, expected.data(), shape.n, scratch, pool);
        EXPECT_EQ(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)), 0) << kernel->name;
      }
    }
  }
}

TEST(QuikSparseFormat, PackRefusesWhatItCannotHold) {
  const struct {
    const char* expected;
    std::function<void(QuantizedWeight&)> spoil;
  } kRefusals[] = {
      {"weights of 4 or 8 bits, not 3", [](QuantizedWeight& w) { w.weight_bits = 3; }},
      {"activations of 4 or 8 bits, not 16", [](QuantizedWeight& w) { w.activation_bits = 16; }},
      {"not groups of 128", [](QuantizedWeight& w) { w.group_size = 128; }},
      {"symmetric",
       [](QuantizedWeight& w) {
         w.zeros = {0.0f, 0.0f};
       }},
      {"pruned 2:4", [](QuantizedWeight& w) { w.mask_order.clear(); }},
      {"column 2, which", [](QuantizedWeight& w) { w.mask_order[0] = 2; }},
      {"column 0, which", [](QuantizedWeight& w) { w.mask_order[0] = 0; }},
      {"column 7, which", [](QuantizedWeight& w) { w.mask_order[5] = 7; }},
      {"column -1, which", [](QuantizedWeight& w) { w.mask_order[5] = -1; }},
      {"row 0 has more than two codes that are not 0 in group 0", [](QuantizedWeight& w) { w.codes[4] = 1; }},
      {"codes given", [](QuantizedWeight& w) { w.codes.pop_back(); }},
      {"scales given", [](QuantizedWeight& w) { w.scales.push_back(1.0f); }},
      {"outlier weights given", [](QuantizedWeight& w) { w.outlier_weights.pop_back(); }},
      {"bias of 1 values", [](QuantizedWeight& w) { w.bias = {1.0f}; }},
      {"code 8 does not fit into 4 bits", [](QuantizedWeight& w) { w.codes[0] = 8; }},
      {"no finite 16-bit float", [](QuantizedWeight& w) { w.outlier_weights[1] = 70000.0f; }},
      {"ascending column numbers", [](QuantizedWeight& w) { w.outlier_columns[0] = 7; }},
      {"scales", [](QuantizedWeight& w) { w.scales[0] = NAN; }},
  };
  for (const auto& refusal : kRefusals) {
    QuantizedWeight weight = small_weight(4);
    refusal.spoil(weight);
    const std::string message = refusal_of([&] { quik_sparse().pack(weight, "layers.3.up_proj"); });
    EXPECT_NE(message.find(refusal.expected), std::string::npos)
        << "expected '" << refusal.expected << "' in '" << message << "'";
    EXPECT_NE(message.find("layers.3.up_proj"), std::string::npos) << message;
  }
}

TEST(QuikSparseFormat, ValidateRefusesCorruptedTensors) {
  const auto byte = [](const char* suffix, int64_t index, uint8_t value) {
    return [=](PackedLinear& l) { l.tensors[suffix].mutable_data<uint8_t>()[index] = value; };
  };
  const auto column = [](const char* suffix, int64_t index, int32_t value) {
    return [=](PackedLinear& l) { l.tensors[suffix].mutable_data<int32_t>()[index] = value; };
  };
  const struct {
    const char* expected[2];
    std::function<void(PackedLinear&)> spoil;
  } kCorruptions[] = {
      {{"up.codes", "missing"}, [](PackedLinear& l) { l.tensors.erase("codes"); }},
      {{"up.codes", "[2, 3]"},
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kU8, {2, 3});
       }},
      {{"up.codes", "expected U8"},
       [](PackedLinear& l) {
         l.tensors["codes"] = Tensor::zeros(DType::kI8, {2, 2});
       }},
      {{"up.positions", "missing"}, [](PackedLinear& l) { l.tensors.erase("positions"); }},
      {{"up.positions", "[1, 1]"},
       [](PackedLinear& l) {
         l.tensors["positions"] = Tensor::zeros(DType::kU8, {1, 1});
       }},
      // Two equal places, a falling pair, and the same in the second group.
      {{"up.positions", "row 0, group 0 keeps places 1 and 1"}, byte("positions", 0, 0x45)},
      {{"up.positions", "row 1, group 0 keeps places 2 and 0"}, byte("positions", 1, 0x42)},
      {{"up.positions", "row 1, group 1 keeps places 0 and 0"}, byte("positions", 1, 0x04)},
      // Place 2 of the last group is beyond the last column; its code is not 0.
      {{"up.codes", "row 1, group 1 has code 3"}, byte("positions", 1, 0x88)},
      {{"up.integer_columns", "is 2"}, column("integer_columns", 0, 2)},
      {{"up.integer_columns", "is 0"}, column("integer_columns", 0, 0)},
      {{"up.integer_columns", "is -1"}, column("integer_columns", 3, -1)},
      {{"up.integer_columns", "is 7"}, column("integer_columns", 3, 7)},
      {{"up.integer_columns", "missing"}, [](PackedLinear& l) { l.tensors.erase("integer_columns"); }},
      {{"up.integer_columns", "[5]"},
       [](PackedLinear& l) { l.tensors["integer_columns"] = Tensor::zeros(DType::kI32, {5}); }},
      {{"up.outlier_columns", "is 7"}, column("outlier_columns", 0, 7)},
      {{"up.outlier_columns", "is -1"}, column("outlier_columns", 0, -1)},
      {{"up.scales", "nan"}, [](PackedLinear& l) { l.tensors["scales"].mutable_data<float>()[1] = NAN; }},
      {{"up.scales", "-1"}, [](PackedLinear& l) { l.tensors["scales"].mutable_data<float>()[0] = -1.0f; }},
      {{"up.outlier_weights", "not finite at element 1"},
       [](PackedLinear& l) { l.tensors["outlier_weights"].mutable_data<uint16_t>()[1] = 0x7c00; }},
      {{"up.bias", "[3]"}, [](PackedLinear& l) { l.tensors["bias"] = Tensor::zeros(DType::kF32, {3}); }},
      {{"up.extra", "not part of format quik_sparse"},
       [](PackedLinear& l) { l.tensors["extra"] = Tensor::zeros(DType::kF32, {1}); }},
      {{"up", "weight_bits is 5"}, [](PackedLinear& l) { l.parameters["weight_bits"] = 5; }},
      {{"up.codes", "expected I8"}, [](PackedLinear& l) { l.parameters["weight_bits"] = 8; }},
      {{"up", "outlier_columns is 4"}, [](PackedLinear& l) { l.parameters["outlier_columns"] = 4; }},
      {{"up", "group_size"}, [](PackedLinear& l) { l.parameters["group_size"] = 128; }},
      {{"up", "at most 65536"}, [](PackedLinear& l) { l.in_features = 70000; }},
      {{"up", "0 x 7"}, [](PackedLinear& l) { l.out_features = 0; }},
  };
  for (const auto& corruption : kCorruptions) {
    PackedLinear linear = quik_sparse().pack(small_weight(4), "up");
    ASSERT_EQ(refusal_of([&] { quik_sparse().validate(linear); }), "");
    corruption.spoil(linear);
    const std::string message = refusal_of([&] { quik_sparse().validate(linear); });
    for (const char* expected : corruption.expected) {
      EXPECT_NE(message.find(expected), std::string::npos)
          << "expected '" << expected << "' in '" << message << "'";
    }
  }
  // An odd number of groups leaves half a byte over, which is 0.
  QuantizedWeight odd = small_weight(4);
  odd.in_features = 5;
  odd.mask_order = {4, 0, 1, 3};
  odd.codes = {0, 1, -1, 0, 2, 0, 0, 3};
  PackedLinear linear = quik_sparse().pack(odd, "up");
  linear.tensors["positions"].mutable_data<uint8_t>()[1] |= 0x40;
  EXPECT_NE(refusal_of([&] { quik_sparse().validate(linear); }).find("row 1 ends with a nonzero nibble"),
            std::string::npos);
}

TEST(QuikSparseFormat, FusesWhatSharesOutlierColumnsAndBits) {
  const PackedLinear base = quik_sparse().pack(small_weight(4), "a");
  EXPECT_TRUE(quik_sparse().can_fuse(base, quik_sparse().pack(small_weight(4), "b")));
  EXPECT_FALSE(quik_sparse().can_fuse(base, quik_sparse().pack(small_weight(8), "b")));
  EXPECT_FALSE(quik_sparse().can_fuse(base, find_format("quik")->pack(small_weight(4), "b")));
  QuantizedWeight other = small_weight(4);
  other.outlier_columns = {3};
  other.mask_order = {6, 0, 5, 1, 4, 2};
  EXPECT_FALSE(quik_sparse().can_fuse(base, quik_sparse().pack(other, "b")));
}

}  // namespace
}  // namespace nibble
