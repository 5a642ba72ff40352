// The token sequences that calibration runs through a model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "models/model_spec.h"
#include "tokenizers/tokenizer.h"

namespace nibble {

struct CalibrationOptions {
  std::filesystem::path text_file;   // UTF-8 text, cut into sequences without special tokens
  std::filesystem::path ids_file;    // safetensors with "input_ids" [sequences, length]
  bool random_tokens = false;        // uniform over the vocabulary
  std::optional<int64_t> sequences;  // 128, or as many as the text has
  std::optional<int64_t> length;     // 2048, at most the model's context
  uint64_t seed = 0;
};

struct CalibrationData {
  int64_t sequences = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;  // [sequences, length]
  std::string description;   // "32 sequences of 512 tokens from calibration_ids.safetensors"
  std::string hash;          // of the ids, for provenance

  bool empty() const { return ids.empty(); }
};

// Throws Error naming the file and the counts when there is too little text or an id outside the vocabulary,
// UsageError when not exactly one source is given. The tokenizer is opened only for text.
CalibrationData load_calibration_data(const CalibrationOptions& options, const ModelSpec& spec,
                                      const std::filesystem::path& model_path);
bool names_a_source(const CalibrationOptions& options);

// The [sequences, length] ids of a safetensors file's "input_ids" (I32 or I64; a vector is one sequence),
// each checked against the vocabulary.
CalibrationData read_token_ids(const std::filesystem::path& path, int64_t vocabulary);

}  // namespace nibble
