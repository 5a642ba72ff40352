// Special tokens around the encoded text: the post-processors of tokenizer.json, for single sequences.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/json.h"
#include "tokenizers/vocabulary.h"

namespace nibble {

struct PostProcessor {
  std::vector<int32_t> prefix, suffix;
};

// The "post_processor" of tokenizer.json (null: adds nothing). Throws Error "<source>: post_processor ...".
PostProcessor parse_post_processor(const Json& description, const Vocabulary& vocabulary,
                                   const std::string& source);

}  // namespace nibble
