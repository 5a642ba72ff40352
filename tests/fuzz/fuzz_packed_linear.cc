// A packed linear from foreign bytes: parameters and tensors of any format, as a nibble folder brings them.
// What validate() lets pass is dequantized and multiplied by every kernel.
//
// The bytes: one of the format, one of out_features - 1, one of in_features - 1, one of the number of
// parameters, then per parameter one of its name and one of its value; then per tensor one of its suffix, one
// of its type, one of its rank (up to 2), one per extent, and its elements. What is missing is 0.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "formats/format.h"
#include "fuzz/fuzz_target.h"

namespace {

constexpr const char* kParameters[] = {"weight_bits",     "sparse_values", "group_size", "activation_bits",
                                       "outlier_columns", "other",         "scale_kind", "amplifier"};
constexpr const char* kSuffixes[] = {
    "codes",     "codebooks",       "sparse_offsets",  "sparse_columns",  "sparse_values",   "bias",
    "scales",    "zeros",           "outlier_columns", "outlier_weights", "weight",          "other",
    "positions", "integer_columns", "multipliers",     "row_scales",      "activation_scale"};
constexpr nibble::DType kTypes[] = {nibble::DType::kU8,  nibble::DType::kI8,  nibble::DType::kU16,
                                    nibble::DType::kU32, nibble::DType::kI32, nibble::DType::kF16,
                                    nibble::DType::kF32, nibble::DType::kBF16};

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  bool empty() const { return left_ == 0; }
  uint8_t byte() {
    uint8_t value = 0;
    copy(&value, 1);
    return value;
  }
  void copy(void* to, size_t count) {
    std::memset(to, 0, count);
    const size_t taken = std::min(count, left_);
    if (taken > 0) std::memcpy(to, data_, taken);
    data_ += taken;
    left_ -= taken;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

nibble::PackedLinear read(Reader& reader) {
  using namespace nibble;
  PackedLinear linear;
  linear.format = all_formats()[reader.byte() % all_formats().size()];
  linear.name = "fuzzed";
  linear.out_features = reader.byte() + 1;
  linear.in_features = reader.byte() + 1;
  for (int left = reader.byte() % 6; left > 0; --left) {
    const char* name = kParameters[reader.byte() % std::size(kParameters)];
    linear.parameters[name] = static_cast<int8_t>(reader.byte());
  }
  while (!reader.empty()) {
    const char* suffix = kSuffixes[reader.byte() % std::size(kSuffixes)];
    const DType type = kTypes[reader.byte() % std::size(kTypes)];
    Shape shape;
    for (int rank = reader.byte() % 3; rank > 0; --rank) shape.push_back(reader.byte());
    Tensor tensor = Tensor::empty(type, shape);
    if (tensor.bytes() > 0) reader.copy(tensor.mutable_raw(), tensor.bytes());
    linear.tensors[suffix] = std::move(tensor);
  }
  return linear;
}

void use(const nibble::PackedLinear& linear) {
  using namespace nibble;
  const int64_t n = linear.out_features, k = linear.in_features;
  std::vector<float> weight(static_cast<size_t>(n * k)), x(static_cast<size_t>(19 * k), 0.5f);
  std::vector<float> y(static_cast<size_t>(19 * n));
  linear.format->dequantize(linear, weight.data());
  static ThreadPool pool(1);
  Scratch scratch;
  const PackedLinear* pointer = &linear;
  for (const LinearKernel* kernel : linear.format->kernels) {
    if (!kernel->refusal({&linear, n}).empty()) continue;
    const auto op = kernel->prepare({&pointer, 1}, pool);
    for (const int64_t tokens : {1, 19}) op->forward(x.data(), tokens, y.data(), n, scratch, pool);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader reader(data, size);
  try {
    const nibble::PackedLinear linear = read(reader);
    linear.format->validate(linear);
    use(linear);
  } catch (const nibble::Error&) {  // refused, as it should be
  }
  return 0;
}

namespace nibble::fuzz {
namespace {

template <typename List, typename Value>
char index_in(const List& list, const Value& value) {
  for (size_t i = 0; i < std::size(list); ++i) {
    if (list[i] == value) return static_cast<char>(i);
  }
  throw Error("a seed uses what the target does not know");
}

std::string written(const PackedLinear& linear) {
  const auto names = [](const auto& list) {
    return std::vector<std::string>(std::begin(list), std::end(list));
  };
  std::string bytes;
  bytes += index_in(all_formats(), linear.format);
  bytes += static_cast<char>(linear.out_features - 1);
  bytes += static_cast<char>(linear.in_features - 1);
  bytes += static_cast<char>(linear.parameters.size());
  for (const auto& [name, value] : linear.parameters) {
    bytes += index_in(names(kParameters), name);
    bytes += static_cast<char>(value);
  }
  for (const auto& [suffix, tensor] : linear.tensors) {
    bytes += index_in(names(kSuffixes), suffix);
    bytes += index_in(kTypes, tensor.dtype());
    bytes += static_cast<char>(tensor.rank());
    for (const int64_t extent : tensor.shape()) bytes += static_cast<char>(extent);
    bytes.append(reinterpret_cast<const char*>(tensor.raw()), tensor.bytes());
  }
  return bytes;
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds = {""};
  for (const int bits : {2, 3, 4}) {
    QuantizedWeight weight = {.out_features = 5, .in_features = 21, .weight_bits = bits};
    for (int i = 0; i < 5 * 21; ++i) weight.codes.push_back(static_cast<int8_t>(i * 7 % (1 << bits)));
    for (int i = 0; i < 5 << bits; ++i) weight.codebooks.push_back(static_cast<float>(i) / 8 - 1);
    seeds.push_back(written(find_format("squeezellm")->pack(weight, "seed")));
    weight.sparse = {.row_offsets = {0, 3, 3, 4, 5, 7},
                     .columns = {0, 7, 20, 9, 1, 2, 20},
                     .values = {1, -1, 0.5f, 2, 3, 4, 5}};
    weight.bias = {1, 2, 3, 4, 5};
    seeds.push_back(written(find_format("squeezellm")->pack(weight, "seed")));
    weight.codebooks[1] = 1e9f;
    seeds.push_back(written(find_format("squeezellm")->pack(weight, "seed")));
  }
  for (const int bits : {2, 3, 4, 8}) {
    QuantizedWeight weight = {.out_features = 5, .in_features = 40, .weight_bits = bits, .group_size = 16};
    for (int i = 0; i < 5 * 40; ++i)
      weight.codes.push_back(static_cast<int8_t>(i * 7 % (1 << bits) - (1 << (bits - 1))));
    weight.scales.assign(15, 0.25f);
    seeds.push_back(written(find_format("group_int")->pack(weight, "seed")));
    weight.zeros.assign(15, 1.0f);
    seeds.push_back(written(find_format("group_int")->pack(weight, "seed")));
    if (bits < 4) continue;
    weight.activation_bits = bits;
    weight.group_size = 0;
    weight.zeros.clear();
    weight.scales.assign(5, 0.25f);
    weight.codes.resize(5 * 38);
    weight.outlier_columns = {3, 39};
    weight.outlier_weights.assign(10, 0.5f);
    seeds.push_back(written(find_format("quik")->pack(weight, "seed")));
    // 2:4 over 38 integer columns from the last to the first: the last group has two.
    for (int32_t column = 38; column >= 0; --column) {
      if (column != 3) weight.mask_order.push_back(column);
    }
    for (int64_t i = 0; i < 5 * 38; ++i) {
      if (i % 38 % 2 != 0) weight.codes[i] = 0;
    }
    seeds.push_back(written(find_format("quik_sparse")->pack(weight, "seed")));
  }
  for (const int bits : {4, 8}) {
    QuantizedWeight weight = {
        .out_features = 5, .in_features = 75, .weight_bits = bits, .activation_bits = 8, .group_size = 32};
    for (int i = 0; i < 5 * 75; ++i)
      weight.codes.push_back(static_cast<int8_t>(i * 7 % (1 << bits) - (1 << (bits - 1))));
    weight.scales.assign(15, 0.25f);
    seeds.push_back(written(find_format("group_int_a8")->pack(weight, "seed")));
    weight.activation_scale = 0.5f;
    weight.scale_multipliers.assign(15, 200);
    weight.row_scales.assign(5, 0.125f);
    seeds.push_back(written(find_format("group_int_a8")->pack(weight, "seed")));
    weight.scale_amplifier = 64;
    weight.bias.assign(5, 1.0f);
    seeds.push_back(written(find_format("group_int_a8")->pack(weight, "seed")));
  }
  return seeds;
}

}  // namespace nibble::fuzz
