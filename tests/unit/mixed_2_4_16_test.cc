// mixed_2_4_16: the layout bit by bit, exact unpacking, refusals of broken tensors, sizes, and what the
// shared conformance cases do not reach.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "base/half.h"
#include "cases/linear_cases.h"
#include "format_testing.h"
#include "formats/mixed_2_4_16/layout.h"

namespace nibble {

extern const LinearFormat kMixed2416Format;

namespace {

using cases::LinearCase;
using cases::make_mixed_weight;

std::vector<const LinearKernel*> kernels_for(const PackedLinear& linear) {
  std::vector<const LinearKernel*> enabled;
  for (const LinearKernel* kernel : kMixed2416Format.kernels) {
    if (kernel->refusal({&linear, linear.out_features}).empty()) enabled.push_back(kernel);
  }
  return enabled;
}

std::vector<float> run(const LinearKernel& kernel, const PackedLinear& linear, const std::vector<float>& x,
                       int64_t tokens) {
  ThreadPool pool(2);
  Scratch scratch;
  const PackedLinear* pointer = &linear;
  std::vector<float> y(static_cast<size_t>(tokens * linear.out_features));
  kernel.prepare({&pointer, 1}, pool)
      ->forward(x.data(), tokens, y.data(), linear.out_features, scratch, pool);
  return y;
}

// One row, one unit; group 2 has 4 bits and stands last.
QuantizedWeight small_weight() {
  QuantizedWeight weight = {.out_features = 1, .in_features = 64, .weight_bits = 2, .group_size = 16};
  weight.mixed.order = {3, 0, 1, 2};
  weight.codes.assign(64, 0);
  weight.zeros = {1, 2, 9, 3};  // by group
  weight.mixed.scale_codes = {5, 11, 0, 6};
  weight.mixed.second_scales = {0.5f, 0.25f, 0, 2.0f};
  weight.mixed.second_zeros = {4, 13, 0, 7};
  weight.scales = {4.5f, 6.0f, 0.125f, 26.0f};
  return weight;
}

TEST(Mixed2416, LayoutIsWhatTheReadmeSays) {
  QuantizedWeight weight = small_weight();
  for (int i = 0; i < 16; ++i) {
    weight.codes[3 * 16 + i] = static_cast<int8_t>(i % 4);      // slot 0
    weight.codes[0 * 16 + i] = static_cast<int8_t>(3 - i % 4);  // slot 1
    weight.codes[1 * 16 + i] = static_cast<int8_t>(i / 4);      // slot 2
    weight.codes[2 * 16 + i] = static_cast<int8_t>(i);          // slot 3
  }
  const PackedLinear packed = kMixed2416Format.pack(weight, "layer");
  ASSERT_NO_THROW(kMixed2416Format.validate(packed));
  const uint32_t* main = packed.find("main")->data<uint32_t>();
  EXPECT_EQ(main[0], 0xe4e4e4e4u);
  EXPECT_EQ(main[1], 0x1b1b1b1bu);
  EXPECT_EQ(main[2], 0xffaa5500u);
  EXPECT_EQ(main[3], 0xdc985410u);
  EXPECT_EQ(packed.find("split")->data<uint32_t>()[0], 0xfeba7632u);
  // Zeros 3, 1, 2 of the slots' groups 3, 0, 1, then codes 6, 5, 11.
  EXPECT_EQ(packed.find("first_order")->data<uint16_t>()[0],
            11 << 12 | 5 << 9 | 6 << 6 | 2 << 4 | 1 << 2 | 3);
  const uint16_t* second = packed.find("second_order")->data<uint16_t>();
  EXPECT_EQ(second[0], float_to_f16(2.0f));
  EXPECT_EQ(second[1], float_to_f16(0.5f));
  EXPECT_EQ(second[2], float_to_f16(0.25f));
  EXPECT_EQ(second[3], 13 << 8 | 4 << 4 | 7);
  EXPECT_EQ(packed.find("scales")->data<uint16_t>()[0], float_to_f16(0.125f));
  EXPECT_EQ(packed.find("zeros")->data<uint8_t>()[0], 9);
  const auto groups = packed.find("groups")->values<uint16_t>();
  EXPECT_EQ(std::vector<int>(groups.begin(), groups.end()), (std::vector<int>{3, 0, 1, 2}));

  std::vector<float> row(64);
  kMixed2416Format.dequantize(packed, row.data());
  EXPECT_EQ(row[48 + 2], (2 - 3) * 26.0f);
  EXPECT_EQ(row[0], (3 - 1) * 4.5f);
  EXPECT_EQ(row[16 + 15], (3 - 2) * 6.0f);
  EXPECT_EQ(row[32 + 15], (15 - 9) * 0.125f);
}

// A metadata word is three zeros and three scale codes, each in bits of its own.
TEST(Mixed2416, FirstOrderWordDecodesToZerosAndCodes) {
  for (int word = 0; word < 65536; ++word) {
    int made = 0;
    for (int slot = 0; slot < 3; ++slot) {
      made |= mixed_first_zero(static_cast<uint16_t>(word), slot) << (2 * slot);
      made |= mixed_first_code(static_cast<uint16_t>(word), slot) << (6 + 3 * slot);
    }
    ASSERT_EQ(made, word);
  }
  EXPECT_EQ(mixed_first_code(0xffff, 0), 7);
  EXPECT_EQ(mixed_first_code(0xffff, 2), 15);
  EXPECT_EQ(mixed_second_zero(0x0f77, 0), 7);
  EXPECT_EQ(mixed_second_zero(0x0f77, 1), 7);
  EXPECT_EQ(mixed_second_zero(0x0f77, 2), 15);
}

TEST(Mixed2416, BitsPerWeight) {
  // 2.5 bits of codes, 0.25 first order, 0.0625 second order, 20 bits for 512 weights, the order of groups.
  constexpr int64_t kSize = 1024;
  const double weights = kSize * kSize;
  const PackedLinear dense = kMixed2416Format.pack(make_mixed_weight({kSize, kSize, 0, 1}, 0), "layer");
  EXPECT_DOUBLE_EQ(8.0 * static_cast<double>(dense.weight_bytes()) / weights,
                   2.5 + 0.25 + 0.0625 + 20.0 / 512 + 1.0 / kSize);
  const QuantizedWeight weight = make_mixed_weight({kSize, kSize, 0, 1}, 0.0019);
  const PackedLinear sparse = kMixed2416Format.pack(weight, "layer");
  EXPECT_EQ(sparse.weight_bytes() - dense.weight_bytes(), 4 * weight.sparse.columns.size() + 2 * kSize);
  EXPECT_EQ(sparse.parameter("sparse_values", 0), static_cast<int64_t>(weight.sparse.columns.size()));
}

TEST(Mixed2416, MultiplyAddsCountRealColumns) {
  // 70 columns: five groups, the last of 6 columns; two 4-bit places.
  const QuantizedWeight weight = make_mixed_weight({3, 70, 0, 1}, 0);
  int64_t wide = 0;
  for (const int place : {3, 7}) {
    const int64_t left = 70 - 16 * int64_t{weight.mixed.order[static_cast<size_t>(place)]};
    wide += left < 0 ? 0 : left > 16 ? 16 : left;
  }
  const auto adds = kMixed2416Format.multiply_adds(kMixed2416Format.pack(weight, "layer"));
  EXPECT_EQ(adds.count(4) ? adds.at(4) : 0, 3.0 * static_cast<double>(wide));
  EXPECT_EQ(adds.at(2), 3.0 * static_cast<double>(70 - wide));
  EXPECT_EQ(adds.count(16), 0u);

  const QuantizedWeight outliers = make_mixed_weight({16, 128, 0, 1}, 0.05);
  const auto count = static_cast<double>(outliers.sparse.columns.size());
  ASSERT_GT(count, 0);
  const auto with = kMixed2416Format.multiply_adds(kMixed2416Format.pack(outliers, "layer"));
  EXPECT_EQ(with.at(16), count);
  EXPECT_EQ(with.at(2) + with.at(4) + with.at(16), 16.0 * 128.0);
}

// Every vector kernel sums a few tokens in the same order with the same roundings, whatever its instruction
// set.
TEST(Mixed2416, VectorKernelsGiveTheSameBits) {
  for (const int64_t tokens : {1, 3, 4}) {
    const LinearCase shape = {70, 1100, 0, tokens, true};
    const PackedLinear linear = kMixed2416Format.pack(make_mixed_weight(shape, 0.01), "layer");
    const std::vector<float> x = cases::make_input(shape, 16);
    std::vector<float> first;
    for (const LinearKernel* kernel : kernels_for(linear)) {
      if (kernel == kMixed2416Format.kernels.back()) continue;
      const std::vector<float> y = run(*kernel, linear, x, tokens);
      if (first.empty()) first = y;
      EXPECT_EQ(std::memcmp(first.data(), y.data(), y.size() * sizeof(float)), 0) << kernel->name;
    }
  }
}

// Activations at both ends of FP32's range: products underflow or overflow only where the result does.
TEST(Mixed2416, ExtremeActivations) {
  constexpr int64_t kIn = 200, kOut = 20;
  const PackedLinear linear = kMixed2416Format.pack(make_mixed_weight({kOut, kIn, 0, 1}, 0.01), "layer");
  std::vector<float> weight(static_cast<size_t>(kOut * kIn));
  kMixed2416Format.dequantize(linear, weight.data());
  const float sizes[] = {1e-38f, 1e-36f, 1e-30f, 1.0f, 1e30f, 1e37f};
  for (const int64_t tokens : {6, 18}) {
    std::vector<float> x = cases::normal_floats(static_cast<size_t>(tokens * kIn), 5);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= sizes[i / kIn % 6];
    for (const LinearKernel* kernel : kernels_for(linear)) {
      const std::vector<float> y = run(*kernel, linear, x, tokens);
      for (int64_t i = 0; i < tokens * kOut; ++i) {
        double expected = 0, magnitude = 0;
        for (int64_t j = 0; j < kIn; ++j) {
          const double product = double{weight[i % kOut * kIn + j]} * double{x[i / kOut * kIn + j]};
          expected += product;
          magnitude += std::fabs(product);
        }
        ASSERT_NEAR(y[i], expected, 4.0 * kIn * (0x1p-24 * magnitude + 0x1p-149))
            << kernel->name << ", output " << i;
      }
    }
  }
}

TEST(Mixed2416, ActivationsThatAreNoNumbersReachTheOutput) {
  const PackedLinear linear = kMixed2416Format.pack(make_mixed_weight({20, 100, 0, 1}, 0), "layer");
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int64_t tokens : {2, 12}) {
      std::vector<float> x(static_cast<size_t>(tokens * 100), 1.0f);
      x[99] = bad;  // of the first token alone
      for (const LinearKernel* kernel : kernels_for(linear)) {
        const std::vector<float> y = run(*kernel, linear, x, tokens);
        for (int64_t i = 0; i < tokens * 20; ++i) {
          // A weight of zero makes NaN of an infinity; others may leave it infinite.
          EXPECT_EQ(std::isfinite(y[i]), i >= 20) << kernel->name << ", output " << i;
        }
      }
    }
  }
}

