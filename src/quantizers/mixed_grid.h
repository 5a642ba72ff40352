// Scales and zero points of the 2- and 4-bit groups of format mixed_2_4_16, for the 16 rows of a tile at
// once.
#pragma once

#include <array>
#include <cstdint>

namespace nibble {

inline constexpr int kTileRows = 16;
inline constexpr int kGroupColumns = 16;

using TileFloats = std::array<float, kTileRows>;  // one number per row

// A 2-bit group: W ~ scale * (code - zero), codes and zeros 0 to 3, scale = (scale_code + second_zero) *
// second_scale > 0.
struct NarrowGrid {
  float second_scale = 0;  // an F16 number
  int second_zero = 0;
  std::array<uint8_t, kTileRows> scale_codes{};
  TileFloats scale{}, zero{};
};

// A group's weights by column, and how much an error in each counts; both 0 where a weight does not matter
// (it is kept in the sparse part, or the group is shorter).
struct GroupTile {
  std::array<TileFloats, kGroupColumns> weight{}, importance{};
};

// `limit`: the largest scale code and second-order zero, 7 or 15. Without `search` scales span the weights
// from least to largest, and second-order parts are those that come nearest to them in squares. With it both
// orders are searched for the least error weighted by importance.
NarrowGrid choose_narrow_grid(const GroupTile& group, int limit, bool search);

// 4-bit groups: codes and zeros 0 to 15, scale an F16 number.
struct WideGrid {
  TileFloats scale{}, zero{};
};

// For `columns` columns of 16 rows; column j of the weights starts at weights + j * stride, and an error in
// it counts importance[j].
WideGrid choose_wide_grid(const float* weights, int64_t stride, const float* importance, int64_t columns,
                          bool search);

// clamp(rne(weight / scale) + zero, 0, limit), as a float.
inline float grid_code(float weight, float inverse_scale, float zero, float limit) {
  // Adding 1.5 * 2^23 leaves no bits for a fraction, ties to even; the clamp keeps the sum small.
  constexpr float kMagic = 12582912.0f;
  float code = weight * inverse_scale;
  code = code > -zero ? code : -zero;
  code = code < limit - zero ? code : limit - zero;
  return (code + kMagic) - kMagic + zero;
}

}  // namespace nibble
