// Signed codes of 4 or 8 bits in rows of bytes, as quik and group_int_a8 store them: with 4 bits two to a
// byte, the earlier column in the low nibble and 0 after the last one; with 8 bits one each.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace nibble {

int64_t packed_row_bytes(int64_t columns, int weight_bits);
// Codes of one row, [columns], to their bytes [packed_row_bytes] and back.
void pack_row(const int8_t* codes, int64_t columns, int weight_bits, uint8_t* packed);
void unpack_row(const uint8_t* packed, int64_t columns, int weight_bits, int8_t* codes);

// That nothing follows the last column in the rows of `codes`; throws Error naming `linear` where something
// does.
void check_unused_nibbles(const Tensor& codes, int64_t columns, int weight_bits, const std::string& linear);

// The elements of a tensor. A copy, because tensors of a mapped file may stand at any address.
template <typename T>
std::vector<T> values_of(const Tensor& tensor) {
  std::vector<T> values(static_cast<size_t>(tensor.elements()));
  if (!values.empty()) std::memcpy(values.data(), tensor.raw(), values.size() * sizeof(T));
  return values;
}

}  // namespace nibble
