// Text on its way to the model: one buffer, cut into pieces that later steps cut further.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct Piece {
  uint32_t begin = 0, end = 0;  // in Pieces::text
  int32_t token = -1;           // an added token, which no step touches any more; -1 for text
  bool at_start = false;        // its first character comes from the very start of the input
};

struct Pieces {
  std::string text;
  std::vector<Piece> list;

  std::string_view view(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

// Offsets are 32-bit: throws Error when a broken tokenizer makes a text grow beyond what they reach.
void check_text_size(size_t bytes);

// A stretch of a piece that a pattern matched, or that lies between matches.
struct Segment {
  uint32_t begin, end;
  bool match;
};

// What becomes of matches: the `tokenizers` library's SplitDelimiterBehavior.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Turns segments that cover a piece from left to right into what remains of it. Segments not matched in the
// result are kept. With kRemoved, `match` marks those to drop; otherwise it is false everywhere.
void apply_behavior(SplitBehavior behavior, std::vector<Segment>& segments);

// Cuts every text piece: `find` fills the segments of a piece (offsets within it).
template <typename Find>
void split_pieces(Pieces& pieces, SplitBehavior behavior, Find&& find) {
  std::vector<Piece> cut;
  cut.reserve(pieces.list.size() * 2);
  std::vector<Segment> segments;
  for (const Piece& piece : pieces.list) {
    if (piece.token >= 0) {
      cut.push_back(piece);
      continue;
    }
    segments.clear();
    find(pieces.view(piece), segments);
    apply_behavior(behavior, segments);
    for (const Segment& segment : segments) {
      if (segment.match || segment.begin == segment.end) continue;
      cut.push_back(
          {piece.begin + segment.begin, piece.begin + segment.end, -1, piece.at_start && segment.begin == 0});
    }
  }
  pieces.list = std::move(cut);
}

// Rewrites every text piece: `rewrite(view, piece, out)` appends the new text to `out`.
template <typename Rewrite>
void rewrite_pieces(Pieces& pieces, Rewrite&& rewrite) {
  std::string text;
  text.reserve(pieces.text.size() * 2);
  for (Piece& piece : pieces.list) {
    const auto begin = static_cast<uint32_t>(text.size());
    if (piece.token < 0) rewrite(pieces.view(piece), piece, text);
    check_text_size(text.size());
    piece.begin = begin;
    piece.end = static_cast<uint32_t>(text.size());
  }
  pieces.text = std::move(text);
}

}  // namespace nibble
