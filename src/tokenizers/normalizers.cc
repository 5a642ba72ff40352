#include "tokenizers/normalizers.h"

#include <utility>

#include "base/error.h"
#include "tokenizers/description.h"
#include "tokenizers/pieces.h"
#include "tokenizers/regex.h"
#include "tokenizers/unicode.h"

namespace nibble {
namespace {

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(std::string& text, bool&) const override {
    if (!text.empty()) text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class ReplaceString : public Normalizer {
 public:
  ReplaceString(std::string pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(std::string& text, bool& at_start) const override {
    size_t found = text.find(pattern_);
    if (found == std::string::npos) return;
    if (found == 0 && content_.empty()) at_start = false;
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    size_t from = 0;
    for (; found != std::string::npos; found = text.find(pattern_, from)) {
      out.append(text, from, found - from);
      out += content_;
      check_text_size(out.size());
      from = found + pattern_.size();
    }
    out.append(text, from, std::string::npos);
    text = std::move(out);
  }

 private:
  std::string pattern_, content_;  // the pattern is not empty
};

class ReplaceRegex : public Normalizer {
 public:
  ReplaceRegex(Regex regex, std::string content) : regex_(std::move(regex)), content_(std::move(content)) {}
  void apply(std::string& text, bool& at_start) const override {
    RegexMatcher matcher(regex_);
    matcher.start(text);
    std::string out;
    size_t from = 0, begin = 0, end = 0;
    while (matcher.next(begin, end)) {
      if (begin == 0 && end > 0 && content_.empty()) at_start = false;
      out.append(text, from, begin - from);
      out += content_;
      check_text_size(out.size());
      from = end;
    }
    out.append(text, from, std::string::npos);
    text = std::move(out);
  }

 private:
  Regex regex_;
  std::string content_;
};

class UnicodeForm : public Normalizer {
 public:
  explicit UnicodeForm(NormalizationForm form) : form_(form) {}
  void apply(std::string& text, bool&) const override { text = normalize_utf8(text, form_); }

 private:
  NormalizationForm form_;
};

class Lowercase : public Normalizer {
 public:
  void apply(std::string& text, bool&) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
      const Utf8Character character = utf8_at(text, i);
      append_lowercase(out, character.code);
      i += character.length;
    }
    text = std::move(out);
  }
};

class StripAccents : public Normalizer {
 public:
  void apply(std::string& text, bool& at_start) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
      const Utf8Character character = utf8_at(text, i);
      if (!is_mark(character.code)) {
        out.append(text, i, character.length);
      } else if (i == 0) {
        at_start = false;
      }
      i += character.length;
    }
    text = std::move(out);
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(std::string& text, bool& at_start) const override {
    size_t begin = 0, end = text.size();
    while (left_ && begin < end) {
      const Utf8Character character = utf8_at(text, begin);
      if (!is_white_space(character.code)) break;
      begin += character.length;
    }
    while (right_ && end > begin) {
      size_t last = end - 1;
      while ((static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
      if (!is_white_space(utf8_at(text, last).code)) break;
      end = last;
    }
    if (begin > 0) at_start = false;
    text = text.substr(begin, end - begin);
  }

 private:
  bool left_, right_;
};

void parse_into(const Description& where, Normalizers& out) {
  const std::string type = where.type();
  if (type == "Sequence") {
    for (const Description& child : where.children("normalizers")) parse_into(child, out);
  } else if (type == "Prepend") {
    out.push_back(make_prepend_normalizer(where.string("prepend")));
  } else if (type == "Replace") {
    std::string content = where.string("content");
    DescribedPattern pattern = where.pattern("pattern");
    if (pattern.is_regex) {
      out.push_back(std::make_unique<ReplaceRegex>(Regex(pattern.text, where.name()), std::move(content)));
    } else if (!pattern.text.empty()) {
      out.push_back(make_replace_normalizer(std::move(pattern.text), std::move(content)));
    } else {
      fail("{}: 'pattern' is empty", where.name());
    }
  } else if (type == "NFC") {
    out.push_back(make_nfc_normalizer());
  } else if (type == "NFD") {
    out.push_back(std::make_unique<UnicodeForm>(NormalizationForm::kNfd));
  } else if (type == "NFKC") {
    out.push_back(std::make_unique<UnicodeForm>(NormalizationForm::kNfkc));
  } else if (type == "NFKD") {
    out.push_back(std::make_unique<UnicodeForm>(NormalizationForm::kNfkd));
  } else if (type == "Lowercase") {
    out.push_back(std::make_unique<Lowercase>());
  } else if (type == "StripAccents") {
    out.push_back(std::make_unique<StripAccents>());
  } else if (type == "Strip") {
    out.push_back(
        std::make_unique<Strip>(where.boolean("strip_left", true), where.boolean("strip_right", true)));
  } else {
    where.unsupported(type);
  }
}

}  // namespace

std::unique_ptr<Normalizer> make_prepend_normalizer(std::string prefix) {
  return std::make_unique<Prepend>(std::move(prefix));
}

std::unique_ptr<Normalizer> make_replace_normalizer(std::string pattern, std::string content) {
  NIBBLE_CHECK(!pattern.empty());
  return std::make_unique<ReplaceString>(std::move(pattern), std::move(content));
}

std::unique_ptr<Normalizer> make_nfc_normalizer() {
  return std::make_unique<UnicodeForm>(NormalizationForm::kNfc);
}

Normalizers parse_normalizers(const Json& description, const std::string& source) {
  Normalizers out;
  if (!description.is_null()) parse_into(Description(description, source, "normalizer"), out);
  return out;
}

}  // namespace nibble
