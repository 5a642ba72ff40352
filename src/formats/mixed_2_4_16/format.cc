// mixed_2_4_16: packing, validation and unpacking of the canonical layout; see README.md.
#include "formats/format.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/half.h"
#include "formats/mixed_2_4_16/kernels.h"
#include "formats/mixed_2_4_16/layout.h"
#include "formats/tensor_checks.h"

namespace nibble {

extern const LinearFormat kMixed2416Format;

namespace {

constexpr int64_t kMaxOut = int64_t{1} << 31;

int64_t code_limit(int64_t slot) { return slot == kMixedWideSlot ? 15 : 3; }

// --- packing

// Throws unless every number below 4 * units occurs once.
template <typename T>
void check_order(const T* order, int64_t places, const std::string& what) {
  std::vector<bool> seen(static_cast<size_t>(places));
  for (int64_t place = 0; place < places; ++place) {
    const auto group = static_cast<int64_t>(order[place]);
    if (group < 0 || group >= places || seen[group]) {
      fail("{} has {} at place {}, expected every number from 0 to {} once", what, group, place, places - 1);
    }
    seen[group] = true;
  }
}

void check_weight(const QuantizedWeight& weight, const std::string& name) {
  const int64_t n = weight.out_features, k = weight.in_features;
  NIBBLE_CHECK(n > 0 && k > 0 && n <= kMaxOut);
  if (weight.mixed.empty()) {
    fail(
        "{}: format mixed_2_4_16 holds 2- and 4-bit groups with two orders of scales; of the quantizers only "
        "mixed_precision makes them",
        name);
  }
  if (k > kMixedMaxIn)
    fail("{}: in-features are {}; format mixed_2_4_16 numbers at most {}", name, k, kMixedMaxIn);
  if (weight.activation_bits != 16) {
    fail("{}: format mixed_2_4_16 multiplies by float activations, not by {}-bit ones", name,
         weight.activation_bits);
  }
  if (!weight.outlier_columns.empty()) {
    fail("{}: format mixed_2_4_16 has no outlier columns, but the weight has {}", name,
         weight.outlier_columns.size());
  }
  const int64_t groups = (k + kMixedGroup - 1) / kMixedGroup, places = mixed_units(k) * kMixedSlots;
  const auto has = [](const auto& values, int64_t count) {
    return static_cast<int64_t>(values.size()) == count;
  };
  NIBBLE_CHECK(weight.group_size == kMixedGroup && has(weight.codes, n * k));
  NIBBLE_CHECK(has(weight.scales, n * groups) && has(weight.zeros, n * groups));
  NIBBLE_CHECK(has(weight.mixed.order, places) && has(weight.mixed.scale_codes, n * groups));
  NIBBLE_CHECK(has(weight.mixed.second_scales, mixed_tiles(n) * groups));
  NIBBLE_CHECK(has(weight.mixed.second_zeros, mixed_tiles(n) * groups));
  NIBBLE_CHECK(weight.bias.empty() || has(weight.bias, n));
  NIBBLE_CHECK(weight.sparse.row_offsets.empty() || has(weight.sparse.row_offsets, n + 1));
  check_order(weight.mixed.order.data(), places, name + ": the order of groups");
}

uint16_t f16_of(float value, const std::string& name, const char* what) {
  if (!(value >= 0 && value <= 65504.0f) || f16_to_float(float_to_f16(value)) != value) {
    fail("{}: {} is {}, expected an F16 number of at least 0", name, what, value);
  }
  return float_to_f16(value);
}

class Packer {
 public:
  Packer(const QuantizedWeight& weight, const std::string& name)
      : weight_(weight),
        name_(name),
        n_(weight.out_features),
        k_(weight.in_features),
        units_(mixed_units(k_)),
        groups_((k_ + kMixedGroup - 1) / kMixedGroup) {
    const int64_t tiles = mixed_tiles(n_), shares = mixed_shares(k_);
    order_ = Tensor::empty(DType::kU16, {units_, kMixedSlots});
    main_ = Tensor::zeros(DType::kU32, {tiles, units_, kMixedTile, 4});
    split_ = Tensor::zeros(DType::kU32, {tiles, units_, kMixedTile});
    first_ = Tensor::zeros(DType::kU16, {tiles, units_, kMixedTile});
    second_ = Tensor::zeros(DType::kU16, {tiles, units_, 4});
    scales_ = Tensor::zeros(DType::kF16, {tiles, shares, kMixedTile});
    zeros_ = Tensor::zeros(DType::kU8, {tiles, shares, 8});
    wide_set_.resize(static_cast<size_t>(tiles * shares * kMixedTile));
  }

