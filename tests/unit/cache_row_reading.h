// Rows of a cache read by the text of kernels/cache_row.h, one value at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "kernels/float_kernels.h"

namespace nibble::testing {

inline float half_at(const unsigned char* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return f16_to_float(bits);
}

inline int64_t expected_row_bytes(CacheType type, int64_t head_dim) {
  const int64_t groups = (head_dim + 31) / 32;
  switch (type) {
    case CacheType::kF32:
      return head_dim * 4;
    case CacheType::kF16:
      return head_dim * 2;
    case CacheType::kQ8:
      return head_dim + groups * 2;
    case CacheType::kQ4:
      return groups * 16 + groups * 4;
  }
  return 0;
}

inline float cache_value(CacheType type, const void* row, int64_t head_dim, int64_t i) {
  const auto* bytes = static_cast<const unsigned char*>(row);
  const int64_t group = i / 32, within = i % 32, groups = (head_dim + 31) / 32;
  float value = 0;
  switch (type) {
    case CacheType::kF32:
      std::memcpy(&value, bytes + 4 * i, 4);
      break;
    case CacheType::kF16:
      value = half_at(bytes + 2 * i);
      break;
    case CacheType::kQ8:
      value = static_cast<float>(static_cast<int8_t>(bytes[i])) * half_at(bytes + head_dim + 2 * group);
      break;
    case CacheType::kQ4: {
      const unsigned char pair = bytes[group * 16 + within % 16];
      const int code = within < 16 ? pair & 15 : pair >> 4;
      const unsigned char* scale = bytes + groups * 16 + group * 4;
      value = half_at(scale) * static_cast<float>(code) + half_at(scale + 2);
      break;
    }
  }
  return value;
}

}  // namespace nibble::testing