// Codes at their zero give exactly zero: no kernel may correct for zero points with a rounding.
TEST(Mixed2416, CodesAtTheirZeroGiveExactlyZero) {
  QuantizedWeight weight = make_mixed_weight({19, 130, 0, 1}, 0);
  for (int64_t row = 0; row < 19; ++row) {
    for (int64_t j = 0; j < 130; ++j) {
      weight.codes[static_cast<size_t>(row * 130 + j)] =
          static_cast<int8_t>(weight.zeros[static_cast<size_t>(row * 9 + j / 16)]);
    }
  }
  const PackedLinear linear = kMixed2416Format.pack(weight, "layer");
  for (const int64_t tokens : {1, 4, 30}) {
    const std::vector<float> x = cases::normal_floats(static_cast<size_t>(tokens * 130), 6);
    for (const LinearKernel* kernel : kernels_for(linear)) {
      for (const float value : run(*kernel, linear, x, tokens)) EXPECT_EQ(value, 0.0f) << kernel->name;
    }
  }
}

TEST(Mixed2416, KernelsOfThisMachineAreTested) {
  const PackedLinear linear = kMixed2416Format.pack(small_weight(), "layer");
  size_t expected = 1;
  if (cpu_path_enabled(CpuPath::kAvx2)) expected += 2;
  if (cpu_path_enabled(CpuPath::kAvxVnni)) ++expected;
  if (cpu_path_enabled(CpuPath::kAvx512Vnni)) expected += 2;
  EXPECT_EQ(kernels_for(linear).size(), expected);
  // Never one of those that are there to be measured against.
  EXPECT_EQ(std::string(choose_kernel({&linear, 1}).kernel->name).find("sync"), std::string::npos);
}