  void pack_place(int64_t place) {
    const int64_t group = weight_.mixed.order[place], unit = place / kMixedSlots, slot = place % kMixedSlots;
    order_.mutable_data<uint16_t>()[place] = static_cast<uint16_t>(group);
    if (group >= groups_) return;  // padding is zeros
    for (int64_t row = 0; row < n_; ++row) pack_codes(row, unit, slot, group);
    if (slot == kMixedWideSlot) {
      for (int64_t row = 0; row < n_; ++row) pack_wide(row, unit, group);
    } else {
      for (int64_t tile = 0; tile < mixed_tiles(n_); ++tile) pack_second_order(tile, unit, slot, group);
      for (int64_t row = 0; row < n_; ++row) pack_first_order(row, unit, slot, group);
    }
  }

  void finish(PackedLinear& linear) {
    linear.tensors = {{"groups", std::move(order_)},        {"main", std::move(main_)},
                      {"split", std::move(split_)},         {"first_order", std::move(first_)},
                      {"second_order", std::move(second_)}, {"scales", std::move(scales_)},
                      {"zeros", std::move(zeros_)}};
  }

 private:
  int64_t row_unit(int64_t row, int64_t unit) const {
    return (row / kMixedTile * units_ + unit) * kMixedTile + row % kMixedTile;
  }

  int zero_of(int64_t row, int64_t group, int64_t limit) const {
    const float zero = weight_.zeros[row * groups_ + group];
    if (!(zero >= 0 && zero <= static_cast<float>(limit) && zero == std::floor(zero))) {
      fail("{}: the zero point of row {}, group {} is {}, expected an integer from 0 to {}", name_, row,
           group, zero, limit);
    }
    return static_cast<int>(zero);
  }

  void pack_codes(int64_t row, int64_t unit, int64_t slot, int64_t group) {
    const int64_t at = row_unit(row, unit), column = group * kMixedGroup;
    for (int64_t i = 0; i < kMixedGroup && column + i < k_; ++i) {
      const int code = weight_.codes[row * k_ + column + i];
      if (code < 0 || code > code_limit(slot)) {
        fail("{}: code {} at row {}, column {} is out of range (0 to {})", name_, code, row, column + i,
             code_limit(slot));
      }
      const MixedCodePlace place = mixed_code_place(slot, i);
      uint32_t* word = place.word == 4 ? split_.mutable_data<uint32_t>() + at
                                       : main_.mutable_data<uint32_t>() + at * 4 + place.word;
      *word |= static_cast<uint32_t>(code) << place.shift;
    }
  }

  void pack_wide(int64_t row, int64_t unit, int64_t group) {
    const int64_t shares = mixed_shares(k_);
    const int64_t share = row / kMixedTile * shares + unit / kMixedWideShare, lane = row % kMixedTile;
    const uint16_t scale = f16_of(weight_.scales[row * groups_ + group], name_, "the scale of a 4-bit group");
    const int zero = zero_of(row, group, 15);
    uint16_t& stored = scales_.mutable_data<uint16_t>()[share * kMixedTile + lane];
    uint8_t& zeros = zeros_.mutable_data<uint8_t>()[share * 8 + lane / 2];
    const int shift = static_cast<int>(4 * (lane & 1));
    if (!wide_set_[share * kMixedTile + lane]) {
      wide_set_[share * kMixedTile + lane] = true;
      stored = scale;
      zeros = static_cast<uint8_t>(zeros | zero << shift);
    } else if (stored != scale || (zeros >> shift & 15) != zero) {
      fail("{}: row {}: 4-bit group {} has another scale or zero point than the others it shares them with",
           name_, row, group);
    }
  }

  void pack_second_order(int64_t tile, int64_t unit, int64_t slot, int64_t group) {
    const int zero = weight_.mixed.second_zeros[tile * groups_ + group];
    if (zero > kMixedSecondZeroLimit[slot]) {
      fail("{}: the second-order zero of group {} is {}, expected at most {}", name_, group, zero,
           kMixedSecondZeroLimit[slot]);
    }
    uint16_t* second = second_.mutable_data<uint16_t>() + (tile * units_ + unit) * 4;
    second[slot] = f16_of(weight_.mixed.second_scales[tile * groups_ + group], name_, "a second-order scale");
    second[3] = static_cast<uint16_t>(second[3] | zero << kMixedSecondZeroShift[slot]);
  }

