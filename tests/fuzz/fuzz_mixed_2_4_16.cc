// Tensors of a mixed_2_4_16 linear from foreign bytes: validate() refuses them or every reader may trust
// them. Input: rows - 1, columns - 1 (2 bytes), sparse entries (2 bytes), then the tensors' bytes in the
// order of kTensors.
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "cases/linear_cases.h"
#include "formats/mixed_2_4_16/layout.h"
#include "fuzz/fuzz_target.h"

namespace nibble {

extern const LinearFormat kMixed2416Format;

namespace {

constexpr const char* kTensors[] = {"groups", "main",  "split",         "first_order",    "second_order",
                                    "scales", "zeros", "sparse_counts", "sparse_columns", "sparse_values"};
constexpr int64_t kMaxRows = 40, kMaxColumns = 300;

std::vector<std::pair<DType, Shape>> layout_of(int64_t n, int64_t k, int64_t entries) {
  const int64_t units = mixed_units(k), tiles = mixed_tiles(n), shares = mixed_shares(k);
  return {{DType::kU16, {units, 4}},         {DType::kU32, {tiles, units, 16, 4}},
          {DType::kU32, {tiles, units, 16}}, {DType::kU16, {tiles, units, 16}},
          {DType::kU16, {tiles, units, 4}},  {DType::kF16, {tiles, shares, 16}},
          {DType::kU8, {tiles, shares, 8}},  {DType::kU16, {n}},
          {DType::kU16, {entries}},          {DType::kF16, {entries}}};
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  if (size < 5) return 0;
  PackedLinear linear;
  linear.format = &kMixed2416Format;
  linear.name = "fuzz";
  linear.out_features = data[0] % kMaxRows + 1;
  linear.in_features = (data[1] | data[2] << 8) % kMaxColumns + 1;
  const int64_t entries = (data[3] | data[4] << 8) % 1000;
  size_t at = 5;
  const auto layout = layout_of(linear.out_features, linear.in_features, entries);
  for (size_t i = 0; i < layout.size(); ++i) {
    if (i >= 7 && entries == 0) break;
    Tensor tensor = Tensor::zeros(layout[i].first, layout[i].second);
    const size_t count = std::min(tensor.bytes(), size - at);
    std::memcpy(tensor.mutable_raw(), data + at, count);
    at += count;
    linear.tensors[kTensors[i]] = std::move(tensor);
  }
  if (entries > 0) linear.parameters["sparse_values"] = entries;
  try {
    kMixed2416Format.validate(linear);
  } catch (const Error&) {  // refused, as it should be
    return 0;
  }
  std::vector<float> weight(static_cast<size_t>(linear.out_features * linear.in_features));
  kMixed2416Format.dequantize(linear, weight.data());
  for (const float value : weight) {
    if (value - value != 0.0f) __builtin_trap();  // validated numbers are finite
  }
  static ThreadPool pool(1);
  Scratch scratch;
  const PackedLinear* pointer = &linear;
  for (const LinearKernel* kernel : kMixed2416Format.kernels) {
    if (!kernel->refusal({&linear, linear.out_features}).empty()) continue;
    for (const int64_t tokens : {1, 9}) {
      // An exact heap copy, so that AddressSanitizer sees reads and writes beyond the end.
      const std::vector<float> x(static_cast<size_t>(tokens * linear.in_features), 0.5f);
      std::vector<float> y(static_cast<size_t>(tokens * linear.out_features));
      kernel->prepare({&pointer, 1}, pool)
          ->forward(x.data(), tokens, y.data(), linear.out_features, scratch, pool);
    }
  }
  return 0;
}

namespace nibble::fuzz {

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds;
  for (const auto& [n, k, share] : {std::tuple{1, 7, 0.0}, {16, 64, 0.0}, {17, 72, 0.05}, {40, 300, 0.02}}) {
    const PackedLinear linear = kMixed2416Format.pack(cases::make_mixed_weight({n, k, 0, 1}, share), "seed");
    const int64_t entries = linear.parameter("sparse_values", 0);
    std::string seed = {static_cast<char>(n - 1), static_cast<char>((k - 1) & 255),
                        static_cast<char>((k - 1) >> 8), static_cast<char>(entries & 255),
                        static_cast<char>(entries >> 8)};
    for (const char* name : kTensors) {
      if (const Tensor* tensor = linear.find(name)) {
        seed.append(reinterpret_cast<const char*>(tensor->raw()), tensor->bytes());
      }
    }
    seeds.push_back(seed);
  }
  return seeds;
}

}  // namespace nibble::fuzz
