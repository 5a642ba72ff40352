#include "tokenizers/tokenizer.h"

#include "base/error.h"
#include "io/gguf.h"
#include "io/mapped_file.h"

namespace nibble {

std::unique_ptr<Tokenizer> Tokenizer::open(const std::filesystem::path& model) {
  std::error_code error;
  if (std::filesystem::is_directory(model, error)) return from_folder(model);
  const auto file = MappedFile::open(model);
  if (!is_gguf(file->bytes())) {
    fail("{}: neither a model folder nor a GGUF file", model.string());
  }
  return from_gguf(parse_gguf(file->bytes(), file, model).metadata, model.string());
}

}  // namespace nibble