  void pack_first_order(int64_t row, int64_t unit, int64_t slot, int64_t group) {
    const int code = weight_.mixed.scale_codes[row * groups_ + group];
    if (code > kMixedFirstCodeLimit[slot]) {
      fail("{}: the scale code of row {}, group {} is {}, expected at most {}", name_, row, group, code,
           kMixedFirstCodeLimit[slot]);
    }
    const int64_t second = row / kMixedTile * groups_ + group;
    const float scale =
        static_cast<float>(code + weight_.mixed.second_zeros[second]) * weight_.mixed.second_scales[second];
    if (scale != weight_.scales[row * groups_ + group]) {
      fail("{}: the scale of row {}, group {} is {}, but its code stands for {}", name_, row, group,
           weight_.scales[row * groups_ + group], scale);
    }
    uint16_t& word = first_.mutable_data<uint16_t>()[row_unit(row, unit)];
    word = static_cast<uint16_t>(word | zero_of(row, group, 3) << (2 * slot) |
                                 code << kMixedFirstCodeShift[slot]);
  }

  const QuantizedWeight& weight_;
  const std::string& name_;
  const int64_t n_, k_, units_, groups_;
  Tensor order_, main_, split_, first_, second_, scales_, zeros_;
  std::vector<bool> wide_set_;  // by entry of scales_
};

void pack_sparse(const QuantizedWeight& weight, const std::string& name, PackedLinear& linear) {
  const SparsePart& sparse = weight.sparse;
  if (sparse.empty()) return;
  const int64_t n = weight.out_features, entries = static_cast<int64_t>(sparse.columns.size());
  NIBBLE_CHECK(sparse.row_offsets.front() == 0 && sparse.row_offsets.back() == entries);
  NIBBLE_CHECK(sparse.values.size() == sparse.columns.size());
  Tensor counts = Tensor::empty(DType::kU16, {n}), columns = Tensor::empty(DType::kU16, {entries}),
         values = Tensor::empty(DType::kF16, {entries});
  for (int64_t row = 0; row < n; ++row) {
    const int64_t count = sparse.row_offsets[row + 1] - sparse.row_offsets[row];
    if (count < 0 || count > 65535)
      fail("{}: row {} has {} sparse values, expected 0 to 65535", name, row, count);
    counts.mutable_data<uint16_t>()[row] = static_cast<uint16_t>(count);
  }
  for (int64_t i = 0; i < entries; ++i) {
    if (sparse.columns[i] < 0 || sparse.columns[i] >= weight.in_features) {
      fail("{}: a sparse value is in column {} of {}", name, sparse.columns[i], weight.in_features);
    }
    columns.mutable_data<uint16_t>()[i] = static_cast<uint16_t>(sparse.columns[i]);
    const uint16_t value = float_to_f16(sparse.values[i]);
    if ((value & 0x7c00u) == 0x7c00u) fail("{}: a sparse value is {}, beyond F16", name, sparse.values[i]);
    values.mutable_data<uint16_t>()[i] = value;
  }
  linear.parameters["sparse_values"] = entries;
  linear.tensors["sparse_counts"] = std::move(counts);
  linear.tensors["sparse_columns"] = std::move(columns);
  linear.tensors["sparse_values"] = std::move(values);
}

PackedLinear pack(const QuantizedWeight& weight, const std::string& name) {
  check_weight(weight, name);
  PackedLinear linear;
  linear.format = &kMixed2416Format;
  linear.name = name;
  linear.out_features = weight.out_features;
  linear.in_features = weight.in_features;
  Packer packer(weight, name);
  for (int64_t place = 0; place < mixed_units(weight.in_features) * kMixedSlots; ++place)
    packer.pack_place(place);
  packer.finish(linear);
  pack_sparse(weight, name, linear);
  if (!weight.bias.empty()) {
    linear.tensors["bias"] =
        Tensor::copy_of<float>({weight.out_features}, std::span<const float>(weight.bias));
  }
  return linear;
}

// --- validation

const Tensor& required(const PackedLinear& linear, const char* suffix, DType type, const Shape& shape) {
  return *check_tensor(linear, suffix, true, {type}, shape);
}

void check_sparse(const PackedLinear& linear) {
  const int64_t n = linear.out_features;
  const uint16_t* counts = required(linear, "sparse_counts", DType::kU16, {n}).data<uint16_t>();
  int64_t entries = 0;
  for (int64_t row = 0; row < n; ++row) entries += counts[row];
  if (entries != linear.parameter("sparse_values", 0)) {
    fail("{}: sparse_values is {}, but tensor {}.sparse_counts adds up to {}", linear.name,
         linear.parameter("sparse_values", 0), linear.name, entries);
  }
  const uint16_t* columns = required(linear, "sparse_columns", DType::kU16, {entries}).data<uint16_t>();
  check_finite(linear, "sparse_values", required(linear, "sparse_values", DType::kF16, {entries}));
  int64_t i = 0;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t end = i + counts[row], first = i; i < end; ++i) {
      if (columns[i] >= linear.in_features) {
        fail("tensor {}.sparse_columns has column {} in row {}, expected less than {}", linear.name,
             columns[i], row, linear.in_features);
      }
      if (i > first && columns[i] <= columns[i - 1]) {
        fail("tensor {}.sparse_columns has column {} after {} in row {}, expected ascending numbers",
             linear.name, columns[i], columns[i - 1], row);
      }
    }
  }
}