void expect_refused(const std::function<void()>& body, const std::string& part) {
  const std::string message = testing::refusal_of(body);
  EXPECT_NE(message.find(part), std::string::npos) << "expected '" << part << "' in: " << message;
}

TEST(Mixed2416, PackRefusesWhatItCannotHold) {
  const auto refused = [](const std::function<void(QuantizedWeight&)>& change, const std::string& part) {
    QuantizedWeight weight = small_weight();
    change(weight);
    expect_refused([&] { kMixed2416Format.pack(weight, "layer.7"); }, part);
  };
  refused([](QuantizedWeight& w) { w.mixed = {}; }, "layer.7: format mixed_2_4_16 holds 2- and 4-bit groups");
  refused([](QuantizedWeight& w) { w.activation_bits = 8; }, "not by 8-bit ones");
  refused([](QuantizedWeight& w) { w.outlier_columns = {1}; }, "has no outlier columns");
  refused([](QuantizedWeight& w) { w.codes[5] = 4; }, "code 4 at row 0, column 5 is out of range (0 to 3)");
  refused([](QuantizedWeight& w) { w.codes[40] = -1; },
          "code -1 at row 0, column 40 is out of range (0 to 15)");
  refused([](QuantizedWeight& w) { w.zeros[0] = 4; }, "zero point of row 0, group 0 is 4");
  refused([](QuantizedWeight& w) { w.zeros[2] = 2.5f; }, "zero point of row 0, group 2 is 2.5");
  refused([](QuantizedWeight& w) { w.mixed.scale_codes[0] = 8; }, "scale code of row 0, group 0 is 8");
  refused([](QuantizedWeight& w) { w.mixed.second_zeros[3] = 8; }, "second-order zero of group 3 is 8");
  refused([](QuantizedWeight& w) { w.mixed.second_scales[0] = 0.1f; }, "expected an F16 number");
  refused([](QuantizedWeight& w) { w.scales[2] = -1; }, "the scale of a 4-bit group is -1");
  refused([](QuantizedWeight& w) { w.scales[0] = 4.0f; }, "its code stands for 4.5");
  refused([](QuantizedWeight& w) { w.mixed.order = {0, 0, 1, 2}; }, "has 0 at place 1");
  refused([](QuantizedWeight& w) { w.mixed.order = {0, 1, 2, 4}; }, "has 4 at place 3");
  refused([](QuantizedWeight& w) { w.sparse = {{0, 1}, {64}, {1.0f}}; }, "in column 64 of 64");
  refused([](QuantizedWeight& w) { w.sparse = {{0, 1}, {3}, {1e6f}}; }, "beyond F16");

  QuantizedWeight shared = make_mixed_weight({2, 256, 0, 1}, 0);
  // 16 groups; the 4-bit ones at places 3, 7, 11 and 15 share their scales.
  shared.scales[static_cast<size_t>(shared.mixed.order[7])] = 1;
  expect_refused([&] { kMixed2416Format.pack(shared, "layer.7"); }, "has another scale or zero point");
}

