// Shapes, weights and inputs of linears, shared by the conformance tests of every format and by the
// benchmarks. Everything is a pure function of its arguments: the same case is the same numbers everywhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "base/half.h"
#include "formats/format.h"

namespace nibble::cases {

enum class Codes {
  kRandom,     // uniform over the codes; where there are four rows, row 1 is all zero and row 2 has scale 0
  kLowest,     // every code -2^(b-1): with the highest activation codes, the largest possible sums
  kAlternate,  // lowest and highest code in turn
};

// One kind of token after the other, starting with `first_token`.
enum class Token { kNormal, kAllZero, kPositive, kNegative, kTies, kHighest, kTiny, kCount };

struct LinearCase {
  int64_t n, k, outliers, tokens;
  bool bias = false;
  Codes codes = Codes::kRandom;
  Token first_token = Token::kNormal;

  std::string name() const {
    return std::to_string(n) + "x" + std::to_string(k) + " outliers " + std::to_string(outliers) +
           " tokens " + std::to_string(tokens) + (bias ? " bias" : "") + " codes " +
           std::to_string(static_cast<int>(codes)) + " first token " +
           std::to_string(static_cast<int>(first_token));
  }
};

inline const std::vector<LinearCase>& linear_cases() {
  static const std::vector<LinearCase> cases = {
      // One row, one column, and both.
      {1, 1, 0, 1},
      {1, 1, 0, 3, true, Codes::kLowest, Token::kHighest},
      {1, 37, 1, 2, true},
      {5, 1, 0, 7, false, Codes::kRandom, Token::kTies},
      {1, 600, 0, 17},
      // Odd widths, rows that are no multiple of 16, k_int odd and even.
      {3, 7, 2, 6, true},
      {15, 63, 0, 3},
      {16, 64, 0, 1},
      {17, 65, 1, 2, true},
      {31, 127, 63, 6, false, Codes::kRandom, Token::kTies},
      {33, 129, 32, 7, true, Codes::kRandom, Token::kPositive},
      {47, 95, 47, 16},
      {48, 576, 64, 17, true},
      {64, 576, 0, 33},
      {65, 193, 96, 33, true, Codes::kRandom, Token::kNegative},
      {100, 257, 1, 129},
      {96, 640, 32, 129, true},
      {130, 1030, 33, 40},
      // Single tokens of every kind, where decoding takes the paths of one row.
      {40, 200, 32, 1, true, Codes::kRandom, Token::kAllZero},
      {40, 200, 0, 1, false, Codes::kRandom, Token::kPositive},
      {40, 200, 32, 1, true, Codes::kRandom, Token::kNegative},
      {40, 201, 1, 1, false, Codes::kRandom, Token::kTies},
      {40, 200, 100, 1, true, Codes::kRandom, Token::kTiny},
      {200, 320, 32, 4, true},
      {200, 320, 32, 5},
      {200, 320, 32, 8, true},
      // More tokens than one chunk of them holds at this width.
      {5, 16400, 8, 70, true},
      // Saturated codes.
      {20, 1000, 0, 7, false, Codes::kLowest, Token::kHighest},
      {20, 1000, 31, 35, true, Codes::kAlternate, Token::kHighest},
      {33, 4100, 4, 18, true, Codes::kLowest, Token::kHighest},
      {2, 65536, 0, 1, false, Codes::kLowest, Token::kHighest},
  };
  return cases;
}

inline std::vector<float> normal_floats(size_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// Outlier columns spread over [0, k): ascending, unique, the first and last column among them where there are
// several.
inline std::vector<int32_t> spread_columns(int64_t k, int64_t count) {
  std::vector<int32_t> columns;
  for (int64_t i = 0; i < count; ++i) {
    columns.push_back(static_cast<int32_t>(count == 1 ? k / 2 : i * (k - 1) / (count - 1)));
  }
  return columns;
}

// How a quantizer would set up a weight.
struct WeightSpec {
  int weight_bits = 4;
  int activation_bits = 16;
  int64_t group_size = 0;
  bool zeros = false;
  // Integer group scales times a float per row, and the same with an amplifier in its place.
  enum class Scales { kFloat, kTwoLevel, kAmplified } scales = Scales::kFloat;
  float activation_scale = 0;  // static; 0: per token
  bool pruned = false;         // 2:4
  int most_multiplier = 255;   // of integer group scales

  std::string name() const {
    return "w" + std::to_string(weight_bits) + "a" + std::to_string(activation_bits) +
           (group_size > 0 ? "g" + std::to_string(group_size) : "") + (zeros ? "z" : "") +
           (pruned ? "s" : "") +
           (scales == Scales::kTwoLevel    ? " two-level"
            : scales == Scales::kAmplified ? " amplified"
                                           : "") +
           (most_multiplier < 255 ? " to " + std::to_string(most_multiplier) : "") +
           (activation_scale > 0 ? " static" : "");
  }
};

inline QuantizedWeight make_weight(const LinearCase& shape, const WeightSpec& spec, bool with_outliers) {
  QuantizedWeight weight;
  weight.out_features = shape.n;
  weight.in_features = shape.k;
  weight.weight_bits = spec.weight_bits;
  weight.activation_bits = spec.activation_bits;
  weight.group_size = spec.group_size;
  if (with_outliers) weight.outlier_columns = spread_columns(shape.k, shape.outliers);
  const int64_t k_int = weight.integer_columns();
  const int64_t groups = spec.group_size == 0 ? 1 : (k_int + spec.group_size - 1) / spec.group_size;
  const uint32_t seed =
      static_cast<uint32_t>(shape.n * 7919 + shape.k * 104729 + shape.outliers * 31 + spec.weight_bits);
  std::mt19937 generator(seed);
  const int limit = 1 << (spec.weight_bits - 1);
  std::uniform_int_distribution<int> code(-limit, limit - 1);
  const bool special_rows = shape.codes == Codes::kRandom && shape.n >= 4;
  weight.codes.resize(static_cast<size_t>(shape.n * k_int));
  for (int64_t row = 0; row < shape.n; ++row) {
    for (int64_t j = 0; j < k_int; ++j) {
      int value = code(generator);
      if (special_rows && row == 1) value = 0;
      if (shape.codes == Codes::kLowest) value = -limit;
      if (shape.codes == Codes::kAlternate) value = (row + j) % 2 == 0 ? -limit : limit - 1;
      weight.codes[row * k_int + j] = static_cast<int8_t>(value);
    }
  }
  std::uniform_real_distribution<float> scale(0.001f, 0.1f);
  weight.scales.resize(static_cast<size_t>(shape.n * groups));
  // Rounded to 16 bits, which a format may use to store them.
  for (float& value : weight.scales) value = f16_to_float(float_to_f16(scale(generator)));
  if (special_rows) weight.scales[2 * groups] = 0.0f;
  weight.activation_scale = spec.activation_scale;
  if (spec.scales != WeightSpec::Scales::kFloat) {
    // As large as the INT32 sum of a row of largest codes holds.
    const int64_t room = ((int64_t{1} << 31) - 1) / (127 * limit * k_int);
    std::uniform_int_distribution<int> multiplier(
        1, static_cast<int>(std::min<int64_t>(room, spec.most_multiplier)));
    if (spec.scales == WeightSpec::Scales::kAmplified) weight.scale_amplifier = 1024;
    for (int64_t row = 0; row < shape.n; ++row) {
      weight.row_scales.push_back(spec.scales == WeightSpec::Scales::kAmplified ? 0x1p-10f
                                                                                : scale(generator) / 255);
      for (int64_t group = 0; group < groups; ++group) {
        const bool zero = special_rows && row == 2 && group == 0;
        weight.scale_multipliers.push_back(zero ? 0 : multiplier(generator));
        weight.scales[row * groups + group] =
            weight.row_scales.back() * static_cast<float>(weight.scale_multipliers.back());
      }
    }
  }
  if (spec.zeros) {
    std::uniform_int_distribution<int> zero(-limit, limit - 1);
    weight.zeros.resize(weight.scales.size());
    for (float& value : weight.zeros) value = static_cast<float>(zero(generator));
  }
  weight.outlier_weights =
      normal_floats(static_cast<size_t>(shape.n) * weight.outlier_columns.size(), seed + 1, 0.05f);
  for (float& value : weight.outlier_weights) value = f16_to_float(float_to_f16(value));
  if (shape.bias) weight.bias = normal_floats(static_cast<size_t>(shape.n), seed + 2, 0.5f);
  return weight;
}

// A table of levels per row, with random, equal, and unordered levels. With `with_sparse`, rows have from no
// corrected weight to all of them; where a row has many, its last column is among them.
inline QuantizedWeight make_codebook_weight(const LinearCase& shape, int bits, bool with_sparse) {
  QuantizedWeight weight;
  weight.out_features = shape.n;
  weight.in_features = shape.k;
  weight.weight_bits = bits;
  const uint32_t seed = static_cast<uint32_t>(shape.n * 6007 + shape.k * 911 + bits);
  std::mt19937 generator(seed);
  const int levels = 1 << bits;
  std::uniform_int_distribution<int> code(0, levels - 1);
  for (int64_t i = 0; i < shape.n * shape.k; ++i) {
    const int64_t row = i / shape.k, j = i % shape.k;
    const int value = shape.codes == Codes::kLowest      ? levels - 1
                      : shape.codes == Codes::kAlternate ? ((row + j) % 2 == 0 ? 0 : levels - 1)
                                                         : code(generator);
    weight.codes.push_back(static_cast<int8_t>(value));
  }
  // Numbers of F16, which the format stores.
  weight.codebooks = normal_floats(static_cast<size_t>(shape.n * levels), seed + 1, 0.05f);
  for (float& level : weight.codebooks) level = f16_to_float(float_to_f16(level));
  if (shape.n >= 4) std::fill_n(weight.codebooks.begin() + levels, levels, weight.codebooks[levels]);
  if (shape.bias) weight.bias = normal_floats(static_cast<size_t>(shape.n), seed + 2, 0.5f);
  if (!with_sparse) return weight;
  weight.sparse.row_offsets.push_back(0);
  for (int64_t row = 0; row < shape.n; ++row) {
    const int64_t count = row % 4 == 1   ? 0
                          : row % 4 == 2 ? shape.k
                                         : std::min<int64_t>(shape.k, 1 + row % 5 + shape.k / 100);
    for (const int32_t column : spread_columns(shape.k, count)) {
      // Of the level's own sign: what an outlier is corrected by.
      const float level = weight.codebooks[row * levels + weight.codes[row * shape.k + column]];
      weight.sparse.columns.push_back(column);
      weight.sparse.values.push_back(
          f16_to_float(float_to_f16(level * (0.5f + static_cast<float>(row % 3)))));
    }
    weight.sparse.row_offsets.push_back(static_cast<int64_t>(weight.sparse.columns.size()));
  }
  return weight;
}

// A weight of 2- and 4-bit groups (format mixed_2_4_16) in a random order of groups. `sparse_share` of its
// places have a sparse value.
inline QuantizedWeight make_mixed_weight(const LinearCase& shape, double sparse_share) {
  const int64_t n = shape.n, k = shape.k, units = (k + 63) / 64, groups = (k + 15) / 16,
                tiles = (n + 15) / 16;
  QuantizedWeight weight;
  weight.out_features = n;
  weight.in_features = k;
  weight.weight_bits = 2;
  weight.group_size = 16;
  std::mt19937 generator(static_cast<uint32_t>(n * 7919 + k * 104729));
  const auto below = [&](int64_t count) {
    return static_cast<int>(generator() % static_cast<uint64_t>(count));
  };
  MixedGroups& mixed = weight.mixed;
  for (int32_t group = 0; group < 4 * units; ++group) mixed.order.push_back(group);
  for (size_t i = mixed.order.size() - 1; i > 0; --i) std::swap(mixed.order[i], mixed.order[below(i + 1)]);
  weight.codes.resize(static_cast<size_t>(n * k));
  weight.scales.resize(static_cast<size_t>(n * groups));
  weight.zeros.resize(weight.scales.size());
  mixed.scale_codes.resize(weight.scales.size());
  mixed.second_scales.resize(static_cast<size_t>(tiles * groups));
  mixed.second_zeros.resize(mixed.second_scales.size());
  const auto f16_number = [&] {
    return f16_to_float(float_to_f16(0.001f + 0.0001f * static_cast<float>(below(50))));
  };
  std::vector<float> wide_scales(static_cast<size_t>(n)), wide_zeros(static_cast<size_t>(n));
  const bool special_rows = shape.codes == Codes::kRandom && n >= 4;
  for (int64_t place = 0; place < 4 * units; ++place) {
    const int64_t group = mixed.order[place], slot = place % 4;
    const int levels = slot == 3 ? 16 : 4;
    if (place % 32 == 3) {  // eight 4-bit groups share their scales
      for (int64_t row = 0; row < n; ++row) {
        wide_scales[row] = special_rows && row == 2 ? 0.0f : f16_number();
        wide_zeros[row] = static_cast<float>(shape.codes == Codes::kLowest ? 15 : below(16));
      }
    }
    if (group >= groups) continue;
    for (int64_t tile = 0; tile < tiles && slot != 3; ++tile) {
      mixed.second_scales[tile * groups + group] = f16_number();
      mixed.second_zeros[tile * groups + group] = static_cast<uint8_t>(below(slot == 2 ? 16 : 8));
    }
    for (int64_t row = 0; row < n; ++row) {
      const int64_t at = row * groups + group, second = row / 16 * groups + group;
      if (slot == 3) {
        weight.scales[at] = wide_scales[row];
        weight.zeros[at] = wide_zeros[row];
      } else {
        mixed.scale_codes[at] = static_cast<uint8_t>(below(slot == 2 ? 16 : 8));
        weight.scales[at] = static_cast<float>(mixed.scale_codes[at] + mixed.second_zeros[second]) *
                            mixed.second_scales[second];
        weight.zeros[at] = static_cast<float>(shape.codes == Codes::kLowest ? 3 : below(4));
      }
      for (int64_t column = group * 16; column < k && column < group * 16 + 16; ++column) {
        int code = below(levels);
        if (special_rows && row == 1) code = static_cast<int>(weight.zeros[at]);  // exactly zero
        if (shape.codes == Codes::kLowest) code = 0;
        if (shape.codes == Codes::kAlternate) code = (row + column) % 2 == 0 ? 0 : levels - 1;
        weight.codes[row * k + column] = static_cast<int8_t>(code);
      }
    }
  }
  if (sparse_share > 0) {
    weight.sparse.row_offsets.push_back(0);
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t column = 0; column < k; ++column) {
        if (below(1 << 20) >= static_cast<int>(sparse_share * (1 << 20)) || (special_rows && row == 1))
          continue;
        weight.sparse.columns.push_back(static_cast<int32_t>(column));
        weight.sparse.values.push_back(f16_number() - 0.003f);
        weight.sparse.values.back() = f16_to_float(float_to_f16(weight.sparse.values.back()));
      }
      weight.sparse.row_offsets.push_back(static_cast<int64_t>(weight.sparse.columns.size()));
    }
  }
  if (shape.bias) weight.bias = normal_floats(static_cast<size_t>(n), 79, 0.5f);
  return weight;
}

