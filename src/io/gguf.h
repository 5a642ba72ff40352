// The GGUF container, versions 2 and 3: metadata, tensor descriptions, aligned tensor bytes. Little-endian.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "io/checkpoint.h"
#include "io/gguf_types.h"
#include "io/json.h"

namespace nibble {

struct GgufTensor {
  std::string name;  // as in the file, "blk.0.attn_q.weight"
  Shape shape;       // outermost first: the reverse of the file's order
  const GgufType* type = nullptr;
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

struct GgufFile {
  std::filesystem::path path;
  uint32_t version = 0;
  // Key -> value. Strings are the file's bytes, which need not be UTF-8: dump them only with an error
  // handler.
  Json metadata;
  std::vector<GgufTensor> tensors;  // in file order; their bytes lie inside the file and share none
  std::shared_ptr<const void> owner;
  std::span<const std::byte> header;  // the file's bytes up to the end of the metadata
};

// Writes a GGUF file with `file`'s metadata and no tensors, as llama.cpp's vocabulary-only files are: what a
// quantized folder keeps of its source's tokenizer. Throws Error when `path` cannot be written.
void write_gguf_metadata(const GgufFile& file, const std::filesystem::path& path);

// Throws Error for anything but a well-formed file. `bytes` are the whole file, `owner` keeps them alive,
// `path` names it in messages.
GgufFile parse_gguf(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                    const std::filesystem::path& path);

// True when the bytes start like a GGUF file.
bool is_gguf(std::span<const std::byte> bytes);

// The Hugging Face view of a parsed file: config from metadata, tensors renamed, the row order of llama's q
// and k undone.
Checkpoint gguf_checkpoint(const GgufFile& file);

}  // namespace nibble
