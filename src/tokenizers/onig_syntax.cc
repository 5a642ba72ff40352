#include "tokenizers/onig_syntax.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/printable.h"
#include "tokenizers/unicode.h"

namespace nibble {
namespace {

constexpr int kMaxClassDepth = 16;
constexpr size_t kMaxPatternBytes = size_t{1} << 16;

// Bodies of PCRE2 classes. PCRE2's own \s adds U+180E, its \w lacks marks and connectors.
constexpr std::string_view kSpace =
    R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{E}-\x{1F}\x{21}-\x{84}\x{86}-\x{9F}\x{A1}-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027}\x{202A}-\x{202E})"
    R"(\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{10FFFF})";
// Oniguruma also counts the superscripts and fractions of Latin-1, of all such characters only these.
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE})";
constexpr std::string_view kHexDigit = "0-9A-Fa-f";

// A set of characters under construction: the union of class items and of patterns that match one character
// each.
struct CharacterSet {
  std::string items;
  std::vector<std::string> alternatives;

  void add(const CharacterSet& other) {
    items += other.items;
    alternatives.insert(alternatives.end(), other.alternatives.begin(), other.alternatives.end());
  }
  bool is_plain() const { return alternatives.empty(); }
  // A pattern that matches one character of the set.
  std::string pattern() const {
    if (alternatives.empty()) return items.empty() ? "(?!)" : "[" + items + "]";
    if (items.empty() && alternatives.size() == 1) return alternatives.front();
    std::string text = "(?:";
    if (!items.empty()) text += "[" + items + "]|";
    for (size_t i = 0; i < alternatives.size(); ++i) text += (i > 0 ? "|" : "") + alternatives[i];
    return text + ")";
  }
  std::string negated_pattern() const {
    if (alternatives.empty()) return items.empty() ? R"([\x{0}-\x{10FFFF}])" : "[^" + items + "]";
    return "(?:(?!" + pattern() + R"()[\x{0}-\x{10FFFF}]))";
  }
  CharacterSet negated() const { return {"", {negated_pattern()}}; }
};

CharacterSet items_of(std::string_view items) { return {std::string(items), {}}; }

// General categories and derived properties by their long names, as Oniguruma accepts them (lower case, no
// separators).
constexpr std::pair<std::string_view, std::string_view> kPropertyNames[] = {
    {"any", R"(\x{0}-\x{10FFFF})"},
    {"alnum", R"(\p{Alphabetic}\p{Nd})"},
    {"alpha", R"(\p{Alphabetic})"},
    {"ascii", R"(\x{0}-\x{7F})"},
    {"blank", R"(\p{Zs}\x{9})"},
    {"cntrl", R"(\p{Cc})"},
    {"digit", R"(\p{Nd})"},
    {"lower", R"(\p{Lowercase})"},
    {"punct", R"(\p{P})"},
    {"space", kSpace},
    {"upper", R"(\p{Uppercase})"},
    {"word", kWord},
    {"xdigit", kHexDigit},
    {"whitespace", kSpace},
    {"c", R"(\p{C})"},
    {"other", R"(\p{C})"},
    {"cc", R"(\p{Cc})"},
    {"control", R"(\p{Cc})"},
    {"cf", R"(\p{Cf})"},
    {"format", R"(\p{Cf})"},
    {"co", R"(\p{Co})"},
    {"privateuse", R"(\p{Co})"},
    {"l", R"(\p{L})"},
    {"letter", R"(\p{L})"},
    {"ll", R"(\p{Ll})"},
    {"lowercaseletter", R"(\p{Ll})"},
    {"lm", R"(\p{Lm})"},
    {"modifierletter", R"(\p{Lm})"},
    {"lo", R"(\p{Lo})"},
    {"otherletter", R"(\p{Lo})"},
    {"lt", R"(\p{Lt})"},
    {"titlecaseletter", R"(\p{Lt})"},
    {"lu", R"(\p{Lu})"},
    {"uppercaseletter", R"(\p{Lu})"},
    {"m", R"(\p{M})"},
    {"mark", R"(\p{M})"},
    {"combiningmark", R"(\p{M})"},
    {"mn", R"(\p{Mn})"},
    {"nonspacingmark", R"(\p{Mn})"},
    {"n", R"(\p{N})"},
    {"number", R"(\p{N})"},
    {"nd", R"(\p{Nd})"},
    {"decimalnumber", R"(\p{Nd})"},
    {"nl", R"(\p{Nl})"},
    {"letternumber", R"(\p{Nl})"},
    {"no", R"(\p{No})"},
    {"othernumber", R"(\p{No})"},
    {"p", R"(\p{P})"},
    {"punctuation", R"(\p{P})"},
    {"pc", R"(\p{Pc})"},
    {"connectorpunctuation", R"(\p{Pc})"},
    {"pd", R"(\p{Pd})"},
    {"dashpunctuation", R"(\p{Pd})"},
    {"s", R"(\p{S})"},
    {"symbol", R"(\p{S})"},
    {"sm", R"(\p{Sm})"},
    {"mathsymbol", R"(\p{Sm})"},
    {"sc", R"(\p{Sc})"},
    {"currencysymbol", R"(\p{Sc})"},
    {"z", R"(\p{Z})"},
    {"separator", R"(\p{Z})"},
    {"zs", R"(\p{Zs})"},
};

