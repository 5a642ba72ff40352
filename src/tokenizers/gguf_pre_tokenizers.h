// How the tokenizers that GGUF files name in "tokenizer.ggml.pre" cut text into words. A GGUF file carries
// the vocabulary and the merges of a byte-level BPE, but of the rest only this name.
#pragma once

#include <string>

#include "tokenizers/normalizers.h"
#include "tokenizers/pre_tokenizers.h"

namespace nibble {

struct GgufPreTokenizer {
  Normalizers normalizers;
  PreTokenizers pre_tokenizers;
  bool ignore_merges = false;
  bool add_bos = false;  // where the file does not say
};

// Throws Error "<source>: ..." for a name we do not know.
GgufPreTokenizer make_gguf_pre_tokenizer(const std::string& name, const std::string& source);

}  // namespace nibble
