// From words to ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizers/vocabulary.h"

namespace nibble {

class WordModel {
 public:
  virtual ~WordModel() = default;
  // Appends the ids of one word (valid UTF-8, not empty). Linearithmic in its length.
  virtual void encode(std::string_view word, std::vector<int32_t>& ids) const = 0;
  // Where a word may be cut without changing its ids: the number of bytes, from the start of `rest`, of a
  // first part that can be encoded on its own; all of it when the model allows no cuts. Lets long unsegmented
  // texts profit from a cache.
  virtual size_t independent_prefix(std::string_view rest) const = 0;
};

// Byte-pair encoding as the model "BPE" of the `tokenizers` library: characters, then merges by rank,
// leftmost first.
struct BpeOptions {
  std::string unk_token;       // for characters outside the vocabulary; empty: they are dropped
  bool fuse_unk = false;       // one unk_token for neighbouring unknown characters
  bool byte_fallback = false;  // unknown characters to tokens "<0x41>", when all their bytes have one
  bool ignore_merges = false;  // a word that is a token is that token
  std::string continuing_subword_prefix;  // of every character but the first of a word
  std::string end_of_word_suffix;         // of the last character of a word
};
// Merges in order of rank: pairs of tokens. `vocabulary` must outlive the model. Throws Error "<source>: ..."
// for merges that name or make unknown tokens, or an unknown unk_token.
std::unique_ptr<WordModel> make_bpe_model(
    const Vocabulary& vocabulary, const std::vector<std::pair<std::string_view, std::string_view>>& merges,
    BpeOptions options, const std::string& source);

// SentencePiece's BPE as GGUF stores it: neighbours merge when together they are a token, the best score
// first, leftmost first. Characters outside the vocabulary become byte tokens "<0x41>", or `unk_id` (dropped
// when that is -1). scores: one per id. mergeable: by id, tokens that may come out of text (not control and
// byte tokens).
std::unique_ptr<WordModel> make_score_bpe_model(const Vocabulary& vocabulary,
                                                const std::vector<float>& scores,
                                                const std::vector<bool>& mergeable, int32_t unk_id,
                                                const std::string& source);

}  // namespace nibble
