// Regular expressions mean what they mean in Oniguruma's Ruby syntax.
#include "base/error.h"
#include "tokenizer_testing.h"
#include "tokenizers/regex.h"

namespace nibble {
namespace {

std::vector<std::string> matches(const std::string& pattern, std::string_view text) {
  const Regex regex(pattern, "test");
  RegexMatcher matcher(regex);
  matcher.start(text);
  std::vector<std::string> found;
  size_t begin = 0, end = 0;
  while (matcher.next(begin, end)) found.emplace_back(text.substr(begin, end - begin));
  return found;
}

using Found = std::vector<std::string>;

TEST(Regex, ClassesNestAndIntersect) {
  EXPECT_EQ(matches(R"( ?[^(\s|[.,!?…])]+)", "ab (c|d… e"), (Found{"ab", "c", "d", " e"}));
  EXPECT_EQ(matches("[a-z&&[^aeiou]]+", "hello world"), (Found{"h", "ll", "w", "rld"}));
  EXPECT_EQ(matches("[^a-z&&[^0-9]]+", "ab,12;x"), (Found{",12;"}));
  EXPECT_EQ(matches("[a[^\\Wb-y]]+", "abcz_A"), (Found{"a", "z_A"}));
  EXPECT_EQ(matches("[]a]+", "]ab"), (Found{"]a"}));
  EXPECT_EQ(matches(R"([\w-.]+)", "a-b. c"), (Found{"a-b.", "c"}));
  EXPECT_EQ(matches(R"([a-\d]+)", "a-1b"), (Found{"a-1"}));
  EXPECT_EQ(matches("[[:alpha:][:digit:]]+", "é1-_"), (Found{"é1"}));
  EXPECT_EQ(matches("[[:^alpha:]]+", "é1-_"), (Found{"1-_"}));
}

TEST(Regex, EscapesAreUnicodeProperties) {
  EXPECT_EQ(matches(R"(\s)", "\xC2\x85\xE2\x80\x83\xE1\xA0\x8E\xE2\x80\x8B"),
            (Found{"\xC2\x85", "\xE2\x80\x83"}));
  EXPECT_EQ(matches(R"(\w+)", "na\xC3\xAFve_e\xCC\x81\xE2\x80\xBF②Ⅷ"),
            (Found{"na\xC3\xAFve_e\xCC\x81\xE2\x80\xBF", "Ⅷ"}));
  EXPECT_EQ(matches(R"(\d+)", "12١٢②"), (Found{"12١٢"}));
  EXPECT_EQ(matches(R"(\h+)", "xyz af09 "), (Found{"af09"}));
  EXPECT_EQ(matches(R"(\u00e9\x{1F642}\x41)", "é🙂A"), (Found{"é🙂A"}));
  EXPECT_EQ(matches(R"(\p{Han}+|\p{Letter}|\p{^L}|\p{decimal_number})", "漢字a-"), (Found{"漢字", "a", "-"}));
  EXPECT_EQ(matches(R"(\ba|\Bb)", "a ab ba"), (Found{
                                                  "a",
                                                  "a",
                                                  "b",
                                              }));
}

TEST(Regex, OptionsAndQuantifiersAreRubys) {
  EXPECT_EQ(matches("(?i:'s|'ll)", "'S 'LL '\xC5\xBF 'x"), (Found{"'S", "'LL", "'\xC5\xBF"}));
  EXPECT_EQ(matches("(?i)k", "kK\xE2\x84\xAA"), (Found{"k", "K", "\xE2\x84\xAA"}));
  EXPECT_EQ(matches("a.", "a\nab"), (Found{"ab"}));
  EXPECT_EQ(matches("(?m:a.)", "a\nab"), (Found{"a\n", "ab"}));
  EXPECT_EQ(matches("^a|b$", "a\nab\nb"), (Found{"a", "a", "b", "b"}));
  EXPECT_EQ(matches("a{,2}b", "aaab b"), (Found{"aab", "b"}));
  EXPECT_EQ(matches("(?:ab){1,2}+c", "ababababc"), (Found{"ababababc"}));  // repeats; not possessive
  EXPECT_EQ(matches("a++b", "aab"), (Found{"aab"}));
  EXPECT_EQ(matches("a{x}", "a{x}"), (Found{"a{x}"}));
  EXPECT_EQ(matches("(?x: a  b # comment\n)", "ab"), (Found{"ab"}));
  EXPECT_EQ(matches("a(?#comment)b", "ab"), (Found{"ab"}));
}

TEST(Regex, EmptyMatchesAdvance) {
  EXPECT_EQ(matches("x*", "axxé"), (Found{"", "xx", ""}));
  EXPECT_EQ(matches("(?=b)", "abb"), (Found{"", ""}));
}

TEST(Regex, RefusesWhatItCannotDo) {
  for (const char* pattern : {"(",          ")",     "[",           "[a",        "[b-a]",
                              "*",          "a**{",  "\\",          "\\p{",      "\\p{Nonsense}",
                              "\\p",        "(?<n",  "\\k<x>",      "(*FAIL)",   "(?~a)",
                              "(?z:a)",     "\\xZZ", "\\x{110000}", "\\x{D800}", "\\u12",
                              "[[:alpha:]", "\\C",   "\\q",         "(?<=a*)b"}) {
    EXPECT_THROW(Regex(pattern, "test"), Error) << pattern;
  }
  EXPECT_THROW(Regex(std::string(1 << 20, 'a'), "test"), Error);
  EXPECT_THROW(Regex(std::string(5000, '('), "test"), Error);
  EXPECT_THROW(Regex(std::string(5000, '['), "test"), Error);
  EXPECT_THROW(Regex("\xFF", "test"), Error);
}

TEST(Regex, EndsWhereBacktrackingExplodes) {
  try {
    matches("(a|aa)+$", std::string(60, 'a') + "c");
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("match limit"), std::string::npos) << error.what();
  }
}

TEST(Regex, MatchesLongText) {
  const std::string text(1'000'000, 'a');
  EXPECT_EQ(matches("(?:a|b)+", text).size(), 1u);
  EXPECT_EQ(matches(R"([^\r\n\p{L}\p{N}]?\p{L}+)", text).size(), 1u);
  const std::string spaces(1'000'000, ' ');
  EXPECT_EQ(matches(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", spaces + "x").size(), 2u);
}

}  // namespace
}  // namespace nibble