bool pcre_compiles(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& source) : pattern_(pattern), source_(source) {}

  std::string run() {
    while (!at_end()) element();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail("{}: regular expression '{}': {} at byte {}", source_, printable(pattern_), what, position_);
  }
  bool at_end() const { return position_ >= pattern_.size(); }
  char peek(size_t ahead = 0) const {
    return position_ + ahead < pattern_.size() ? pattern_[position_ + ahead] : '\0';
  }
  bool follows(std::string_view text) const { return pattern_.substr(position_).starts_with(text); }
  bool take(std::string_view text) {
    if (!follows(text)) return false;
    position_ += text.size();
    return true;
  }
  char32_t take_character() {
    if (at_end()) refuse("unexpected end");
    const Utf8Character character = utf8_at(pattern_, position_);
    position_ += character.length;
    return character.code;
  }

  static std::string literal(char32_t code) {
    std::string text;
    if (code >= 0x80 || std::isalnum(static_cast<int>(code)) != 0) {
      append_utf8(text, code);
      return text;
    }
    return format_text("\\x{{{:X}}}", static_cast<uint32_t>(code));
  }

  void atom(const std::string& text) {
    atom_start_ = out_.size();
    out_ += text;
  }

  void element() {
    switch (peek()) {
      case '\\':
        escape();
        return;
      case '[':
        ++position_;
        atom(character_class(0).pattern());
        return;
      case '(':
        group();
        return;
      case ')':
        ++position_;
        if (groups_.empty()) refuse("unmatched ')'");
        out_ += ')';
        atom_start_ = groups_.back();
        groups_.pop_back();
        return;
      case '*':
      case '+':
      case '?':
        quantifier(std::string(1, pattern_[position_++]));
        return;
      case '{':
        interval();
        return;
      case '|':
        ++position_;
        out_ += '|';
        atom_start_ = std::string::npos;
        return;
      default: {
        const size_t begin = position_;
        take_character();
        atom(std::string(pattern_.substr(begin, position_ - begin)));
      }
    }
  }

  void group() {
    if (follows("(*")) refuse("'(*' is not supported");
    const size_t start = out_.size();
    ++position_;
    if (take("?#")) {  // a comment
      while (!at_end() && peek() != ')') ++position_;
      if (!take(")")) refuse("unterminated comment");
      return;
    }
    if (follows("?~")) refuse("the absence operator '(?~' is not supported");
    if (peek() == '?' && (std::isalpha(static_cast<unsigned char>(peek(1))) != 0 || peek(1) == '-')) {
      ++position_;
      std::string options = "(?";
      while (peek() == 'i' || peek() == 'm' || peek() == 'x' || peek() == '-') {
        options += peek() == 'm' ? 's' : peek();
        ++position_;
      }
      if (take(")")) {
        out_ += options + ")";
        atom_start_ = std::string::npos;
        return;
      }
      if (!take(":")) refuse("unknown group option");
      out_ += options + ":";
    } else {
      out_ += '(';
      // "(?:", "(?=", "(?<name>", ...: the same in both.
      if (take("?")) out_ += '?';
    }
    groups_.push_back(start);
    atom_start_ = std::string::npos;
  }

  void interval() {
    size_t i = position_ + 1;
    const auto digits = [&] {
      std::string text;
      while (i < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[i])) != 0)
        text += pattern_[i++];
      return text;
    };
    std::string low = digits();
    bool fixed = true;
    std::string high;
    if (i < pattern_.size() && pattern_[i] == ',') {
      fixed = false;
      ++i;
      high = digits();
    }
    const bool valid = i < pattern_.size() && pattern_[i] == '}' && !(low.empty() && high.empty());
    if (!valid) {  // a brace that begins no interval is itself
      ++position_;
      atom("\\{");
      return;
    }
    position_ = i + 1;
    if (low.empty()) low = "0";
    const std::string text = "{" + low + (fixed ? "" : ",") + high + "}";
    // Here Ruby's "+" is a second quantifier, as is the "?" after a fixed count; PCRE2 would take both as
    // modes.
    if (peek() == '+' || (fixed && peek() == '?')) {
      if (atom_start_ == std::string::npos) refuse("nothing to repeat");
      out_.insert(atom_start_, "(?:");
      out_ += text + ")";
      return;
    }
    quantifier(text);
  }

  void quantifier(const std::string& text) {
    out_ += text;
    if (peek() == '?' || (peek() == '+' && text.size() == 1)) out_ += pattern_[position_++];
  }

  // The set that an escape stands for ("\s", "\p{L}"), with `position_` behind the backslash; nothing for
  // other escapes.
  std::optional<CharacterSet> set_escape() {
    const char kind = peek();
    if (kind == 'p' || kind == 'P') return property();
    std::optional<CharacterSet> set;
    switch (kind) {
      case 's':
        set = items_of(kSpace);
        break;
      case 'S':
        set = items_of(kNotSpace);
        break;
      case 'w':
        set = items_of(kWord);
        break;
      case 'W':
        set = items_of(kWord).negated();
        break;
      case 'd':
        set = items_of(R"(\p{Nd})");
        break;
      case 'D':
        set = items_of(R"(\P{Nd})");
        break;
      case 'h':
        set = items_of(kHexDigit);
        break;
      case 'H':
        set = items_of(kHexDigit).negated();
        break;
      default:
        return set;
    }
    ++position_;
    return set;
  }

  CharacterSet property() {
    bool negated = pattern_[position_++] == 'P';
    if (!take("{")) refuse("expected '{' after \\p");
    if (take("^")) negated = !negated;
    const size_t end = pattern_.find('}', position_);
    if (end == std::string_view::npos) refuse("unterminated property name");
    const std::string_view name = pattern_.substr(position_, end - position_);
    std::string key;
    for (const char c : name) {
      if (c == ' ' || c == '_' || c == '-') continue;
      if (std::isalnum(static_cast<unsigned char>(c)) == 0) refuse("malformed property name");
      key += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    position_ = end + 1;
    return negated ? property_items(key, name).negated() : property_items(key, name);
  }

  CharacterSet property_items(const std::string& key, std::string_view name) const {
    for (const auto& [known, items] : kPropertyNames) {
      if (known == key) return items_of(items);
    }
    // A script (PCRE2 would take its extensions too), a category or a binary property.
    for (const std::string& item : {"\\p{sc:" + key + "}", "\\p{" + key + "}"}) {
      if (!key.empty() && pcre_compiles(item)) return items_of(item);
    }
    std::string two_letters = key;
    if (key.size() == 2) {
      two_letters[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(key[0])));
      if (pcre_compiles("\\p{" + two_letters + "}")) return items_of("\\p{" + two_letters + "}");
    }
    refuse(format_text("unknown property '{}'", name.substr(0, 40)));
  }

  uint32_t hex_digits(size_t least, size_t most) {
    uint32_t value = 0;
    size_t count = 0;
    while (count < most && std::isxdigit(static_cast<unsigned char>(peek())) != 0) {
      const char c = static_cast<char>(std::tolower(static_cast<unsigned char>(peek())));
      value = value * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : c - 'a' + 10);
      ++position_;
      ++count;
    }
    if (count < least) refuse("expected hexadecimal digits");
    return value;
  }

  // The character that an escape stands for, with `position_` behind the backslash; nothing for other
  // escapes.
  std::optional<char32_t> character_escape(bool in_class) {
    const char kind = peek();
    switch (kind) {
      case 't':
        ++position_;
        return U'\t';
      case 'n':
        ++position_;
        return U'\n';
      case 'r':
        ++position_;
        return U'\r';
      case 'f':
        ++position_;
        return U'\f';
      case 'v':
        ++position_;
        return U'\v';
      case 'a':
        ++position_;
        return U'\a';
      case 'e':
        ++position_;
        return char32_t{0x1B};
      case 'u':
        ++position_;
        return checked(hex_digits(4, 4));
      case 'x': {
        ++position_;
        if (!take("{")) return checked(hex_digits(1, 2));
        const uint32_t code = hex_digits(1, 8);
        if (!take("}")) refuse("expected '}'");
        return checked(code);
      }
      case '0': {
        uint32_t code = 0;
        for (int i = 0; i < 3 && peek() >= '0' && peek() <= '7'; ++i) {
          code = code * 8 + static_cast<uint32_t>(pattern_[position_++] - '0');
        }
        return checked(code);
      }
      default:
        break;
    }
    if (in_class && kind == 'b') {
      ++position_;
      return U'\b';
    }
    if (std::isalnum(static_cast<unsigned char>(kind)) != 0) return std::nullopt;
    return take_character();
  }

  char32_t checked(uint32_t code) const {
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) refuse("no such character");
    return code;
  }

  void escape() {
    ++position_;
    if (at_end()) refuse("backslash at the end");
    if (const auto set = set_escape()) {
      atom(set->pattern());
      return;
    }
    if (const auto code = character_escape(false)) {
      atom(literal(*code));
      return;
    }
    const char kind = pattern_[position_++];
    const std::string word = "[" + std::string(kWord) + "]";
    switch (kind) {
      case 'b':
        atom("(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))");
        return;
      case 'B':
        atom("(?:(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + "))");
        return;
      case 'O':
        atom(R"([\x{0}-\x{10FFFF}])");
        return;
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
      case 'K':
      case 'R':
      case 'X':
      case 'N':
      case 'k':
      case 'g':
        atom(std::string("\\") + kind);
        return;
      default:
        break;
    }
    if (kind >= '1' && kind <= '9') {
      atom(std::string("\\") + kind);
      return;
    }
    refuse(format_text("unsupported escape '\\{}'", kind));
  }

  // "[:alpha:]" inside a class, behind its '['.
  std::optional<CharacterSet> posix_bracket() {
    if (peek() != ':') return std::nullopt;
    const size_t end = pattern_.find(":]", position_ + 1);
    if (end == std::string_view::npos) return std::nullopt;
    std::string_view name = pattern_.substr(position_ + 1, end - position_ - 1);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    const auto is_letter = [](char c) { return c >= 'a' && c <= 'z'; };
    if (name.empty() || !std::all_of(name.begin(), name.end(), is_letter)) return std::nullopt;
    position_ = end + 2;
    std::optional<CharacterSet> set;
    if (name == "graph")
      set = CharacterSet{"", {"(?:(?![" + std::string(kSpace) + R"(])[^\p{Cc}\p{Cn}\p{Cs}]))"}};
    if (name == "print") set = items_of(R"(\p{L}\p{M}\p{N}\p{P}\p{S}\p{Zs}\p{Cf}\p{Co})");
    if (name == "punct") set = items_of(R"(\p{P}\p{S})");
    if (!set) set = property_items(std::string(name), name);
    return negated ? set->negated() : set;
  }

  // One side of a range, or a set. Exactly one of the two is returned.
  struct ClassItem {
    std::optional<char32_t> code;
    CharacterSet set;
  };
  ClassItem class_item(int depth) {
    if (peek() == '[') {
      ++position_;
      if (const auto set = posix_bracket()) return {std::nullopt, *set};
      return {std::nullopt, character_class(depth + 1)};
    }
    if (peek() == '\\') {
      ++position_;
      if (at_end()) refuse("backslash at the end");
      if (auto set = set_escape()) return {std::nullopt, std::move(*set)};
      if (const auto code = character_escape(true)) return {code, {}};
      refuse("unsupported escape in a class");
    }
    return {take_character(), {}};
  }

  // A class, with `position_` behind its '['.
  CharacterSet character_class(int depth) {
    if (depth > kMaxClassDepth) refuse("classes nested too deeply");
    const bool negated = take("^");
    CharacterSet current;
    std::vector<CharacterSet> operands;  // of "&&"
    for (bool first = true;; first = false) {
      if (at_end()) refuse("unterminated class");
      if (peek() == ']' && !first) {
        ++position_;
        break;
      }
      if (take("&&")) {
        operands.push_back(std::move(current));
        current = {};
        continue;
      }
      ClassItem item = class_item(depth);
      if (!item.code) {
        current.add(item.set);
        continue;
      }
      current.items += literal(*item.code);
      if (peek() != '-' || peek(1) == ']' || position_ + 1 >= pattern_.size()) continue;
      ++position_;
      const ClassItem upper = class_item(depth);
      if (!upper.code) {  // "a-\d": the hyphen is itself
        current.items += literal(U'-');
        current.add(upper.set);
        continue;
      }
      if (*upper.code < *item.code) refuse("empty range in a class");
      current.items += "-" + literal(*upper.code);
    }
    if (!operands.empty()) {
      operands.push_back(std::move(current));
      std::string text = "(?:";
      for (size_t i = 0; i + 1 < operands.size(); ++i) text += "(?=" + operands[i].pattern() + ")";
      current = {"", {text + operands.back().pattern() + ")"}};
    }
    return negated ? current.negated() : current;
  }

  std::string_view pattern_;
  const std::string& source_;
  std::string out_;
  size_t position_ = 0;
  size_t atom_start_ = std::string::npos;  // in out_, of what a quantifier would repeat
  std::vector<size_t> groups_;             // starts of open groups in out_
};

}  // namespace

std::string translate_onig_pattern(std::string_view pattern, const std::string& source) {
  if (pattern.size() > kMaxPatternBytes) {
    fail("{}: regular expression of {} bytes, at most {} are allowed", source, pattern.size(),
         kMaxPatternBytes);
  }
  if (!is_valid_utf8(pattern)) fail("{}: regular expression is not valid UTF-8", source);
  return Translator(pattern, source).run();
}

}  // namespace nibble