// [tokens, k]. `activation_bits` shapes the kTies tokens: their quotients x/s lie exactly halfway between
// integers; `symmetric` grids reach from -(2^b - 1) / 2 to as much above.
inline std::vector<float> make_input(const LinearCase& shape, int activation_bits, bool symmetric = false) {
  std::vector<float> x = normal_floats(static_cast<size_t>(shape.tokens * shape.k),
                                       static_cast<uint32_t>(shape.k * 13 + shape.tokens));
  const std::vector<int32_t> outliers = spread_columns(shape.k, shape.outliers);
  std::vector<bool> is_outlier(static_cast<size_t>(shape.k));
  for (const int32_t column : outliers) is_outlier[column] = true;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    float* row = x.data() + t * shape.k;
    const int kinds = static_cast<int>(Token::kCount);
    switch (static_cast<Token>((static_cast<int>(shape.first_token) + t) % kinds)) {
      case Token::kAllZero:
        for (int64_t j = 0; j < shape.k; ++j) row[j] = is_outlier[j] ? row[j] : (j % 2 == 0 ? 0.0f : -0.0f);
        break;
      case Token::kPositive:
        for (int64_t j = 0; j < shape.k; ++j) row[j] = row[j] < 0 ? -row[j] : row[j];
        break;
      case Token::kNegative:
        for (int64_t j = 0; j < shape.k; ++j) row[j] = row[j] > 0 ? -row[j] : row[j];
        break;
      case Token::kTies: {
        // With the whole range present, s is exactly `step`; other values are odd multiples of step / 2.
        const int levels = (1 << (activation_bits == 4 ? 4 : 8)) - (symmetric ? 2 : 1);
        const float step = 0.125f;
        for (int64_t j = 0; j < shape.k; ++j) {
          const int64_t halves = (t * 3 + j * 5) % (2 * levels) - levels;
          row[j] = static_cast<float>(halves / 2 * 2 + 1) * step / 2;
        }
        int ends = 0;
        for (int64_t j = 0; j < shape.k && ends < 2; ++j) {
          if (is_outlier[j]) continue;
          row[j] = step * static_cast<float>(ends == 0 ? -(levels / 2) : levels - levels / 2);
          ++ends;
        }
        for (int64_t j = 0; j < shape.k; ++j) {
          const float lo = -step * static_cast<float>(levels / 2),
                      hi = lo + step * static_cast<float>(levels);
          row[j] = row[j] < lo ? lo : row[j] > hi ? hi : row[j];
        }
        break;
      }
      case Token::kHighest:
        for (int64_t j = 0; j < shape.k; ++j) row[j] = 3.0f;
        break;
      case Token::kTiny:
        // Subnormal steps: the quotients leave the range of the codes.
        for (int64_t j = 0; j < shape.k; ++j) row[j] *= 1e-44f;
        break;
      default:
        break;
    }
    // Outlier columns are large, as in real models.
    for (const int32_t column : outliers) row[column] *= 20.0f;
  }
  return x;
}

