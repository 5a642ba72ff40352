#include "formats/signed_codes.h"

#include "base/error.h"

namespace nibble {

int64_t packed_row_bytes(int64_t columns, int weight_bits) {
  return weight_bits == 4 ? (columns + 1) / 2 : columns;
}

void pack_row(const int8_t* codes, int64_t columns, int weight_bits, uint8_t* packed) {
  if (weight_bits == 8) {
    std::memcpy(packed, codes, static_cast<size_t>(columns));
    return;
  }
  for (int64_t j = 0; j < columns; j += 2) {
    const int low = codes[j] & 0xf;
    const int high = j + 1 < columns ? codes[j + 1] & 0xf : 0;
    packed[j / 2] = static_cast<uint8_t>(low | (high << 4));
  }
}

void unpack_row(const uint8_t* packed, int64_t columns, int weight_bits, int8_t* codes) {
  if (weight_bits == 8) {
    std::memcpy(codes, packed, static_cast<size_t>(columns));
    return;
  }
  for (int64_t j = 0; j < columns; ++j) {
    const int bits = packed[j / 2] >> (j % 2 * 4) & 0xf;
    codes[j] = static_cast<int8_t>(bits - ((bits & 8) << 1));
  }
}

void check_unused_nibbles(const Tensor& codes, int64_t columns, int weight_bits, const std::string& linear) {
  if (weight_bits != 4 || columns % 2 == 0) return;
  const int64_t row_bytes = packed_row_bytes(columns, weight_bits);
  const auto* packed = reinterpret_cast<const uint8_t*>(codes.raw());
  for (int64_t row = 0; row < codes.dim(0); ++row) {
    if (packed[(row + 1) * row_bytes - 1] >> 4 != 0)
      fail("{}.codes: the unused high nibble at the end of row {} is not 0", linear, row);
  }
}

}  // namespace nibble
