// The sizes of decode_layout.h, for host and device code.
#pragma once

#include <cstdint>

namespace nibble::group_int_cuda {

inline constexpr int64_t kRows = 16, kGroup = 128, kChunkGroups = 8, kCodeBytes = 1024, kScaleBytes = 32;

struct DecodeShape {
  int64_t n = 0, k = 0;
  int64_t tiles() const { return (n + kRows - 1) / kRows; }
  int64_t groups() const { return (k + kGroup - 1) / kGroup; }
  int64_t tile_bytes() const { return groups() * (kCodeBytes + kScaleBytes); }
  int64_t bytes() const { return tiles() * tile_bytes(); }
};

}  // namespace nibble::group_int_cuda
