// Byte-exact builders of model files, good and broken, for the tests and fuzz targets of io.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::samples {

template <typename T>
std::string raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

inline std::string floats(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) bytes += raw(value);
  return bytes;
}

// Bytes in a heap block of exactly their size, so that AddressSanitizer sees every read beyond them.
class ExactBytes {
 public:
  explicit ExactBytes(std::string_view text) : memory_(new std::byte[text.size()]), size_(text.size()) {
    if (!text.empty()) std::memcpy(memory_.get(), text.data(), text.size());
  }
  std::span<const std::byte> span() const { return {memory_.get(), size_}; }
  std::shared_ptr<const void> owner() const { return memory_; }

 private:
  std::shared_ptr<std::byte[]> memory_;
  size_t size_;
};

// A safetensors file from its header's text and its data section.
inline std::string safetensors(std::string_view header, std::string_view data = "") {
  return raw(static_cast<uint64_t>(header.size())).append(header).append(data);
}

// Two tensors, one of them empty, with metadata.
inline std::string good_safetensors() {
  return safetensors(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BF16","shape":[0,4],"data_offsets":[24,24]},)"
      R"("c":{"dtype":"F16","shape":[],"data_offsets":[24,26]}})",
      floats({1, 2, 3, 4, 5, 6}) + std::string("\x00\x3c", 2));
}

// GGUF, written piece by piece so that a test can lie about any of them.
class Gguf {
 public:
  enum Type : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dimensions;  // innermost first
    uint32_t type = 0;
    std::string bytes;
    int64_t offset = -1;  // -1: after the tensor before it
  };

  uint32_t version = 3;
  uint64_t alignment = 32;    // of the offsets; not written as metadata
  int64_t tensor_count = -1;  // -1: as many as there are
  int64_t key_count = -1;     // -1: as many as there are
  std::vector<Tensor> tensors;

  static std::string string(std::string_view text) {
    return raw(static_cast<uint64_t>(text.size())).append(text);
  }

  Gguf& key(std::string_view name, uint32_t type, std::string_view value) {
    keys_.append(string(name)).append(raw(type)).append(value);
    ++written_keys_;
    return *this;
  }
  Gguf& text(std::string_view name, std::string_view value) { return key(name, kString, string(value)); }
  Gguf& u32(std::string_view name, uint32_t value) { return key(name, kU32, raw(value)); }
  Gguf& f32(std::string_view name, float value) { return key(name, kF32, raw(value)); }
  Gguf& texts(std::string_view name, const std::vector<std::string>& values) {
    std::string bytes = raw(static_cast<uint32_t>(kString)) + raw(static_cast<uint64_t>(values.size()));
    for (const std::string& value : values) bytes += string(value);
    return key(name, kArray, bytes);
  }
  Gguf& add(Tensor tensor) {
    tensors.push_back(std::move(tensor));
    return *this;
  }
  Gguf& add_f32(std::string_view name, std::vector<uint64_t> dimensions, const std::vector<float>& values) {
    return add({std::string(name), std::move(dimensions), 0, floats(values)});
  }

  std::string bytes() const {
    std::string file = "GGUF" + raw(version);
    file +=
        raw(tensor_count < 0 ? static_cast<uint64_t>(tensors.size()) : static_cast<uint64_t>(tensor_count));
    file += raw(key_count < 0 ? written_keys_ : static_cast<uint64_t>(key_count));
    file += keys_;
    std::string data;
    for (const Tensor& tensor : tensors) {
      data.append((alignment - data.size() % alignment) % alignment, '\0');
      const uint64_t offset = tensor.offset < 0 ? data.size() : static_cast<uint64_t>(tensor.offset);
      data += tensor.bytes;
      file += string(tensor.name) + raw(static_cast<uint32_t>(tensor.dimensions.size()));
      for (const uint64_t dimension : tensor.dimensions) file += raw(dimension);
      file += raw(tensor.type) + raw(offset);
    }
    if (!tensors.empty()) file.append((alignment - file.size() % alignment) % alignment, '\0');
    return file + data;
  }

 private:
  std::string keys_;
  uint64_t written_keys_ = 0;
};

// The metadata of a small llama: 2 query heads and 1 key head of 4, hidden 8.
inline Gguf llama_gguf() {
  Gguf file;
  file.text("general.architecture", "llama").text("general.type", "model");
  file.u32("llama.block_count", 1).u32("llama.context_length", 64).u32("llama.embedding_length", 8);
  file.u32("llama.feed_forward_length", 12).u32("llama.attention.head_count", 2);
  file.u32("llama.attention.head_count_kv", 1).u32("llama.rope.dimension_count", 4);
  file.f32("llama.rope.freq_base", 500000.0f).f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.texts("tokenizer.ggml.tokens", {"<s>", "</s>", "a", "\xff\xfe"});
  file.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 1);
  file.key("tokenizer.ggml.add_bos_token", Gguf::kBool, std::string(1, '\1'));
  return file;
}

// One row of 8 * n floats that all equal `value`.
inline std::vector<float> rows_of(const std::vector<float>& value_of_row, size_t width) {
  std::vector<float> values;
  for (const float value : value_of_row) values.insert(values.end(), width, value);
  return values;
}

// llama_gguf with a few tensors. Row r of q and k holds the value r everywhere, in the file's order.
inline Gguf llama_gguf_with_tensors() {
  Gguf file = llama_gguf();
  file.add_f32("token_embd.weight", {8, 4}, rows_of({0, 1, 2, 3}, 8));
  file.add_f32("blk.0.attn_q.weight", {8, 8}, rows_of({0, 1, 2, 3, 4, 5, 6, 7}, 8));
  file.add_f32("blk.0.attn_k.weight", {8, 4}, rows_of({0, 1, 2, 3}, 8));
  file.add_f32("blk.0.attn_q.bias", {8}, {0, 1, 2, 3, 4, 5, 6, 7});
  file.add_f32("blk.0.attn_v.weight", {8, 4}, rows_of({0, 1, 2, 3}, 8));
  file.add_f32("output_norm.weight", {8}, {1, 1, 1, 1, 1, 1, 1, 1});
  file.add({"blk.0.ffn_down.weight", {32, 2}, 8, std::string(68, '\1')});
  return file;
}

// A folder of its own that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    static std::atomic<int> counter = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("nibble-io-test-" + std::to_string(::getpid()) + "-" + std::to_string(counter++));
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path write(const std::string& name, std::string_view bytes) const {
    const std::filesystem::path file = path_ / name;
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_all(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

}  // namespace nibble::samples
