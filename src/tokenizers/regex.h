// Regular expressions as tokenizer.json means them: Oniguruma's Ruby syntax over Unicode, matched with PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace nibble {

class Regex {
 public:
  // Throws Error "<source>: ..." for a pattern that is malformed or uses what PCRE2 cannot do.
  Regex(std::string_view pattern, const std::string& source);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

 private:
  friend class RegexMatcher;
  struct State;
  std::unique_ptr<State> state_;
};

// The working memory of matching one expression; not to be shared between threads.
class RegexMatcher {
 public:
  explicit RegexMatcher(const Regex& regex);
  ~RegexMatcher();
  RegexMatcher(const RegexMatcher&) = delete;
  RegexMatcher& operator=(const RegexMatcher&) = delete;

  // Starts on a new subject: valid UTF-8 that outlives the search.
  void start(std::string_view subject);
  // The next match from left to right, as Oniguruma's scan yields them: matches do not overlap, and an empty
  // match right behind the previous match is skipped. False when there is none. Throws Error when matching
  // takes too long.
  bool next(size_t& begin, size_t& end);

 private:
  int match(size_t from);
  struct Scratch;
  const Regex& regex_;
  std::unique_ptr<Scratch> scratch_;
  std::string_view subject_;
  size_t from_ = 0;
  size_t previous_end_ = SIZE_MAX;
};

}  // namespace nibble
