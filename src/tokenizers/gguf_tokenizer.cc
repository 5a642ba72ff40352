// Tokenizers from the metadata of GGUF files: "gpt2" (byte-level BPE with merges) and "llama" (SentencePiece
// BPE with scores).
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "io/printable.h"
#include "tokenizers/gguf_pre_tokenizers.h"
#include "tokenizers/pipeline_tokenizer.h"

namespace nibble {
namespace {

// Values of "tokenizer.ggml.token_type".
enum TokenType : int64_t { kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6 };
constexpr int64_t kNormal = 1;

const Json* find(const Json& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  return found == metadata.end() || found->is_null() ? nullptr : &*found;
}

const Json* find_array(const Json& metadata, const std::string& key, const std::string& source) {
  const Json* value = find(metadata, key);
  if (value != nullptr && !value->is_array()) {
    fail("{}: '{}' is {}, expected an array", source, key, value->type_name());
  }
  return value;
}

const std::string& text_of(const Json& value, const std::string& key, size_t index,
                           const std::string& source) {
  if (!value.is_string()) fail("{}: {}[{}] is {}, expected a string", source, key, index, value.type_name());
  return value.get_ref<const std::string&>();
}

class GgufTokenizerBuilder {
 public:
  GgufTokenizerBuilder(const Json& metadata, const std::string& source)
      : metadata_(metadata), source_(source) {
    if (!metadata.is_object()) fail("{}: has no metadata", source);
  }

  std::unique_ptr<Tokenizer> build() {
    const std::string kind = json_string(metadata_, "tokenizer.ggml.model", "", source_);
    if (kind.empty()) fail("{}: has no tokenizer ('tokenizer.ggml.model' is missing)", source_);
    if (kind != "gpt2" && kind != "llama") {
      fail("{}: tokenizer.ggml.model is '{}', expected gpt2 or llama; other kinds are not supported", source_,
           printable(kind));
    }
    parts_.source = source_;
    read_tokens();
    const bool sentencepiece = kind == "llama";
    // Where the file does not name them, SentencePiece's own defaults hold.
    parts_.bos_id = special_id("tokenizer.ggml.bos_token_id", sentencepiece ? 1 : -1);
    parts_.eos_id = special_id("tokenizer.ggml.eos_token_id", sentencepiece ? 2 : -1);
    const bool default_bos = sentencepiece ? build_sentencepiece() : build_byte_level();
    add_markers(default_bos);
    parts_.chat_template = json_string(metadata_, "tokenizer.chat_template", "", source_);
    return make_pipeline_tokenizer(std::move(parts_));
  }

 private:
  void read_tokens() {
    const std::string key = "tokenizer.ggml.tokens", type_key = "tokenizer.ggml.token_type";
    const Json* tokens = find_array(metadata_, key, source_);
    if (tokens == nullptr || tokens->empty()) fail("{}: '{}' is missing or empty", source_, key);
    const size_t count = tokens->size();
    if (count > static_cast<size_t>(kMaxVocabulary)) {
      fail("{}: '{}' has {} entries, at most {} are allowed", source_, key, count, kMaxVocabulary);
    }
    types_.assign(count, kNormal);
    if (const Json* types = find_array(metadata_, type_key, source_)) {
      if (types->size() != count)
        fail("{}: '{}' has {} entries for {} tokens", source_, type_key, types->size(), count);
      for (size_t i = 0; i < count; ++i) {
        if (!(*types)[i].is_number_integer()) fail("{}: {}[{}] is not an integer", source_, type_key, i);
        types_[i] = (*types)[i].get<int64_t>();
      }
    }
    parts_.vocabulary = std::make_unique<Vocabulary>();
    parts_.vocabulary->reserve(count);
    for (size_t i = 0; i < count; ++i) {
      const std::string& text = text_of((*tokens)[i], key, i, source_);
      if (!text.empty()) parts_.vocabulary->add(text, static_cast<int64_t>(i), source_);
    }
    if (parts_.vocabulary->size() != static_cast<int64_t>(count)) {
      fail("{}: the last token of '{}' is empty", source_, key);
    }

    std::vector<AddedToken> added;
    parts_.special.resize(count);
    parts_.literal.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const auto id = static_cast<int32_t>(i);
      const bool special = types_[i] == kControl || types_[i] == kUnknown;
      if ((!special && types_[i] != kUserDefined) || parts_.vocabulary->text(id).empty()) continue;
      parts_.special[i] = special;
      parts_.literal[i] = true;
      AddedToken token;
      token.id = id;
      token.content = parts_.vocabulary->text(id);
      token.special = special;
      added.push_back(std::move(token));
    }
    parts_.added = AddedTokens(std::move(added), {});
  }

