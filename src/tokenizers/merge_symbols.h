// The merging loop of byte-pair encoding.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

#include "tokenizers/vocabulary.h"

namespace nibble {

// A stretch of a word and the token it is so far (-1: none).
struct Symbol {
  int32_t id;
  uint32_t begin, length;
};

// Up to this many symbols, scanning all pairs for the best one beats keeping them ordered.
inline constexpr size_t kScanLimit = 32;

// Merges neighbours until no pair merges, always the pair of lowest rank, the leftmost of equals.
// lookup(left, right) -> PairMerge.
template <typename Lookup>
void merge_by_scanning(std::vector<Symbol>& symbols, Lookup&& lookup) {
  PairMerge pairs[kScanLimit];  // pairs[i]: of symbols i and i + 1
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = lookup(symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == PairMerge::kNone) break;
    symbols[best].id = pairs[best].id;
    symbols[best].length += symbols[best + 1].length;
    --count;
    for (size_t i = best + 1; i < count; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = best + 1; i + 1 < count; ++i) pairs[i] = pairs[i + 1];
    if (best > 0) pairs[best - 1] = lookup(symbols[best - 1], symbols[best]);
    if (best + 1 < count) pairs[best] = lookup(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

template <typename Lookup>
void merge_by_queue(std::vector<Symbol>& symbols, Lookup&& lookup) {
  constexpr uint32_t kEnd = UINT32_MAX;
  struct Link {
    uint32_t previous, next;
    PairMerge pair;  // with the next symbol
  };
  const auto count = static_cast<uint32_t>(symbols.size());
  std::vector<Link> links(count);
  // (rank, position) in one number: the order to merge in. Entries whose pair has changed since are skipped.
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue;
  const auto update = [&](uint32_t i) {
    Link& link = links[i];
    link.pair = link.next == kEnd ? PairMerge{} : lookup(symbols[i], symbols[link.next]);
    if (link.pair.rank != PairMerge::kNone) queue.push(static_cast<uint64_t>(link.pair.rank) << 32 | i);
  };
  for (uint32_t i = 0; i < count; ++i) {
    links[i].previous = i == 0 ? kEnd : i - 1;
    links[i].next = i + 1 == count ? kEnd : i + 1;
  }
  for (uint32_t i = 0; i < count; ++i) update(i);
  while (!queue.empty()) {
    const uint64_t top = queue.top();
    queue.pop();
    const auto i = static_cast<uint32_t>(top);
    Link& link = links[i];
    if (link.pair.rank != static_cast<uint32_t>(top >> 32)) continue;
    const uint32_t right = link.next;
    symbols[i].id = link.pair.id;
    symbols[i].length += symbols[right].length;
    link.next = links[right].next;
    if (link.next != kEnd) links[link.next].previous = i;
    links[right].pair = {};  // gone
    symbols[right].length = 0;
    update(i);
    if (link.previous != kEnd) update(link.previous);
  }
  size_t kept = 0;
  for (uint32_t i = 0; i != kEnd; i = links[i].next) symbols[kept++] = symbols[i];
  symbols.resize(kept);
}

template <typename Lookup>
void merge_symbols(std::vector<Symbol>& symbols, Lookup&& lookup) {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kScanLimit) {
    merge_by_scanning(symbols, lookup);
  } else {
    merge_by_queue(symbols, lookup);
  }
}

}  // namespace nibble
