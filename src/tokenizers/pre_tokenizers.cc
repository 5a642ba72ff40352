#include "tokenizers/pre_tokenizers.h"

#include <utility>

#include "base/error.h"
#include "io/printable.h"
#include "tokenizers/byte_level.h"
#include "tokenizers/description.h"
#include "tokenizers/unicode.h"

namespace nibble {

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// Adds the stretch before a match, and the match.
void add_match(std::vector<Segment>& segments, size_t& from, size_t begin, size_t end, bool inverted) {
  if (from < begin) segments.push_back({static_cast<uint32_t>(from), static_cast<uint32_t>(begin), inverted});
  segments.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), !inverted});
  from = end;
}

void add_rest(std::vector<Segment>& segments, size_t from, size_t size, bool inverted) {
  if (from < size) segments.push_back({static_cast<uint32_t>(from), static_cast<uint32_t>(size), inverted});
}

void find_regex(RegexMatcher& matcher, std::string_view text, bool inverted, std::vector<Segment>& segments) {
  matcher.start(text);
  size_t from = 0, begin = 0, end = 0;
  while (matcher.next(begin, end)) add_match(segments, from, begin, end, inverted);
  add_rest(segments, from, text.size(), inverted);
}

// Every character that satisfies `test` is a match of its own.
template <typename Test>
void find_characters(std::string_view text, Test&& test, std::vector<Segment>& segments) {
  size_t from = 0;
  for (size_t i = 0; i < text.size();) {
    const Utf8Character character = utf8_at(text, i);
    if (test(character.code)) add_match(segments, from, i, i + character.length, false);
    i += character.length;
  }
  add_rest(segments, from, text.size(), false);
}

