// How caches keep one key or value of one head:
//
//   kF32, kF16   head_dim elements
//   kQ8          head_dim codes of 8 bits, then an F16 scale for each group of 32 (the last one may be
//                shorter): value = scale * code, code in [-127, 127]. 8.5 bits a value at head_dim 64.
//   kQ4          16 bytes of codes for each group of 32 (element i < 16 in the low half of byte i, element
//                16 + i in the high half; what is missing in the last group is 0), then for each group an F16
//                scale and an F16 minimum: value = minimum + scale * code, code in [0, 15]. 5 bits a value.
//
// Scales and minima are finite unless a value was NaN or infinite: then they are NaN, so that nothing hides
// it.
#pragma once

#include <cstdint>

#include "kernels/float_kernels.h"

namespace nibble {

inline constexpr int64_t kCacheGroup = 32;

// static: compiled once per instruction set too, and must not be merged by the linker.
static inline int64_t cache_row_groups(int64_t head_dim) {
  return (head_dim + kCacheGroup - 1) / kCacheGroup;
}

static inline int64_t cache_row_bytes(CacheType type, int64_t head_dim) {
  switch (type) {
    case CacheType::kF32:
      return 4 * head_dim;
    case CacheType::kF16:
      return 2 * head_dim;
    case CacheType::kQ8:
      return head_dim + 2 * cache_row_groups(head_dim);
    case CacheType::kQ4:
      return (kCacheGroup / 2 + 4) * cache_row_groups(head_dim);
  }
  return 0;
}

}  // namespace nibble