TEST(Mixed2416, ValidateRefusesBrokenTensors) {
  const auto refused = [](const std::function<void(PackedLinear&)>& change, const std::string& part) {
    PackedLinear linear = kMixed2416Format.pack(make_mixed_weight({18, 72, 0, 1, true}, 0.05), "layer.7");
    ASSERT_NO_THROW(kMixed2416Format.validate(linear));
    change(linear);
    expect_refused([&] { kMixed2416Format.validate(linear); }, part);
  };
  const auto tensor = [](PackedLinear& linear, const char* suffix) -> Tensor& {
    return linear.tensors.at(suffix);
  };
  for (const char* suffix : {"groups", "main", "split", "first_order", "second_order", "scales", "zeros"}) {
    refused([&](PackedLinear& l) { l.tensors.erase(suffix); },
            format_text("tensor layer.7.{} is missing", suffix));
    refused([&](PackedLinear& l) { l.tensors[suffix] = Tensor::zeros(DType::kF32, {1}); },
            format_text("tensor layer.7.{} has type F32", suffix));
    refused(
        [&](PackedLinear& l) {
          Shape shape = l.find(suffix)->shape();
          ++shape[0];
          l.tensors[suffix] = Tensor::zeros(l.find(suffix)->dtype(), shape);
        },
        format_text("tensor layer.7.{} has shape", suffix));
  }
  for (const char* suffix : {"sparse_counts", "sparse_columns", "sparse_values"}) {
    refused([&](PackedLinear& l) { l.tensors.erase(suffix); },
            format_text("tensor layer.7.{} is missing", suffix));
  }
  refused([](PackedLinear& l) { l.parameters["group_size"] = 16; }, "parameter 'group_size' is 16");
  refused([](PackedLinear& l) { l.parameters["sparse_values"] = 0; }, "parameter 'sparse_values' is 0");
  refused([](PackedLinear& l) { ++l.parameters["sparse_values"]; }, "sparse_counts adds up to");
  refused([](PackedLinear& l) { l.tensors["codes"] = Tensor::zeros(DType::kU8, {1}); },
          "is not part of format");
  refused([](PackedLinear& l) { l.in_features = 65537; }, "is out of range");
  refused([&](PackedLinear& l) { tensor(l, "groups").mutable_data<uint16_t>()[1] = 8; }, "has 8 at place 1");
  refused(
      [&](PackedLinear& l) {
        uint16_t* groups = tensor(l, "groups").mutable_data<uint16_t>();
        groups[1] = groups[0];
      },
      "expected every number from 0 to 7 once");
  refused([&](PackedLinear& l) { tensor(l, "second_order").mutable_data<uint16_t>()[1] = 0x7c00; },
          "is not finite");
  refused([&](PackedLinear& l) { tensor(l, "second_order").mutable_data<uint16_t>()[3] |= 8; },
          "expected bits 3, 7");
  refused([&](PackedLinear& l) { tensor(l, "scales").mutable_data<uint16_t>()[0] = 0x7e00; },
          "scales is not finite");
  refused([&](PackedLinear& l) { tensor(l, "bias").mutable_data<float>()[17] = NAN; }, "bias is not finite");
  refused([&](PackedLinear& l) { ++tensor(l, "sparse_counts").mutable_data<uint16_t>()[0]; }, "adds up to");
  refused([&](PackedLinear& l) { tensor(l, "sparse_columns").mutable_data<uint16_t>()[0] = 72; },
          "has column 72");
  refused([&](PackedLinear& l) { tensor(l, "sparse_values").mutable_data<uint16_t>()[0] = 0xfc00; },
          "not finite");
  // Beyond row 18 of the second tile and beyond column 72.
  const int64_t last = 1 * 2 * 16 + 2;
  refused([&](PackedLinear& l) { tensor(l, "main").mutable_data<uint32_t>()[last * 4] = 1; },
          "not zero beyond the 18");
  refused([&](PackedLinear& l) { tensor(l, "split").mutable_data<uint32_t>()[last] = 1; },
          "not zero beyond the 18");
  refused([&](PackedLinear& l) { tensor(l, "first_order").mutable_data<uint16_t>()[last] = 1; },
          "not zero beyond");
  refused([&](PackedLinear& l) { tensor(l, "scales").mutable_data<uint16_t>()[31] = 1; },
          "not zero beyond the 18");
  refused([&](PackedLinear& l) { tensor(l, "zeros").mutable_data<uint8_t>()[15] = 16; },
          "not zero beyond the 18");
  refused(
      [&](PackedLinear& l) {
        // Group 4 has columns 64 to 79, of which 8 are padding.
        const uint16_t* groups = l.find("groups")->data<uint16_t>();
        for (int64_t place = 0; place < 8; ++place) {
          if (groups[place] != 4) continue;
          const MixedCodePlace code = mixed_code_place(place % 4, 9);
          uint32_t* word = code.word == 4
                               ? tensor(l, "split").mutable_data<uint32_t>() + place / 4 * 16
                               : tensor(l, "main").mutable_data<uint32_t>() + place / 4 * 64 + code.word;
          *word |= 1u << code.shift;
        }
      },
      "column 73, beyond the 72 columns");
}

TEST(Mixed2416, SparseColumnsMustAscend) {
  QuantizedWeight weight = small_weight();
  weight.sparse = {{0, 2}, {5, 5}, {1.0f, 1.0f}};
  const PackedLinear linear = kMixed2416Format.pack(weight, "layer");
  expect_refused([&] { kMixed2416Format.validate(linear); }, "column 5 after 5");
}

}  // namespace
}  // namespace nibble
