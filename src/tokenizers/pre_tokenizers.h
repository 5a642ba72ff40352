// How text is cut into words before the model: the pre-tokenizers of tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/json.h"
#include "tokenizers/pieces.h"
#include "tokenizers/regex.h"

namespace nibble {

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

using PreTokenizers = std::vector<std::unique_ptr<PreTokenizer>>;

// GPT-2's pattern, which "ByteLevel" with use_regex cuts by.
extern const char* const kGpt2Pattern;

// "Split" by a regular expression, matches isolated.
std::unique_ptr<PreTokenizer> make_split_pre_tokenizer(Regex regex);
// "ByteLevel" with use_regex false: bytes to GPT-2's alphabet.
std::unique_ptr<PreTokenizer> make_byte_level_pre_tokenizer(bool add_prefix_space);

// The "pre_tokenizer" of tokenizer.json (null: none), sequences flattened. Throws Error "<source>:
// pre_tokenizer ...".
PreTokenizers parse_pre_tokenizers(const Json& description, const std::string& source);

}  // namespace nibble
