#include "tokenizers/decoders.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "io/printable.h"
#include "tokenizers/byte_level.h"
#include "tokenizers/description.h"
#include "tokenizers/regex.h"
#include "tokenizers/unicode.h"

namespace nibble {

DecodeChain::DecodeChain(std::vector<std::unique_ptr<DecodeStage>> stages) : stages_(std::move(stages)) {
  for (size_t i = 0; i < stages_.size(); ++i) {
    stages_[i]->chain_ = this;
    stages_[i]->index_ = i;
  }
}

DecodeChain::~DecodeChain() = default;

void DecodeChain::feed(size_t stage, std::string_view token, bool literal) {
  if (stage < stages_.size()) {
    stages_[stage]->push(token, literal);
  } else {
    out_ += token;
  }
}

void DecodeChain::push(std::string_view token, bool literal) { feed(0, token, literal); }

void DecodeChain::finish() {
  for (const auto& stage : stages_) stage->finish();
}

std::string DecodeChain::take() { return std::exchange(out_, {}); }

namespace {

std::string replace_all(std::string_view text, const std::string& pattern, const std::string& content) {
  std::string out;
  size_t from = 0;
  for (size_t found = text.find(pattern); found != std::string_view::npos; found = text.find(pattern, from)) {
    out += text.substr(from, found - from);
    out += content;
    from = found + pattern.size();
  }
  out += text.substr(from);
  return out;
}

// No decoder at all: tokens joined by spaces.
class JoinWithSpaces : public Decoder {
  class Stage : public DecodeStage {
   public:
    void push(std::string_view token, bool literal) override {
      if (std::exchange(started_, true)) emit(" ");
      emit(token, literal);
    }

   private:
    bool started_ = false;
  };

 public:
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(); }
};

class ByteLevelDecoder : public Decoder {
  class Stage : public DecodeStage {
   public:
    void push(std::string_view token, bool literal) override {
      bytes_.clear();
      if (literal) {
        bytes_ += token;
      } else {
        append_byte_level_bytes(bytes_, token);
      }
      text_.clear();
      assembler_.push(bytes_, text_);
      if (!text_.empty()) emit(text_);
    }
    void finish() override {
      text_.clear();
      assembler_.finish(text_);
      if (!text_.empty()) emit(text_);
    }

   private:
    Utf8Assembler assembler_{Utf8Assembler::Invalid::kOnePerSequence};
    std::string bytes_, text_;
  };

 public:
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(); }
};

// The byte of a token "<0x41>"; -1 for others.
int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// Runs of byte tokens to characters. Every byte that is part of no character becomes one U+FFFD.
// (`tokenizers` spoils the whole run then, also the characters before it, which a stream has shown already.)
class ByteFallback : public Decoder {
  class Stage : public DecodeStage {
   public:
    void push(std::string_view token, bool literal) override {
      const int byte = byte_of_token(token);
      text_.clear();
      if (byte >= 0) {
        const char c = static_cast<char>(byte);
        assembler_.push({&c, 1}, text_);
        if (!text_.empty()) emit(text_);
        return;
      }
      finish();
      emit(token, literal);
    }
    void finish() override {
      text_.clear();
      assembler_.finish(text_);
      if (!text_.empty()) emit(text_);
    }

   private:
    Utf8Assembler assembler_{Utf8Assembler::Invalid::kOnePerByte};
    std::string text_;
  };

 public:
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(); }
};

class ReplaceInTokens : public Decoder {
  class Stage : public DecodeStage {
   public:
    explicit Stage(const ReplaceInTokens& decoder) : decoder_(decoder) {}
    void push(std::string_view token, bool literal) override {
      emit(replace_all(token, decoder_.pattern_, decoder_.content_), literal);
    }

   private:
    const ReplaceInTokens& decoder_;
  };

 public:
  ReplaceInTokens(std::string pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(*this); }

 private:
  std::string pattern_, content_;
};