// What a format is tested on: a way to make a PackedLinear for a case.
struct Subject {
  const LinearFormat* format = nullptr;
  std::string name;  // "quik w4a4"
  int activation_bits = 16;
  bool outliers = false;  // keeps outlier columns; else every column is an integer (or float) one
  bool symmetric_activations = false;  // signed codes: max|x| / 127 or a static step, no zero point
  std::function<PackedLinear(const LinearCase&, const std::string& name)> make;
  // The codes that were packed, for formats that hold codes.
  std::function<QuantizedWeight(const LinearCase&)> weight;

  // How GoogleTest names it in failures.
  friend void PrintTo(const Subject& subject, std::ostream* out) { *out << subject.name; }
};

inline PackedLinear make_dense(const LinearFormat* format, DType dtype, const LinearCase& shape,
                               const std::string& name) {
  PackedLinear linear;
  linear.format = format;
  linear.name = name;
  linear.out_features = shape.n;
  linear.in_features = shape.k;
  const std::vector<float> values = normal_floats(static_cast<size_t>(shape.n * shape.k), 77, 0.05f);
  Tensor weight = Tensor::empty(dtype, {shape.n, shape.k});
  if (dtype == DType::kF32) {
    std::memcpy(weight.mutable_raw(), values.data(), weight.bytes());
  } else {
    for (size_t i = 0; i < values.size(); ++i) {
      weight.mutable_data<uint16_t>()[i] =
          dtype == DType::kF16 ? float_to_f16(values[i]) : float_to_bf16(values[i]);
    }
  }
  linear.tensors.emplace("weight", std::move(weight));
  if (shape.bias) {
    linear.tensors.emplace(
        "bias", Tensor::copy_of<float>({shape.n}, normal_floats(static_cast<size_t>(shape.n), 78)));
  }
  return linear;
}

