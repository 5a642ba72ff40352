#include "tokenizers/pieces.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {
namespace {

constexpr size_t kMaxWorkingText = size_t{1} << 30;

// Joins each match to its neighbour on the left of the order given: consecutive matches stay apart, as in
// `tokenizers`.
template <typename Iterator, typename Join>
std::vector<Segment> merge_matches(Iterator first, Iterator last, Join join) {
  std::vector<Segment> merged;
  bool previous_match = false;
  for (; first != last; ++first) {
    if (first->match && !previous_match && !merged.empty()) {
      join(merged.back(), *first);
    } else {
      merged.push_back({first->begin, first->end, false});
    }
    previous_match = first->match;
  }
  return merged;
}

}  // namespace

void check_text_size(size_t bytes) {
  if (bytes > kMaxWorkingText) {
    fail("the tokenizer's normalizers make the text longer than {} bytes", kMaxWorkingText);
  }
}

void apply_behavior(SplitBehavior behavior, std::vector<Segment>& segments) {
  switch (behavior) {
    case SplitBehavior::kRemoved:
      return;
    case SplitBehavior::kIsolated:
      for (Segment& segment : segments) segment.match = false;
      return;
    case SplitBehavior::kContiguous: {
      std::vector<Segment> merged;
      bool previous_match = false;
      for (const Segment& segment : segments) {
        if (segment.match == previous_match && !merged.empty()) {
          merged.back().end = segment.end;
        } else {
          merged.push_back({segment.begin, segment.end, false});
        }
        previous_match = segment.match;
      }
      segments = std::move(merged);
      return;
    }
    case SplitBehavior::kMergedWithPrevious:
      segments = merge_matches(segments.begin(), segments.end(),
                               [](Segment& left, const Segment& match) { left.end = match.end; });
      return;
    case SplitBehavior::kMergedWithNext:
      segments = merge_matches(segments.rbegin(), segments.rend(),
                               [](Segment& right, const Segment& match) { right.begin = match.begin; });
      std::reverse(segments.begin(), segments.end());
      return;
  }
}

}  // namespace nibble
