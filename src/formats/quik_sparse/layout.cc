#include "formats/quik_sparse/layout.h"

#include <algorithm>
#include <cstring>

#include "formats/signed_codes.h"

namespace nibble::quik_sparse {
namespace {

int32_t signed_nibble(int bits) { return (bits & 15) - ((bits & 8) << 1); }

}  // namespace

int64_t group_count(int64_t k_int) { return (k_int + kGroup - 1) / kGroup; }

int64_t code_row_bytes(int64_t k_int, int weight_bits) {
  return group_count(k_int) * (weight_bits == 4 ? 1 : 2);
}

int64_t position_row_bytes(int64_t k_int) { return (group_count(k_int) + 1) / 2; }

int64_t pack_row(const int8_t* codes, int64_t k_int, int weight_bits, uint8_t* packed, uint8_t* positions) {
  std::memset(positions, 0, static_cast<size_t>(position_row_bytes(k_int)));
  for (int64_t group = 0; group < group_count(k_int); ++group) {
    int8_t four[kGroup] = {};
    const int64_t first = group * kGroup;
    std::copy(codes + first, codes + std::min(k_int, first + kGroup), four);
    const auto kept = kGroup - std::count(four, four + kGroup, 0);
    if (kept > 2) return group;
    // Places of codes that are not 0, then the first others.
    int64_t spare = 2 - kept;
    int places[2], found = 0;
    for (int place = 0; place < kGroup && found < 2; ++place) {
      if (four[place] != 0 || spare > 0) {
        spare -= four[place] == 0;
        places[found++] = place;
      }
    }
    const int first_code = four[places[0]], second_code = four[places[1]];
    if (weight_bits == 4) {
      packed[group] = static_cast<uint8_t>((first_code & 15) | (second_code & 15) << 4);
    } else {
      packed[2 * group] = static_cast<uint8_t>(first_code);
      packed[2 * group + 1] = static_cast<uint8_t>(second_code);
    }
    const int pattern = places[0] | places[1] << 2;
    positions[group / 2] = static_cast<uint8_t>(positions[group / 2] | pattern << (group % 2 * 4));
  }
  return -1;
}

Layout::Pair Layout::pair(int64_t row, int64_t group) const {
  Pair pair{};
  if (weight_bits == 4) {
    const int byte = codes[row * groups + group];
    pair.codes[0] = signed_nibble(byte);
    pair.codes[1] = signed_nibble(byte >> 4);
  } else {
    for (int i = 0; i < 2; ++i) {
      pair.codes[i] = static_cast<int8_t>(codes[(row * groups + group) * 2 + i]);
    }
  }
  const int pattern = positions[row * position_row_bytes(k_int) + group / 2] >> (group % 2 * 4);
  pair.indices[0] = group * kGroup + (pattern & 3);
  pair.indices[1] = group * kGroup + (pattern >> 2 & 3);
  return pair;
}

void Layout::unpack_row(int64_t row, int8_t* out) const {
  std::memset(out, 0, static_cast<size_t>(k_int));
  for (int64_t group = 0; group < groups; ++group) {
    const Pair kept = pair(row, group);
    for (int i = 0; i < 2; ++i) {
      if (kept.indices[i] < k_int) out[places[kept.indices[i]]] = static_cast<int8_t>(kept.codes[i]);
    }
  }
}

Layout read_layout(const PackedLinear& linear) {
  Layout layout;
  layout.n = linear.out_features;
  layout.k = linear.in_features;
  layout.weight_bits = static_cast<int>(linear.parameter("weight_bits", 0));
  layout.activation_bits = static_cast<int>(linear.parameter("activation_bits", 0));
  layout.outlier_columns = values_of<int32_t>(*linear.find("outlier_columns"));
  layout.k_int = layout.k - layout.outliers();
  layout.groups = group_count(layout.k_int);
  layout.codes = reinterpret_cast<const uint8_t*>(linear.find("codes")->raw());
  layout.positions = linear.find("positions")->data<uint8_t>();
  layout.scales = values_of<float>(*linear.find("scales"));
  layout.integer_columns = values_of<int32_t>(*linear.find("integer_columns"));
  layout.outlier_weights = values_of<uint16_t>(*linear.find("outlier_weights"));
  if (const Tensor* bias = linear.find("bias")) {
    layout.bias = values_of<float>(*bias);
  } else {
    layout.bias.assign(static_cast<size_t>(layout.n), 0.0f);
  }
  layout.ascending_columns = layout.integer_columns;
  std::sort(layout.ascending_columns.begin(), layout.ascending_columns.end());
  std::vector<int32_t> place_of(static_cast<size_t>(layout.k));
  for (int64_t j = 0; j < layout.k_int; ++j) place_of[layout.ascending_columns[j]] = static_cast<int32_t>(j);
  layout.places.reserve(static_cast<size_t>(layout.k_int));
  for (const int32_t column : layout.integer_columns) layout.places.push_back(place_of[column]);
  return layout;
}

}  // namespace nibble::quik_sparse