// Padding must be zero: then equal weights are equal bytes.
void check_padding(const PackedLinear& linear, const MixedLayout& layout) {
  for (int64_t place = 0; place < layout.units * kMixedSlots; ++place) {
    const int64_t column = layout.order[place] * kMixedGroup;
    for (int64_t i = std::max<int64_t>(0, layout.in_features - column); i < kMixedGroup; ++i) {
      for (int64_t row = 0; row < layout.out_features; ++row) {
        if (mixed_code(layout, row, place, i) == 0) continue;
        fail("tensor {}.{} has a code other than 0 in row {}, column {}, beyond the {} columns", linear.name,
             mixed_code_place(place % kMixedSlots, i).word == 4 ? "split" : "main", row, column + i,
             layout.in_features);
      }
    }
  }
  const int64_t used = layout.out_features % kMixedTile, tile = layout.tiles - 1;
  if (used == 0) return;
  const auto check = [&](const char* suffix, bool zero) {
    if (!zero) fail("tensor {}.{} is not zero beyond the {} rows", linear.name, suffix, layout.out_features);
  };
  for (int64_t unit = 0; unit < layout.units; ++unit) {
    for (int64_t row = used; row < kMixedTile; ++row) {
      const int64_t at = (tile * layout.units + unit) * kMixedTile + row;
      for (int word = 0; word < 4; ++word) check("main", layout.main[at * 4 + word] == 0);
      check("split", layout.split[at] == 0);
      check("first_order", layout.first[at] == 0);
    }
  }
  for (int64_t share = tile * layout.shares; share < layout.tiles * layout.shares; ++share) {
    for (int64_t row = used; row < kMixedTile; ++row) {
      check("scales", layout.scales[share * kMixedTile + row] == 0);
      check("zeros", (layout.zeros[share * 8 + row / 2] >> (4 * (row & 1)) & 15) == 0);
    }
  }
}

