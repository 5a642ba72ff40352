#include "tokenizers/word_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "io/printable.h"
#include "tokenizers/merge_symbols.h"
#include "tokenizers/unicode.h"

namespace nibble {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581, SentencePiece's space

// Ids of the tokens "<0x00>" to "<0xFF>"; -1 where there is none.
std::array<int32_t, 256> find_byte_tokens(const Vocabulary& vocabulary) {
  std::array<int32_t, 256> ids{};
  for (int byte = 0; byte < 256; ++byte) {
    ids[static_cast<size_t>(byte)] = vocabulary.find(format_text("<0x{:02X}>", byte));
  }
  return ids;
}

bool has_all_bytes(const std::array<int32_t, 256>& tokens, std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [&](char c) { return tokens[static_cast<unsigned char>(c)] >= 0; });
}

// True when `text` has a "▁" behind something else, so that a token reaches over the start of a word.
bool crosses_words(std::string_view text) {
  for (size_t i = text.find(kMetaspace); i != std::string_view::npos;
       i = text.find(kMetaspace, i + kMetaspace.size())) {
    if (i > 0 && !text.substr(0, i).ends_with(kMetaspace)) return true;
  }
  return false;
}

// The bytes before the first "▁" that follows something else.
size_t prefix_before_word(std::string_view rest) {
  for (size_t i = rest.find(kMetaspace, 1); i != std::string_view::npos; i = rest.find(kMetaspace, i + 1)) {
    if (!rest.substr(0, i).ends_with(kMetaspace)) return i;
  }
  return rest.size();
}

class BpeModel : public WordModel {
 public:
  BpeModel(const Vocabulary& vocabulary,
           const std::vector<std::pair<std::string_view, std::string_view>>& merges, BpeOptions options,
           const std::string& source)
      : vocabulary_(vocabulary), options_(std::move(options)), byte_tokens_(find_byte_tokens(vocabulary)) {
    if (!options_.unk_token.empty()) {
      unk_id_ = vocabulary.find(options_.unk_token);
      if (unk_id_ < 0)
        fail("{}: 'unk_token' is '{}', which is not in the vocabulary", source,
             printable(options_.unk_token));
    }
    for (size_t code = 0; code < small_ids_.size(); ++code) {
      std::string text;
      append_utf8(text, static_cast<char32_t>(code));
      small_ids_[code] = vocabulary.find(text);
    }
    add_merges(merges, source);
  }

  void encode(std::string_view word, std::vector<int32_t>& ids) const override {
    if (options_.ignore_merges) {
      if (const int32_t id = vocabulary_.find(word); id >= 0) {
        ids.push_back(id);
        return;
      }
    }
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    int32_t pending_unk = -1;
    for (size_t i = 0; i < word.size();) {
      const Utf8Character character = utf8_at(word, i);
      add_character(word, i, character, symbols, pending_unk);
      i += character.length;
    }
    if (pending_unk >= 0) symbols.push_back({pending_unk, 0, 0});
    merge_symbols(symbols,
                  [&](const Symbol& left, const Symbol& right) { return merges_.find(left.id, right.id); });
    for (const Symbol& symbol : symbols) ids.push_back(symbol.id);
  }

  size_t independent_prefix(std::string_view rest) const override {
    return cuttable_ ? prefix_before_word(rest) : rest.size();
  }

 private:
  void add_merges(const std::vector<std::pair<std::string_view, std::string_view>>& merges,
                  const std::string& source) {
    merges_.reserve(merges.size());
    bool crossing = false;
    std::string joined;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const auto& [left, right] = merges[rank];
      const int32_t left_id = vocabulary_.find(left), right_id = vocabulary_.find(right);
      if (left_id < 0 || right_id < 0) {
        fail("{}: merge {} names '{}', which is not in the vocabulary", source, rank,
             printable(left_id < 0 ? left : right));
      }
      const std::string& prefix = options_.continuing_subword_prefix;
      if (right.size() < prefix.size()) {
        fail("{}: merge {} names '{}', which is shorter than the continuing_subword_prefix '{}'", source,
             rank, printable(right), printable(prefix));
      }
      joined.assign(left);
      joined += right.substr(prefix.size());
      const int32_t id = vocabulary_.find(joined);
      if (id < 0)
        fail("{}: merge {} makes '{}', which is not in the vocabulary", source, rank, printable(joined));
      merges_.set(left_id, right_id, {static_cast<uint32_t>(rank), id});
      crossing = crossing || (right.starts_with(kMetaspace) && !left.ends_with(kMetaspace));
    }
    cuttable_ = !crossing && !options_.ignore_merges && options_.continuing_subword_prefix.empty() &&
                options_.end_of_word_suffix.empty() && vocabulary_.find(kMetaspace) >= 0;
  }

  int32_t find_character(std::string_view word, size_t position, const Utf8Character& character) const {
    const bool first = position == 0, last = position + character.length == word.size();
    const bool prefixed = !first && !options_.continuing_subword_prefix.empty();
    const bool suffixed = last && !options_.end_of_word_suffix.empty();
    if (!prefixed && !suffixed) {
      if (character.code < small_ids_.size()) return small_ids_[character.code];
      return vocabulary_.find(word.substr(position, character.length));
    }
    std::string text = prefixed ? options_.continuing_subword_prefix : "";
    text += word.substr(position, character.length);
    if (suffixed) text += options_.end_of_word_suffix;
    return vocabulary_.find(text);
  }

  void add_character(std::string_view word, size_t position, const Utf8Character& character,
                     std::vector<Symbol>& symbols, int32_t& pending_unk) const {
    if (const int32_t id = find_character(word, position, character); id >= 0) {
      if (pending_unk >= 0) symbols.push_back({pending_unk, 0, 0});
      pending_unk = -1;
      symbols.push_back({id, 0, 0});
      return;
    }
    const std::string_view bytes = word.substr(position, character.length);
    if (options_.byte_fallback && has_all_bytes(byte_tokens_, bytes)) {
      for (const char c : bytes) symbols.push_back({byte_tokens_[static_cast<unsigned char>(c)], 0, 0});
      return;
    }
    if (unk_id_ < 0) return;
    if (pending_unk >= 0 && !options_.fuse_unk) symbols.push_back({pending_unk, 0, 0});
    pending_unk = unk_id_;
  }

  const Vocabulary& vocabulary_;
  BpeOptions options_;
  int32_t unk_id_ = -1;
  bool cuttable_ = false;
  PairTable merges_;
  std::array<int32_t, 256> byte_tokens_;
  std::array<int32_t, 0x180> small_ids_{};  // of single characters, GPT-2's alphabet included
};

