#include "tokenizers/pipeline_tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "tokenizers/unicode.h"

namespace nibble {
namespace {

// Offsets are 32-bit, and steps may make text a few times longer.
constexpr size_t kMaxTextBytes = size_t{256} << 20;
// Longer words seldom come again.
constexpr size_t kMaxCachedWord = 128;
constexpr size_t kMaxCachedWords = size_t{1} << 18;

// The ids of words seen before in one text. Keys are views into the text being encoded, values stretches of
// its ids.
class WordCache {
 public:
  WordCache(const WordModel& model, std::vector<int32_t>& ids) : model_(model), ids_(ids) {}

  void encode(std::string_view word) {
    if (word.size() > kMaxCachedWord) {
      model_.encode(word, ids_);
      return;
    }
    const auto found = known_.find(word);
    if (found == known_.end()) {
      const size_t begin = ids_.size();
      model_.encode(word, ids_);
      if (known_.size() < kMaxCachedWords) known_.emplace(word, std::pair(begin, ids_.size() - begin));
      return;
    }
    const auto [begin, count] = found->second;
    const size_t end = ids_.size();
    ids_.resize(end + count);  // grows by doubling, which reserve() would not
    std::copy_n(ids_.begin() + static_cast<ptrdiff_t>(begin), count,
                ids_.begin() + static_cast<ptrdiff_t>(end));
  }

 private:
  const WordModel& model_;
  std::vector<int32_t>& ids_;
  std::unordered_map<std::string_view, std::pair<size_t, size_t>> known_;
};

class PipelineTokenizer : public Tokenizer {
 public:
  explicit PipelineTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {
    NIBBLE_CHECK(parts_.vocabulary != nullptr && parts_.model != nullptr);
    const auto size = static_cast<size_t>(parts_.vocabulary->size());
    parts_.special.resize(size);
    parts_.literal.resize(size);
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    if (text.size() > kMaxTextBytes) {
      fail("text of {} bytes is too long to encode at once, at most {} are allowed", text.size(),
           kMaxTextBytes);
    }
    std::string sanitized;
    if (!is_valid_utf8(text)) {
      sanitized = sanitize_utf8(text);
      text = sanitized;
    }
    Pieces pieces;
    parts_.added.cut(text, parts_.normalizers, options.parse_special, pieces);
    for (const auto& step : parts_.pre_tokenizers) step->apply(pieces);

    std::vector<int32_t> ids;
    ids.reserve(pieces.text.size() / 3 + 8);
    if (options.add_special) ids = parts_.post_processor.prefix;
    WordCache words(*parts_.model, ids);
    for (const Piece& piece : pieces.list) {
      if (piece.token >= 0) {
        ids.push_back(piece.token);
        continue;
      }
      for (std::string_view rest = pieces.view(piece); !rest.empty();) {
        const size_t length = parts_.model->independent_prefix(rest);
        words.encode(rest.substr(0, length));
        rest.remove_prefix(length);
      }
    }
    if (options.add_special) {
      ids.insert(ids.end(), parts_.post_processor.suffix.begin(), parts_.post_processor.suffix.end());
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids, bool skip_special) const override {
    const auto stream = decode_stream(skip_special);
    std::string text;
    for (const int32_t id : ids) text += stream->push(id);
    text += stream->finish();
    return text;
  }

  std::unique_ptr<DecodeStream> decode_stream(bool skip_special) const override {
    return std::make_unique<Stream>(*this, skip_special);
  }

  int64_t vocabulary_size() const override { return parts_.vocabulary->size(); }
  std::string token_text(int32_t id) const override { return std::string(parts_.vocabulary->text(id)); }
  bool is_special(int32_t id) const override {
    return id >= 0 && static_cast<size_t>(id) < parts_.special.size() &&
           parts_.special[static_cast<size_t>(id)];
  }
  int32_t token_id(std::string_view token) const override { return parts_.vocabulary->find(token); }
  int32_t bos_id() const override { return parts_.bos_id; }
  int32_t eos_id() const override { return parts_.eos_id; }
  std::string chat_template() const override { return parts_.chat_template; }

 private:
  class Stream : public DecodeStream {
   public:
    Stream(const PipelineTokenizer& tokenizer, bool skip_special)
        : tokenizer_(tokenizer), skip_special_(skip_special), chain_(tokenizer.start_decoding()) {}

    std::string push(int32_t id) override {
      const TokenizerParts& parts = tokenizer_.parts_;
      if (id < 0 || id >= parts.vocabulary->size()) {
        fail("{}: id {} is outside the vocabulary of {}", parts.source, id, parts.vocabulary->size());
      }
      const std::string_view token = parts.vocabulary->text(id);
      const auto index = static_cast<size_t>(id);
      if (token.empty() || (skip_special_ && parts.special[index])) return {};
      chain_.push(token, parts.literal[index]);
      return chain_.take();
    }

    std::string finish() override {
      chain_.finish();
      return chain_.take();
    }

   private:
    const PipelineTokenizer& tokenizer_;
    bool skip_special_;
    DecodeChain chain_;
  };

  std::vector<std::unique_ptr<DecodeStage>> start_decoding() const {
    std::vector<std::unique_ptr<DecodeStage>> stages;
    for (const auto& decoder : parts_.decoders) stages.push_back(decoder->start());
    return stages;
  }

  TokenizerParts parts_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_pipeline_tokenizer(TokenizerParts parts) {
  return std::make_unique<PipelineTokenizer>(std::move(parts));
}

}  // namespace nibble
