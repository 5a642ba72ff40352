#pragma once

#include <cstdint>
#include <utility>

namespace nibble {

// A logit and its token.
using RankedLogit = std::pair<float, int32_t>;

// The order of candidates: larger logits first, of equal ones the lower token.
inline bool ranks_before(const RankedLogit& a, const RankedLogit& b) {
  return a.first > b.first || (a.first == b.first && a.second < b.second);
}

}  // namespace nibble