// Prunes a weight 2:4, in an order that is not the columns' own; which two survive differs from row to row.
inline QuantizedWeight prune(QuantizedWeight weight) {
  const int64_t k_int = weight.integer_columns();
  std::vector<int64_t> places(static_cast<size_t>(k_int));  // among the integer columns, in mask order
  for (int64_t j = 0; j < k_int; ++j) places[j] = j;
  std::mt19937 generator(static_cast<uint32_t>(k_int));
  for (int64_t j = k_int - 1; j > 0; --j) std::swap(places[j], places[generator() % (j + 1)]);
  std::vector<int32_t> columns;
  size_t outlier = 0;
  for (int32_t column = 0; column < weight.in_features; ++column) {
    if (outlier < weight.outlier_columns.size() && weight.outlier_columns[outlier] == column) {
      ++outlier;
    } else {
      columns.push_back(column);
    }
  }
  for (const int64_t place : places) weight.mask_order.push_back(columns[place]);
  for (int64_t row = 0; row < weight.out_features; ++row) {
    for (int64_t first = 0; first < k_int; first += 4) {
      const int64_t members = std::min<int64_t>(4, k_int - first), skipped = generator() % 4;
      int64_t kept = 0;
      for (int64_t i = 0; i < members; ++i) {
        // Two of four that follow each other around; every pair of places comes up.
        const bool survives = (i + skipped) % 4 == 0 || (i + skipped) % 4 == 1 + (row + first / 4) % 3;
        if (survives && kept < 2) {
          ++kept;
        } else {
          weight.codes[row * k_int + places[first + i]] = 0;
        }
      }
    }
  }
  return weight;
}

