// A model on disk, whatever its dialect, seen in one form: Hugging Face tensor names and a Hugging Face style
// config.
//
//   HF folder      config.json + (sharded) safetensors, as they are
//   nibble folder  the same, with "quantization_config": {"quant_method": "nibble"}
//   GGUF file      metadata turned into such a config, tensor names mapped, llama's q/k row permutation
//   undone on read
//
// Everything is memory-mapped; opening reads headers only. No length, offset or shape of a file is trusted:
// opening checks that every tensor lies inside its file, does not overlap another, and that its byte count
// fits its shape.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "io/json.h"

namespace nibble {

// One tensor of a checkpoint. `read` yields its floats for any storage type, GGUF's block types included.
struct CheckpointTensor {
  std::string name;          // Hugging Face name, "model.layers.0.self_attn.q_proj.weight"
  Shape shape;               // outermost first
  std::string storage_type;  // "BF16", "F32", "Q4_1", ...
  size_t stored_bytes = 0;
  std::filesystem::path file;
  // Set when the bytes are plain elements in row-major order: a view into the mapped file.
  std::optional<Tensor> plain;
  // Decodes rows [first, first + count) of the first axis (a vector is one row per element) to floats.
  std::function<void(int64_t first, int64_t count, float* out)> read_rows;

  Tensor read_f32() const;  // the whole tensor
};

enum class CheckpointKind { kHuggingFace, kNibble, kGguf };

class Checkpoint {
 public:
  // Throws Error for a path that is no model, for a broken or lying file, for missing shards.
  static Checkpoint open(const std::filesystem::path& path);

  CheckpointKind kind() const { return kind_; }
  const std::filesystem::path& path() const { return path_; }
  // Hugging Face style config ("model_type", "hidden_size", ...), for GGUF made from its metadata. One key is
  // ours: "nibble_rope_factors": true says that the tensor "rope_freqs.weight" holds a divisor for each
  // rotation frequency.
  const Json& config() const { return config_; }
  // generation_config.json or an empty object.
  const Json& generation_config() const { return generation_config_; }
  // GGUF only: the metadata as it stands in the file (arrays included), for the tokenizer and `inspect`.
  const Json& gguf_metadata() const { return gguf_metadata_; }

  const std::map<std::string, CheckpointTensor>& tensors() const { return tensors_; }
  // Tensors that are in the files but in a type that cannot be read: name -> type ("F8_E4M3", "Q4_K").
  const std::map<std::string, std::string>& unsupported() const { return unsupported_; }
  // Null when there is no such tensor; Error when there is one of an unsupported type.
  const CheckpointTensor* find(const std::string& name) const;
  // The tensor, or Error "<path>: tensor '<name>' is missing".
  const CheckpointTensor& require(const std::string& name) const;
  // The tensor with exactly this shape, or Error naming both.
  const CheckpointTensor& require(const std::string& name, const Shape& shape) const;

  // Model files (weights), for sizes and hashes.
  const std::vector<std::filesystem::path>& files() const { return files_; }
  uint64_t file_bytes() const;

 private:
  friend struct CheckpointBuilder;
  CheckpointKind kind_ = CheckpointKind::kHuggingFace;
  std::filesystem::path path_;
  Json config_, generation_config_, gguf_metadata_;
  std::map<std::string, CheckpointTensor> tensors_;
  std::map<std::string, std::string> unsupported_;
  std::vector<std::filesystem::path> files_;
};

}  // namespace nibble
