// Token ids from a safetensors file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct TokenIds {
  std::vector<int32_t> ids;  // [sequences, length], or [length] when the file has a vector
  int64_t sequences = 1;
  int64_t length = 0;
  bool is_matrix = false;
};

// The file's "input_ids", I32 or I64, of one or two axes. Throws Error naming the file, the place and the
// value for an id outside [0, vocabulary), and for an empty or otherwise shaped tensor.
TokenIds read_token_ids_file(const std::filesystem::path& path, int64_t vocabulary);

// Throws Error "<what>: token id ... at position ..." for an id outside [0, vocabulary).
void check_token_ids(const std::vector<int32_t>& ids, int64_t vocabulary, const std::string& what);

// Ids written as text: decimal numbers separated by white space, commas or brackets. Throws Error naming
// `source` and what stands there instead of a number.
std::vector<int32_t> parse_token_ids(std::string_view text, const std::string& source);

}  // namespace nibble