inline Subject coded_subject(const LinearFormat* format, const WeightSpec& spec, bool outliers) {
  const auto weight = [spec, outliers](const LinearCase& shape) {
    QuantizedWeight made = make_weight(shape, spec, outliers);
    return spec.pruned ? prune(std::move(made)) : made;
  };
  return {format,
          std::string(format->name) + " " + spec.name(),
          spec.activation_bits,
          outliers,
          std::string_view(format->name) == "group_int_a8",
          [format, weight](const LinearCase& shape, const std::string& name) {
            return format->pack(weight(shape), name);
          },
          weight};
}

// Every format with every setting that its kernels distinguish. A format that is missing here has no
// subjects, which the conformance test reports as a failure.
inline std::vector<Subject> subjects() {
  std::vector<Subject> all;
  for (const LinearFormat* format : all_formats()) {
    const std::string name = format->name;
    if (name == "quik") {
      for (const WeightSpec& spec :
           {WeightSpec{4, 4}, WeightSpec{4, 8}, WeightSpec{8, 8}, WeightSpec{8, 4}}) {
        all.push_back(coded_subject(format, spec, true));
      }
    } else if (name == "quik_sparse") {
      for (const WeightSpec& spec :
           {WeightSpec{4, 4}, WeightSpec{4, 8}, WeightSpec{8, 8}, WeightSpec{8, 4}}) {
        WeightSpec pruned = spec;
        pruned.pruned = true;
        all.push_back(coded_subject(format, pruned, true));
      }
    } else if (name == "group_int") {
      for (const int bits : {2, 3, 4, 8}) {
        for (const int64_t group : {0, 32, 128}) {
          all.push_back(coded_subject(format, {bits, 16, group, bits == 3 || group == 32}, false));
        }
      }
      all.push_back(coded_subject(format, {4, 16, 7, true}, false));
    } else if (name == "squeezellm") {
      for (const int bits : {2, 3, 4}) {
        for (const bool sparse : {false, true}) {
          const auto weight = [bits, sparse](const LinearCase& shape) {
            return make_codebook_weight(shape, bits, sparse);
          };
          all.push_back({format, name + " w" + std::to_string(bits) + (sparse ? " sparse" : ""), 16, false,
                         false,
                         [format, weight](const LinearCase& shape, const std::string& linear) {
                           return format->pack(weight(shape), linear);
                         },
                         weight});
        }
      }
    } else if (name == "mixed_2_4_16") {
      for (const double share : {0.0, 0.02}) {
        const auto weight = [share](const LinearCase& shape) { return make_mixed_weight(shape, share); };
        all.push_back({format, share > 0 ? name + " sparse" : name, 16, false, false,
                       [format, weight](const LinearCase& shape, const std::string& linear) {
                         return format->pack(weight(shape), linear);
                       },
                       weight});
      }
    } else if (name == "group_int_a8") {
      using Scales = WeightSpec::Scales;
      // Steps of the static grid at which kTies tokens lie halfway, and outlier columns beyond the grid.
      constexpr float kStep = 0.125f;
      for (const WeightSpec& spec :
           {WeightSpec{4, 8, 128}, WeightSpec{4, 8, 32}, WeightSpec{4, 8, 64, false, Scales::kFloat, kStep},
            WeightSpec{4, 8, 0}, WeightSpec{8, 8, 0}, WeightSpec{8, 8, 128, false, Scales::kFloat, kStep},
            WeightSpec{4, 8, 128, false, Scales::kTwoLevel},
            WeightSpec{4, 8, 64, false, Scales::kTwoLevel, 0, false, 16},
            WeightSpec{4, 8, 64, false, Scales::kAmplified, kStep},
            WeightSpec{8, 8, 32, false, Scales::kTwoLevel},
            WeightSpec{8, 8, 96, false, Scales::kAmplified}}) {
        all.push_back(coded_subject(format, spec, false));
      }
    } else if (name == "dense") {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        all.push_back({format, name + " " + std::string(dtype_name(dtype)), 16, false, false,
                       [format, dtype](const LinearCase& shape, const std::string& linear) {
                         return make_dense(format, dtype, shape, linear);
                       },
                       nullptr});
      }
    }
  }
  return all;
}

// Linears of real models, for benchmarks: {out, in, outlier columns by the rule of the quik recipes}.
struct BenchShape {
  const char* name;
  int64_t n, k, outliers;
};
inline constexpr BenchShape kBenchShapes[] = {
    {"smollm2.qkv", 960, 576, 64},    {"smollm2.o", 576, 576, 64},     {"smollm2.gate_up", 3072, 576, 64},
    {"smollm2.down", 576, 1536, 128}, {"square4096", 4096, 4096, 256},
};

}  // namespace nibble::cases