class ScoreBpeModel : public WordModel {
 public:
  ScoreBpeModel(const Vocabulary& vocabulary, const std::vector<float>& scores,
                const std::vector<bool>& mergeable, int32_t unk_id, const std::string& source)
      : vocabulary_(vocabulary), byte_tokens_(find_byte_tokens(vocabulary)), unk_id_(unk_id) {
    const auto size = static_cast<size_t>(vocabulary.size());
    NIBBLE_CHECK(scores.size() == size && mergeable.size() == size);
    for (size_t id = 0; id < size; ++id) {
      if (std::isnan(scores[id])) fail("{}: the score of token {} is not a number", source, id);
    }
    // Equal scores share a rank: then the leftmost pair merges first.
    std::vector<float> order = scores;
    std::sort(order.begin(), order.end(), std::greater<>());
    order.erase(std::unique(order.begin(), order.end()), order.end());
    ranks_.assign(size, PairMerge::kNone);
    for (size_t id = 0; id < size; ++id) {
      if (!mergeable[id]) continue;
      const auto found = std::lower_bound(order.begin(), order.end(), scores[id], std::greater<>());
      ranks_[id] = static_cast<uint32_t>(found - order.begin());
      cuttable_ = cuttable_ && !crosses_words(vocabulary.text(static_cast<int32_t>(id)));
    }
  }

  void encode(std::string_view word, std::vector<int32_t>& ids) const override {
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    for (size_t i = 0; i < word.size();) {
      const uint32_t length = utf8_length(word[i]);
      symbols.push_back({find(word.substr(i, length)).id, static_cast<uint32_t>(i), length});
      i += length;
    }
    merge_symbols(symbols, [&](const Symbol& left, const Symbol& right) -> PairMerge {
      const size_t length = size_t{left.length} + right.length;
      if (length > vocabulary_.longest()) return {};
      return find(word.substr(left.begin, length));
    });
    for (const Symbol& symbol : symbols) {
      const std::string_view text = word.substr(symbol.begin, symbol.length);
      if (symbol.id >= 0) {
        ids.push_back(symbol.id);
      } else if (has_all_bytes(byte_tokens_, text)) {
        for (const char c : text) ids.push_back(byte_tokens_[static_cast<unsigned char>(c)]);
      } else if (unk_id_ >= 0) {
        ids.push_back(unk_id_);
      }
    }
  }

  size_t independent_prefix(std::string_view rest) const override {
    return cuttable_ ? prefix_before_word(rest) : rest.size();
  }

 private:
  PairMerge find(std::string_view text) const {
    const int32_t id = vocabulary_.find(text);
    if (id < 0 || ranks_[static_cast<size_t>(id)] == PairMerge::kNone) return {};
    return {ranks_[static_cast<size_t>(id)], id};
  }

  const Vocabulary& vocabulary_;
  std::array<int32_t, 256> byte_tokens_;
  int32_t unk_id_;
  bool cuttable_ = true;
  std::vector<uint32_t> ranks_;  // by id: the order in which tokens come about; kNone: never
};

}  // namespace

std::unique_ptr<WordModel> make_bpe_model(
    const Vocabulary& vocabulary, const std::vector<std::pair<std::string_view, std::string_view>>& merges,
    BpeOptions options, const std::string& source) {
  return std::make_unique<BpeModel>(vocabulary, merges, std::move(options), source);
}

std::unique_ptr<WordModel> make_score_bpe_model(const Vocabulary& vocabulary,
                                                const std::vector<float>& scores,
                                                const std::vector<bool>& mergeable, int32_t unk_id,
                                                const std::string& source) {
  return std::make_unique<ScoreBpeModel>(vocabulary, scores, mergeable, unk_id, source);
}

}  // namespace nibble
