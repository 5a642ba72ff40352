// From Oniguruma's Ruby syntax, which tokenizer.json uses, to PCRE2's.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

// A PCRE2 pattern (to be compiled with UTF, UCP and MULTILINE) that matches what `pattern` matches in
// Oniguruma:
//   - character classes may nest and intersect ("[^(\s|[.,!?])]", "[a-z&&[^aeiou]]");
//   - \s, \w, \d, \h, \b and POSIX brackets are Unicode properties, spelled out since PCRE2's sets differ;
//   - (?m) lets the dot match newlines; {,n} is {0,n}; {n,m}+ repeats and is not possessive;
//   - \uHHHH, \p{^Name}, long property names.
// Throws Error "<source>: ..." for what has no counterpart.
std::string translate_onig_pattern(std::string_view pattern, const std::string& source);

}  // namespace nibble