class SplitRegex : public PreTokenizer {
 public:
  SplitRegex(Regex regex, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  void apply(Pieces& pieces) const override {
    RegexMatcher matcher(regex_);
    split_pieces(pieces, behavior_, [&](std::string_view text, std::vector<Segment>& segments) {
      find_regex(matcher, text, invert_, segments);
    });
  }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class SplitString : public PreTokenizer {
 public:
  SplitString(std::string pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void apply(Pieces& pieces) const override {
    split_pieces(pieces, behavior_, [&](std::string_view text, std::vector<Segment>& segments) {
      size_t from = 0;
      for (size_t found = text.find(pattern_); found != std::string_view::npos;
           found = text.find(pattern_, from)) {
        add_match(segments, from, found, found + pattern_.size(), invert_);
      }
      add_rest(segments, from, text.size(), invert_);
    });
  }

 private:
  std::string pattern_;  // not empty
  SplitBehavior behavior_;
  bool invert_;
};

// Cuts at characters with a property.
class SplitCharacters : public PreTokenizer {
 public:
  SplitCharacters(bool (*test)(char32_t) noexcept, SplitBehavior behavior)
      : test_(test), behavior_(behavior) {}
  void apply(Pieces& pieces) const override {
    split_pieces(pieces, behavior_, [&](std::string_view text, std::vector<Segment>& segments) {
      find_characters(text, test_, segments);
    });
  }

 private:
  bool (*test_)(char32_t) noexcept;
  SplitBehavior behavior_;
};

class ByteLevel : public PreTokenizer {
 public:
  explicit ByteLevel(bool add_prefix_space) : add_prefix_space_(add_prefix_space) {}
  void apply(Pieces& pieces) const override {
    rewrite_pieces(pieces, [&](std::string_view text, const Piece&, std::string& out) {
      if (add_prefix_space_ && !text.starts_with(' ')) append_byte_level(out, " ");
      append_byte_level(out, text);
    });
  }

 private:
  bool add_prefix_space_;
};

// Puts a space before every piece that does not begin with one: what ByteLevel does before its own cutting.
class PrefixSpace : public PreTokenizer {
 public:
  void apply(Pieces& pieces) const override {
    rewrite_pieces(pieces, [](std::string_view text, const Piece&, std::string& out) {
      if (!text.starts_with(' ')) out += ' ';
      out += text;
    });
  }
};

class Metaspace : public PreTokenizer {
 public:
  enum class Prepend { kAlways, kFirst, kNever };
  Metaspace(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}

  void apply(Pieces& pieces) const override {
    rewrite_pieces(pieces, [&](std::string_view text, const Piece& piece, std::string& out) {
      const bool wanted = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.at_start);
      if (wanted && !text.starts_with(' ') && !text.starts_with(replacement_)) out += replacement_;
      for (const char c : text) {
        if (c == ' ') {
          out += replacement_;
        } else {
          out += c;
        }
      }
    });
    if (!split_) return;
    split_pieces(pieces, SplitBehavior::kMergedWithNext,
                 [&](std::string_view text, std::vector<Segment>& segments) {
                   size_t from = 0;
                   for (size_t found = text.find(replacement_); found != std::string_view::npos;
                        found = text.find(replacement_, from)) {
                     add_match(segments, from, found, found + replacement_.size(), false);
                   }
                   add_rest(segments, from, text.size(), false);
                 });
  }

 private:
  std::string replacement_;  // one character
  Prepend prepend_;
  bool split_;
};

SplitBehavior parse_behavior(const Description& where, std::optional<std::string> otherwise) {
  const std::string name = where.string("behavior", std::move(otherwise));
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  fail("{}: 'behavior' is '{}', expected Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous",
       where.name(), printable(name));
}

std::unique_ptr<PreTokenizer> parse_metaspace(const Description& where) {
  std::string replacement = where.string("replacement");
  if (replacement.empty() || utf8_length(replacement.front()) != replacement.size()) {
    fail("{}: 'replacement' is '{}', expected one character", where.name(), printable(replacement));
  }
  // Before version 0.15 of `tokenizers` there was a flag.
  const bool prefix = where.boolean("add_prefix_space", true);
  const std::string scheme = where.string("prepend_scheme", prefix ? "always" : "never");
  Metaspace::Prepend prepend{};
  if (scheme == "always") {
    prepend = Metaspace::Prepend::kAlways;
  } else if (scheme == "first") {
    prepend = Metaspace::Prepend::kFirst;
  } else if (scheme == "never") {
    prepend = Metaspace::Prepend::kNever;
  } else {
    fail("{}: 'prepend_scheme' is '{}', expected always, first or never", where.name(), printable(scheme));
  }
  return std::make_unique<Metaspace>(std::move(replacement), prepend, where.boolean("split", true));
}

void parse_into(const Description& where, PreTokenizers& out) {
  const std::string type = where.type();
  if (type == "Sequence") {
    for (const Description& child : where.children("pretokenizers")) parse_into(child, out);
  } else if (type == "Split") {
    DescribedPattern pattern = where.pattern("pattern");
    const SplitBehavior behavior = parse_behavior(where, std::nullopt);
    const bool invert = where.boolean("invert", false);
    if (pattern.is_regex) {
      out.push_back(std::make_unique<SplitRegex>(Regex(pattern.text, where.name()), behavior, invert));
    } else if (!pattern.text.empty()) {
      out.push_back(std::make_unique<SplitString>(std::move(pattern.text), behavior, invert));
    } else {
      fail("{}: 'pattern' is empty", where.name());
    }
  } else if (type == "ByteLevel") {
    const bool prefix = where.boolean("add_prefix_space", true);
    if (!where.boolean("use_regex", true)) {
      out.push_back(make_byte_level_pre_tokenizer(prefix));
    } else {
      if (prefix) out.push_back(std::make_unique<PrefixSpace>());
      out.push_back(make_split_pre_tokenizer(Regex(kGpt2Pattern, where.name())));
      out.push_back(make_byte_level_pre_tokenizer(false));
    }
  } else if (type == "Digits") {
    const bool individual = where.boolean("individual_digits", false);
    out.push_back(std::make_unique<SplitCharacters>(
        is_numeric, individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous));
  } else if (type == "Metaspace") {
    out.push_back(parse_metaspace(where));
  } else if (type == "Whitespace") {
    // Here `tokenizers` uses another regular expression library, whose \w also has the joiners (property
    // Join_Control).
    out.push_back(
        std::make_unique<SplitRegex>(Regex(R"([\w\x{200C}\x{200D}]+|[^\w\s\x{200C}\x{200D}]+)", where.name()),
                                     SplitBehavior::kRemoved, true));
  } else if (type == "WhitespaceSplit") {
    out.push_back(std::make_unique<SplitCharacters>(is_white_space, SplitBehavior::kRemoved));
  } else if (type == "Punctuation") {
    out.push_back(std::make_unique<SplitCharacters>(is_punctuation, parse_behavior(where, "Isolated")));
  } else {
    where.unsupported(type);
  }
}

}  // namespace

std::unique_ptr<PreTokenizer> make_split_pre_tokenizer(Regex regex) {
  return std::make_unique<SplitRegex>(std::move(regex), SplitBehavior::kIsolated, false);
}

std::unique_ptr<PreTokenizer> make_byte_level_pre_tokenizer(bool add_prefix_space) {
  return std::make_unique<ByteLevel>(add_prefix_space);
}

PreTokenizers parse_pre_tokenizers(const Json& description, const std::string& source) {
  PreTokenizers out;
  if (!description.is_null()) parse_into(Description(description, source, "pre_tokenizer"), out);
  return out;
}

}  // namespace nibble
