// Text to token ids and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace nibble {

struct EncodeOptions {
  // Add what the tokenizer's post-processor adds (BOS, EOS), as transformers' add_special_tokens=True.
  bool add_special = true;
  // Recognise added tokens such as "<|im_start|>" written out in the text, as transformers does.
  bool parse_special = true;
};

// One stream of ids being decoded. All its pieces together are the text that decode() gives for the same ids.
class DecodeStream {
 public:
  virtual ~DecodeStream() = default;
  // The text that became final with this id, possibly empty, whole UTF-8 characters. Ids outside the
  // vocabulary throw Error.
  virtual std::string push(int32_t id) = 0;
  // What is left at the end (incomplete bytes become the replacement character).
  virtual std::string finish() = 0;
};

// Safe to use from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // A tokenizer.json of the `tokenizers` library (with tokenizer_config.json beside it when it exists), or a
  // GGUF file's metadata. Throws Error naming the file and the part that is broken or of an unsupported kind.
  static std::unique_ptr<Tokenizer> from_folder(const std::filesystem::path& folder);
  static std::unique_ptr<Tokenizer> from_gguf(const Json& metadata, const std::string& source);
  // The path of a model as a user gives it: a folder or a GGUF file. Needs no known architecture and no
  // weights.
  static std::unique_ptr<Tokenizer> open(const std::filesystem::path& model);

  // Accepts any bytes; invalid UTF-8 is treated as the replacement character.
  virtual std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const = 0;
  // Ids outside the vocabulary throw Error. With skip_special, special tokens (BOS, "<|im_end|>") produce no
  // text.
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special = false) const = 0;
  // The same, id by id. The tokenizer must outlive the stream. See StreamDecoder.
  virtual std::unique_ptr<DecodeStream> decode_stream(bool skip_special = false) const = 0;

  virtual int64_t vocabulary_size() const = 0;           // one more than the largest id
  virtual std::string token_text(int32_t id) const = 0;  // as stored in the vocabulary; empty for a gap
  virtual bool is_special(int32_t id) const = 0;
  virtual int32_t token_id(std::string_view token) const = 0;  // -1 when there is none

  virtual int32_t bos_id() const = 0;  // -1 when there is none
  virtual int32_t eos_id() const = 0;  // -1 when there is none
  // The chat template (Jinja) of tokenizer_config.json or GGUF, or empty.
  virtual std::string chat_template() const = 0;
};

// Decodes a stream of ids, holding back bytes until they form whole UTF-8 characters.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : stream_(tokenizer.decode_stream(skip_special)) {}
  // Primes the decoder with the prompt's ids, whose text is not returned (spaces at the seam come out right).
  void prime(std::span<const int32_t> ids) {
    for (const int32_t id : ids) stream_->push(id);
  }
  // The text that became final with this id, possibly empty.
  std::string push(int32_t id) { return stream_->push(id); }
  // What is left at the end (incomplete bytes become the replacement character).
  std::string finish() { return stream_->finish(); }

 private:
  std::unique_ptr<DecodeStream> stream_;
};

}  // namespace nibble
