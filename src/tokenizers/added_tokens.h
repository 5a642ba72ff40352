// Tokens that are found in the text itself, before anything else looks at it: "<|im_end|>".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizers/normalizers.h"
#include "tokenizers/pieces.h"
#include "tokenizers/vocabulary.h"

namespace nibble {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      // produces no text with skip_special; not recognised without parse_special
  bool normalized = false;   // looked for in the normalized text
  bool single_word = false;  // only between non-word characters
  bool lstrip = false, rstrip = false;  // takes the white space before / after along
};

// Strings found from left to right, the longest at each place, without overlaps.
class TokenMatcher {
 public:
  // The first token of equal strings counts. Empty strings are never found.
  void add(std::string_view text, int32_t token);
  bool empty() const { return edges_used_ == 0; }
  // The first match at or after `from`: `token` as given to add(), or -1.
  struct Match {
    size_t begin, end;
    int32_t token;
  };
  Match find(std::string_view text, size_t from) const;

 private:
  PairTable edges_;  // (node, byte) -> next node
  size_t edges_used_ = 0;
  std::vector<int32_t> found_;  // by node: the token that ends there, or -1
  bool starts_[256] = {};
};

// The cutting of the input as in the `tokenizers` library: first tokens with normalized = false, then, in
// what is left, after normalizing it piece by piece, the others.
class AddedTokens {
 public:
  AddedTokens() = default;
  // Normalizes the contents of normalized tokens with `normalizers`.
  AddedTokens(std::vector<AddedToken> tokens, const Normalizers& normalizers);

  const std::vector<AddedToken>& all() const { return tokens_; }
  // Fills `pieces` with the text, normalized, and its added tokens. `text` is valid UTF-8.
  void cut(std::string_view text, const Normalizers& normalizers, bool parse_special, Pieces& pieces) const;

 private:
  // Appends tokens and the stretches between them: emit(begin, end, id or -1).
  template <typename Emit>
  void scan(const TokenMatcher& matcher, std::string_view text, bool parse_special, Emit&& emit) const;
  std::vector<AddedToken> tokens_;
  TokenMatcher plain_, normalized_;
};

}  // namespace nibble