void validate(const PackedLinear& linear) {
  const int64_t n = linear.out_features, k = linear.in_features;
  if (n < 1 || k < 1 || n > kMaxOut || k > kMixedMaxIn) {
    fail("{}: a linear of {} x {} is out of range (1 to {} and 1 to {}) for format mixed_2_4_16", linear.name,
         n, k, kMaxOut, kMixedMaxIn);
  }
  for (const auto& [key, value] : linear.parameters) {
    if (key == "sparse_values" && value >= 1) continue;
    fail("{}: parameter '{}' is {}; format mixed_2_4_16 has only sparse_values, of at least 1", linear.name,
         key, value);
  }
  check_no_other_tensors(linear, {"groups", "main", "split", "first_order", "second_order", "scales", "zeros",
                                  "sparse_counts", "sparse_columns", "sparse_values", "bias"});
  const bool sparse = linear.parameter("sparse_values", 0) > 0 ||
                      std::any_of(linear.tensors.begin(), linear.tensors.end(),
                                  [](const auto& tensor) { return tensor.first.starts_with("sparse_"); });
  const int64_t units = mixed_units(k), tiles = mixed_tiles(n), shares = mixed_shares(k);
  check_order(required(linear, "groups", DType::kU16, {units, kMixedSlots}).data<uint16_t>(),
              units * kMixedSlots, "tensor " + linear.name + ".groups");
  required(linear, "main", DType::kU32, {tiles, units, kMixedTile, 4});
  required(linear, "split", DType::kU32, {tiles, units, kMixedTile});
  required(linear, "first_order", DType::kU16, {tiles, units, kMixedTile});
  const uint16_t* second = required(linear, "second_order", DType::kU16, {tiles, units, 4}).data<uint16_t>();
  for (int64_t i = 0; i < tiles * units; ++i) {
    for (int slot = 0; slot < 3; ++slot) {
      if ((second[4 * i + slot] & 0x7c00u) != 0x7c00u) continue;
      fail("tensor {}.second_order has a scale that is not finite in unit {}, slot {}", linear.name, i, slot);
    }
    if ((second[4 * i + 3] & ~0x0f77u) != 0) {
      fail("tensor {}.second_order has the zeros {} in unit {}, expected bits 3, 7 and 12 to 15 to be 0",
           linear.name, second[4 * i + 3], i);
    }
  }
  check_finite(linear, "scales", required(linear, "scales", DType::kF16, {tiles, shares, kMixedTile}));
  required(linear, "zeros", DType::kU8, {tiles, shares, 8});
  if (sparse) check_sparse(linear);
  check_bias(linear);
  check_padding(linear, mixed_layout(linear));
}

// --- reading back

void dequantize_rows(const PackedLinear& linear, int64_t first, int64_t count, float* weight) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && count <= linear.out_features - first);
  const MixedLayout layout = mixed_layout(linear);
  mixed_dequantize_dense(layout, first, count, weight);
  if (layout.sparse_counts == nullptr) return;
  int64_t entry = mixed_sparse_start(layout, first);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t end = entry + layout.sparse_counts[first + r]; entry < end; ++entry) {
      weight[r * layout.in_features + layout.sparse_columns[entry]] +=
          f16_to_float(layout.sparse_values[entry]);
    }
  }
}

// Real columns (without padding) in 4-bit groups.
int64_t wide_columns(const PackedLinear& linear) {
  const uint16_t* order = linear.find("groups")->data<uint16_t>();
  int64_t columns = 0;
  for (int64_t unit = 0; unit < mixed_units(linear.in_features); ++unit) {
    const int64_t first = order[unit * kMixedSlots + kMixedWideSlot] * kMixedGroup;
    columns += std::clamp<int64_t>(linear.in_features - first, 0, kMixedGroup);
  }
  return columns;
}

// Each place of the matrix counts once: where a sparse value stands, as 16 bit. Those are weights of 2-bit
// groups, of which a foreign file might not have enough.
std::map<int, double> multiply_adds(const PackedLinear& linear) {
  const auto rows = static_cast<double>(linear.out_features);
  const int64_t wide = wide_columns(linear);
  const auto sparse = static_cast<double>(linear.parameter("sparse_values", 0));
  const double narrow = rows * static_cast<double>(linear.in_features - wide) - sparse;
  std::map<int, double> adds;
  if (wide > 0) adds[4] = rows * static_cast<double>(wide);
  if (narrow > 0) adds[2] = narrow;
  if (sparse > 0) adds[16] = sparse;
  return adds;
}

bool can_fuse(const PackedLinear& a, const PackedLinear& b) {
  return a.format == b.format && a.in_features == b.in_features;
}

constexpr std::array kKernels = {&kMixedAvx512,     &kMixedAvxVnni,  &kMixedAvx2,
                                 &kMixedAvx512Sync, &kMixedAvx2Sync, &kMixedReference};

}  // namespace

const LinearFormat kMixed2416Format = {
    .name = "mixed_2_4_16",
    .description =
        "2- and 4-bit weights in groups of 16 columns with two orders of scales, single weights in 16 bit",
    .pack = pack,
    .validate = validate,
    .dequantize_rows = dequantize_rows,
    .arithmetic = [](const PackedLinear&) { return std::string("int2/4xf32->f32"); },
    .code_bits = [](const PackedLinear&) { return 2; },
    .multiply_adds = multiply_adds,
    .can_fuse = can_fuse,
    .kernels = kKernels,
    .f16_scales = true,
};

}  // namespace nibble
