// Sums in a fixed number of lanes: the compiler turns them into vector code without being allowed to reorder.
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr int64_t kSumLanes = 16;

// Sum of term(i) over [0, count).
template <typename Term>
float lane_sum(int64_t count, Term&& term) {
  float lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int64_t j = 0; j < kSumLanes; ++j) lanes[j] += term(i + j);
  }
  float total = 0;
  for (; i < count; ++i) total += term(i);
  for (const float lane : lanes) total += lane;
  return total;
}

// body(i) for i in [0, count), in runs of a fixed length for the same reason.
template <typename Body>
void lane_loop(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int64_t j = 0; j < kSumLanes; ++j) body(i + j);
  }
  for (; i < count; ++i) body(i);
}

}  // namespace nibble
