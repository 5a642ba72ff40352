// The safetensors container: u64 little-endian header length, JSON header, then the tensors' bytes.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "io/mapped_file.h"

namespace nibble {

struct SafetensorsFile {
  std::filesystem::path path;
  std::map<std::string, Tensor> tensors;  // views into the mapped file
  std::map<std::string, std::string> metadata;
};

// Throws Error for anything that is not a well-formed file: header beyond the file or 100 MB, holes, overlaps, duplicate
// names, unknown types, byte counts that do not fit shapes, bytes after the last tensor.
SafetensorsFile open_safetensors(const std::filesystem::path& path);

// Writes tensors as they become ready, in declaration order, with each tensor's bytes aligned to 64 in the file.
class SafetensorsWriter {
 public:
  struct Declaration {
    std::string name;
    DType dtype;
    Shape shape;
  };
  // Creates `path` (which must not exist) and writes the header. Throws Error when that fails.
  SafetensorsWriter(std::filesystem::path path, std::vector<Declaration> declarations,
                    std::map<std::string, std::string> metadata = {});
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
