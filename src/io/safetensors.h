// The safetensors container: u64 little-endian header length, JSON header, then the tensors' bytes.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "io/mapped_file.h"

namespace nibble {

struct SafetensorsFile {
  std::filesystem::path path;
  // Views into the mapped file; a tensor that a foreign writer left unaligned for its type is an owned copy.
  std::map<std::string, Tensor> tensors;
  // Tensors of a type that Tensor cannot hold ("F8_E4M3"): name -> type. Their bytes are checked to lie
  // inside the file.
  std::map<std::string, std::string> unsupported;
  std::map<std::string, std::string> metadata;
};

// Throws Error for anything that is not a well-formed file: header beyond the file or 100 MB, holes,
// overlaps, duplicate names, byte counts that do not fit shapes, bytes after the last tensor.
SafetensorsFile open_safetensors(const std::filesystem::path& path);

// The same for a file already in memory: `bytes` are the whole file, `owner` keeps them alive, `path` names
// it in messages.
SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                  const std::filesystem::path& path);

// Writes tensors as they become ready, in declaration order. Where each lies in the file is the writer's
// choice: the data section starts at a multiple of 64, tensors whose byte count is a multiple of 64 come
// first (each of them 64-byte aligned), the others follow by falling element size (each aligned for its
// type), all without holes, as the format wants.
class SafetensorsWriter {
 public:
  struct Declaration {
    std::string name;
    DType dtype;
    Shape shape;
  };
  // Creates `path` (which must not exist), reserves its space on the disk and writes the header. Throws Error
  // when that fails, for duplicate or empty names, and for text that is not UTF-8.
  SafetensorsWriter(std::filesystem::path path, std::vector<Declaration> declarations,
                    std::map<std::string, std::string> metadata = {});
  // Removes the file unless close() succeeded.
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // The next declared tensor; type and shape must be as declared.
  void write(const Tensor& tensor);
  // Flushes, fsyncs and closes. Throws Error when tensors are missing or the disk is full.
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// All at once.
void write_safetensors(const std::filesystem::path& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace nibble
