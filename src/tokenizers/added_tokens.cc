#include "tokenizers/added_tokens.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "tokenizers/unicode.h"

namespace nibble {

void TokenMatcher::add(std::string_view text, int32_t token) {
  if (text.empty()) return;
  if (found_.empty()) found_.push_back(-1);
  int32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    PairMerge edge = edges_.find(node, byte);
    if (edge.id < 0) {
      edge.id = static_cast<int32_t>(found_.size());
      edges_.set(node, byte, edge);
      found_.push_back(-1);
      ++edges_used_;
    }
    node = edge.id;
  }
  starts_[static_cast<unsigned char>(text.front())] = true;
  int32_t& end = found_[static_cast<size_t>(node)];
  if (end < 0) end = token;
}

TokenMatcher::Match TokenMatcher::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) continue;
    Match longest{begin, begin, -1};
    int32_t node = 0;
    for (size_t i = begin; i < text.size(); ++i) {
      node = edges_.find(node, static_cast<unsigned char>(text[i])).id;
      if (node < 0) break;
      if (const int32_t token = found_[static_cast<size_t>(node)]; token >= 0)
        longest = {begin, i + 1, token};
    }
    if (longest.token >= 0) return longest;
  }
  return {text.size(), text.size(), -1};
}

namespace {

// White space at the end of `text`, in bytes.
size_t trailing_white_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t last = end - 1;
    while ((static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    if (!is_white_space(utf8_at(text, last).code)) break;
    end = last;
  }
  return text.size() - end;
}

size_t leading_white_space(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const Utf8Character character = utf8_at(text, i);
    if (!is_white_space(character.code)) break;
    i += character.length;
  }
  return i;
}

bool ends_with_word(std::string_view text) {
  if (text.empty()) return false;
  size_t last = text.size() - 1;
  while ((static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
  return is_word_character(utf8_at(text, last).code);
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word_character(utf8_at(text, 0).code);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizers& normalizers)
    : tokens_(std::move(tokens)) {
  // Special tokens first: they win over others that normalize to the same text.
  for (const bool special : {true, false}) {
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const AddedToken& token = tokens_[i];
      if (token.special != special) continue;
      const auto index = static_cast<int32_t>(i);
      if (!token.normalized) {
        plain_.add(token.content, index);
        continue;
      }
      std::string content = token.content;
      bool at_start = true;
      for (const auto& normalizer : normalizers) normalizer->apply(content, at_start);
      normalized_.add(content, index);
    }
  }
}

template <typename Emit>
void AddedTokens::scan(const TokenMatcher& matcher, std::string_view text, bool parse_special,
                       Emit&& emit) const {
  size_t done = 0;
  if (!matcher.empty()) {
    for (TokenMatcher::Match match = matcher.find(text, 0); match.token >= 0;
         match = matcher.find(text, match.end)) {
      const AddedToken& token = tokens_[static_cast<size_t>(match.token)];
      if (token.special && !parse_special) continue;
      if (token.single_word &&
          (ends_with_word(text.substr(0, match.begin)) || starts_with_word(text.substr(match.end)))) {
        continue;
      }
      size_t begin = match.begin, end = match.end;
      if (token.lstrip) begin = std::max(done, begin - trailing_white_space(text.substr(0, begin)));
      if (token.rstrip) end += leading_white_space(text.substr(end));
      if (done < begin) emit(done, begin, -1);
      emit(begin, end, token.id);
      done = end;
    }
  }
  if (done < text.size()) emit(done, text.size(), -1);
}

void AddedTokens::cut(std::string_view text, const Normalizers& normalizers, bool parse_special,
                      Pieces& pieces) const {
  pieces.text.clear();
  pieces.list.clear();
  std::string normalized;
  scan(plain_, text, parse_special, [&](size_t begin, size_t end, int32_t id) {
    const auto here = [&] { return static_cast<uint32_t>(pieces.text.size()); };
    if (id >= 0) {
      pieces.list.push_back({here(), here(), id, false});
      return;
    }
    normalized.assign(text, begin, end - begin);
    bool at_start = begin == 0;
    for (const auto& normalizer : normalizers) normalizer->apply(normalized, at_start);
    const uint32_t base = here();
    check_text_size(pieces.text.size() + normalized.size());
    pieces.text += normalized;
    scan(normalized_, normalized, parse_special, [&](size_t first, size_t last, int32_t found) {
      pieces.list.push_back({base + static_cast<uint32_t>(first), base + static_cast<uint32_t>(last), found,
                             at_start && first == 0});
    });
  });
}

}  // namespace nibble
