// From tokens back to text: the decoders of tokenizer.json, each working on a stream, so that decoding token
// by token gives exactly the text of decoding all at once.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace nibble {

class DecodeStage;

// One stream being decoded. Text comes out as soon as no later token can change it.
class DecodeChain {
 public:
  explicit DecodeChain(std::vector<std::unique_ptr<DecodeStage>> stages);
  ~DecodeChain();
  // `literal` tokens stand for themselves also where tokens are spelled in GPT-2's alphabet.
  void push(std::string_view token, bool literal);
  void finish();
  // The text that became final since the last call: whole characters.
  std::string take();

 private:
  friend class DecodeStage;
  void feed(size_t stage, std::string_view token, bool literal);
  std::vector<std::unique_ptr<DecodeStage>> stages_;
  std::string out_;
};

// A decoder at work. Behind a stage that joins all tokens ("Fuse", "ByteLevel"), what arrives are parts of
// one token.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  virtual void push(std::string_view token, bool literal) = 0;
  virtual void finish() {}

 protected:
  void emit(std::string_view token, bool literal = false) { chain_->feed(index_ + 1, token, literal); }

 private:
  friend class DecodeChain;
  DecodeChain* chain_ = nullptr;
  size_t index_ = 0;
};

// A decoder as described: makes stages.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual std::unique_ptr<DecodeStage> start() const = 0;
};

using Decoders = std::vector<std::unique_ptr<Decoder>>;

// "ByteLevel".
std::unique_ptr<Decoder> make_byte_level_decoder();
// What SentencePiece-style vocabularies need: "▁" to space, byte tokens to bytes, and with `strip_space` one
// space off the start of the text.
Decoders make_sentencepiece_decoders(bool strip_space);
// The "decoder" of tokenizer.json (null: tokens joined by spaces), sequences flattened. Throws Error
// "<source>: decoder ...".
Decoders parse_decoders(const Json& description, const std::string& source);

}  // namespace nibble