// Replaces in one long text that arrives in parts, holding back what may be the beginning of a match.
class ReplaceInText : public Decoder {
  class Stage : public DecodeStage {
   public:
    explicit Stage(const ReplaceInText& decoder) : decoder_(decoder) {}
    void push(std::string_view part, bool) override {
      const std::string& pattern = decoder_.pattern_;
      held_ += part;
      size_t from = 0;
      std::string out;
      for (size_t found = held_.find(pattern); found != std::string::npos;
           found = held_.find(pattern, from)) {
        out.append(held_, from, found - from);
        out += decoder_.content_;
        from = found + pattern.size();
      }
      size_t keep = std::min(pattern.size() - 1, held_.size() - from);
      while (keep > 0 &&
             !std::string_view(pattern).starts_with(std::string_view(held_).substr(held_.size() - keep)))
        --keep;
      out.append(held_, from, held_.size() - keep - from);
      held_.erase(0, held_.size() - keep);
      if (!out.empty()) emit(out);
    }
    void finish() override {
      if (!held_.empty()) emit(std::exchange(held_, {}));
    }

   private:
    const ReplaceInText& decoder_;
    std::string held_;
  };

 public:
  ReplaceInText(std::string pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(*this); }

 private:
  std::string pattern_, content_;
};

class ReplaceRegexInTokens : public Decoder {
  class Stage : public DecodeStage {
   public:
    explicit Stage(const ReplaceRegexInTokens& decoder) : decoder_(decoder), matcher_(decoder.regex_) {}
    void push(std::string_view token, bool literal) override {
      matcher_.start(token);
      std::string out;
      size_t from = 0, begin = 0, end = 0;
      while (matcher_.next(begin, end)) {
        out += token.substr(from, begin - from);
        out += decoder_.content_;
        from = end;
      }
      out += token.substr(from);
      emit(out, literal);
    }

   private:
    const ReplaceRegexInTokens& decoder_;
    RegexMatcher matcher_;
  };

 public:
  ReplaceRegexInTokens(Regex regex, std::string content)
      : regex_(std::move(regex)), content_(std::move(content)) {}
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(*this); }

 private:
  Regex regex_;
  std::string content_;
};

// Removes up to `start` leading and `stop` trailing copies of a character from each token.
class StripTokens : public Decoder {
  class Stage : public DecodeStage {
   public:
    explicit Stage(const StripTokens& decoder) : decoder_(decoder) {}
    void push(std::string_view token, bool literal) override {
      const std::string& content = decoder_.content_;
      for (int64_t i = 0; i < decoder_.start_ && token.starts_with(content); ++i)
        token.remove_prefix(content.size());
      for (int64_t i = 0; i < decoder_.stop_ && token.ends_with(content); ++i)
        token.remove_suffix(content.size());
      emit(token, literal);
    }

   private:
    const StripTokens& decoder_;
  };

 public:
  StripTokens(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(*this); }

 private:
  std::string content_;
  int64_t start_, stop_;
};

// The same at the ends of one long text that arrives in parts.
class StripText : public Decoder {
  class Stage : public DecodeStage {
   public:
    explicit Stage(const StripText& decoder) : decoder_(decoder), start_left_(decoder.start_) {}
    void push(std::string_view part, bool) override {
      const std::string& content = decoder_.content_;
      while (start_left_ > 0 && part.starts_with(content)) {
        part.remove_prefix(content.size());
        --start_left_;
      }
      if (part.empty()) return;
      start_left_ = 0;
      std::string text = std::exchange(held_, {});
      text += part;
      size_t keep = 0;
      for (int64_t i = 0; i < decoder_.stop_; ++i) {
        if (!std::string_view(text).substr(0, text.size() - keep).ends_with(content)) break;
        keep += content.size();
      }
      held_ = text.substr(text.size() - keep);
      text.resize(text.size() - keep);
      if (!text.empty()) emit(text);
    }

   private:
    const StripText& decoder_;
    int64_t start_left_;
    std::string held_;  // copies of the character that may turn out to be trailing
  };

 public:
  StripText(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(*this); }

 private:
  std::string content_;
  int64_t start_, stop_;
};

