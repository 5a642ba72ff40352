// The one kind of tokenizer there is, whatever file described it: added tokens, normalizers, pre-tokenizers,
// a word model, special tokens around the result, and decoders for the way back.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tokenizers/added_tokens.h"
#include "tokenizers/decoders.h"
#include "tokenizers/normalizers.h"
#include "tokenizers/post_processor.h"
#include "tokenizers/pre_tokenizers.h"
#include "tokenizers/tokenizer.h"
#include "tokenizers/vocabulary.h"
#include "tokenizers/word_model.h"

namespace nibble {

struct TokenizerParts {
  std::string source;                      // the file, for messages
  std::unique_ptr<Vocabulary> vocabulary;  // on the heap since the model refers to it
  AddedTokens added;
  Normalizers normalizers;
  PreTokenizers pre_tokenizers;
  std::unique_ptr<WordModel> model;
  PostProcessor post_processor;
  Decoders decoders;
  std::vector<bool> special;  // by id
  std::vector<bool> literal;  // by id: tokens that stand for themselves whatever the decoder; may be empty
  int32_t bos_id = -1, eos_id = -1;
  std::string chat_template;
};

std::unique_ptr<Tokenizer> make_pipeline_tokenizer(TokenizerParts parts);

}  // namespace nibble