  int32_t special_id(const std::string& key, int32_t otherwise) {
    const int64_t id = json_int(metadata_, key, -2, source_);
    const int64_t size = parts_.vocabulary->size();
    if (id == -2) return otherwise < size ? otherwise : -1;
    if (id == -1 || id == UINT32_MAX) return -1;  // how some files say that there is none
    if (id < 0 || id >= size) {
      log_warning("{}: {} is {}, outside the vocabulary of {}; ignored", source_, key, id, size);
      return -1;
    }
    return static_cast<int32_t>(id);
  }

  // Both return whether BOS is added where the file does not say.
  bool build_byte_level() {
    std::string name = json_string(metadata_, "tokenizer.ggml.pre", "", source_);
    if (name.empty()) {
      log_warning(
          "{}: names no pre-tokenizer ('tokenizer.ggml.pre'): the default is used, which may not fit the "
          "model",
          source_);
      name = "default";
    }
    GgufPreTokenizer pre = make_gguf_pre_tokenizer(name, source_);
    parts_.normalizers = std::move(pre.normalizers);
    parts_.pre_tokenizers = std::move(pre.pre_tokenizers);
    parts_.decoders.push_back(make_byte_level_decoder());

    const std::string key = "tokenizer.ggml.merges";
    const Json* lines = find_array(metadata_, key, source_);
    if (lines == nullptr) fail("{}: '{}' is missing", source_, key);
    std::vector<std::pair<std::string_view, std::string_view>> merges;
    merges.reserve(lines->size());
    for (size_t i = 0; i < lines->size(); ++i) {
      const std::string_view line = text_of((*lines)[i], key, i, source_);
      const size_t space = line.find(' ', 1);
      if (space == std::string_view::npos || space + 1 == line.size()) {
        fail("{}: {}[{}] is '{}', expected two tokens", source_, key, i, printable(line));
      }
      merges.emplace_back(line.substr(0, space), line.substr(space + 1));
    }
    BpeOptions options;
    options.ignore_merges = pre.ignore_merges;
    parts_.model = make_bpe_model(*parts_.vocabulary, merges, std::move(options), source_);
    return pre.add_bos;
  }

  bool build_sentencepiece() {
    const bool prefix = json_bool(metadata_, "tokenizer.ggml.add_space_prefix", true, source_);
    if (prefix) parts_.normalizers.push_back(make_prepend_normalizer(" "));
    parts_.normalizers.push_back(make_replace_normalizer(" ", "\xE2\x96\x81"));
    parts_.decoders = make_sentencepiece_decoders(prefix);

    std::vector<float> scores(types_.size(), 0.0f);
    const std::string key = "tokenizer.ggml.scores";
    if (const Json* values = find_array(metadata_, key, source_)) {
      if (values->size() != scores.size()) {
        fail("{}: '{}' has {} entries for {} tokens", source_, key, values->size(), scores.size());
      }
      for (size_t i = 0; i < scores.size(); ++i) {
        if (!(*values)[i].is_number()) fail("{}: {}[{}] is not a number", source_, key, i);
        scores[i] = (*values)[i].get<float>();
      }
    }
    std::vector<bool> mergeable(types_.size());
    for (size_t i = 0; i < types_.size(); ++i) {
      mergeable[i] = types_[i] != kControl && types_[i] != kUnknown && types_[i] != kByte;
    }
    const int32_t unk_id = special_id("tokenizer.ggml.unknown_token_id", 0);
    parts_.model = make_score_bpe_model(*parts_.vocabulary, scores, mergeable, unk_id, source_);
    return true;
  }

  void add_markers(bool default_bos) {
    const bool bos = json_bool(metadata_, "tokenizer.ggml.add_bos_token", default_bos, source_);
    const bool eos = json_bool(metadata_, "tokenizer.ggml.add_eos_token", false, source_);
    if (bos && parts_.bos_id >= 0) parts_.post_processor.prefix.push_back(parts_.bos_id);
    if (eos && parts_.eos_id >= 0) parts_.post_processor.suffix.push_back(parts_.eos_id);
  }

  const Json& metadata_;
  const std::string& source_;
  TokenizerParts parts_;
  std::vector<int64_t> types_;  // by id
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(const Json& metadata, const std::string& source) {
  return GgufTokenizerBuilder(metadata, source).build();
}

}  // namespace nibble