// The replacement character to spaces; unless `keep_first`, removed from the first token.
class MetaspaceDecoder : public Decoder {
  class Stage : public DecodeStage {
   public:
    explicit Stage(const MetaspaceDecoder& decoder) : decoder_(decoder) {}
    void push(std::string_view token, bool literal) override {
      const bool remove = first_ && !decoder_.keep_first_;
      if (!decoder_.fused_) first_ = false;
      emit(replace_all(token, decoder_.replacement_, remove ? "" : " "), literal);
    }

   private:
    const MetaspaceDecoder& decoder_;
    bool first_ = true;
  };

 public:
  MetaspaceDecoder(std::string replacement, bool keep_first, bool fused)
      : replacement_(std::move(replacement)), keep_first_(keep_first), fused_(fused) {}
  std::unique_ptr<DecodeStage> start() const override { return std::make_unique<Stage>(*this); }

 private:
  std::string replacement_;
  bool keep_first_, fused_;
};

std::string one_character(const Description& where, const std::string& key) {
  std::string text = where.string(key);
  if (text.empty() || utf8_length(text.front()) != text.size()) {
    fail("{}: '{}' is '{}', expected one character", where.name(), key, printable(text));
  }
  return text;
}

// `fused`: an earlier decoder has joined all tokens into one.
void parse_into(const Description& where, bool& fused, Decoders& out) {
  const std::string type = where.type();
  if (type == "Sequence") {
    for (const Description& child : where.children("decoders")) parse_into(child, fused, out);
  } else if (type == "ByteLevel") {
    if (fused) fail("{}: type 'ByteLevel' after tokens were joined is not supported", where.name());
    out.push_back(make_byte_level_decoder());
    fused = true;
  } else if (type == "ByteFallback") {
    if (fused) fail("{}: type 'ByteFallback' after tokens were joined is not supported", where.name());
    out.push_back(std::make_unique<ByteFallback>());
  } else if (type == "Fuse") {
    fused = true;  // joining is what a stream does anyway
  } else if (type == "Replace") {
    DescribedPattern pattern = where.pattern("pattern");
    std::string content = where.string("content");
    if (pattern.is_regex) {
      if (fused)
        fail("{}: type 'Replace' with a regular expression after tokens were joined is not supported",
             where.name());
      out.push_back(
          std::make_unique<ReplaceRegexInTokens>(Regex(pattern.text, where.name()), std::move(content)));
    } else if (pattern.text.empty()) {
      fail("{}: 'pattern' is empty", where.name());
    } else if (fused) {
      out.push_back(std::make_unique<ReplaceInText>(std::move(pattern.text), std::move(content)));
    } else {
      out.push_back(std::make_unique<ReplaceInTokens>(std::move(pattern.text), std::move(content)));
    }
  } else if (type == "Strip") {
    std::string content = one_character(where, "content");
    const int64_t start = where.integer("start", 0, 1 << 20), stop = where.integer("stop", 0, 1 << 20);
    if (fused) {
      out.push_back(std::make_unique<StripText>(std::move(content), start, stop));
    } else {
      out.push_back(std::make_unique<StripTokens>(std::move(content), start, stop));
    }
  } else if (type == "Metaspace") {
    const std::string scheme =
        where.string("prepend_scheme", where.boolean("add_prefix_space", true) ? "always" : "never");
    out.push_back(
        std::make_unique<MetaspaceDecoder>(one_character(where, "replacement"), scheme == "never", fused));
  } else {
    where.unsupported(type);
  }
}

}  // namespace

std::unique_ptr<Decoder> make_byte_level_decoder() { return std::make_unique<ByteLevelDecoder>(); }

Decoders make_sentencepiece_decoders(bool strip_space) {
  Decoders out;
  out.push_back(std::make_unique<ReplaceInTokens>("\xE2\x96\x81", " "));
  out.push_back(std::make_unique<ByteFallback>());
  if (strip_space) out.push_back(std::make_unique<StripText>(" ", 1, 0));
  return out;
}

Decoders parse_decoders(const Json& description, const std::string& source) {
  Decoders out;
  if (description.is_null()) {
    out.push_back(std::make_unique<JoinWithSpaces>());
  } else {
    bool fused = false;
    parse_into(Description(description, source, "decoder"), fused, out);
  }
  return out;
}

}  // namespace nibble
