#include "runtime/token_ids.h"

#include <charconv>
#include <string>
#include <string_view>

#include "base/error.h"
#include "io/safetensors.h"

namespace nibble {

void check_token_ids(const std::vector<int32_t>& ids, int64_t vocabulary, const std::string& what) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocabulary) {
      fail("{}: token id {} at position {} is outside the model's vocabulary of {}", what, ids[i], i,
           vocabulary);
    }
  }
}

TokenIds read_token_ids_file(const std::filesystem::path& path, int64_t vocabulary) {
  const SafetensorsFile file = open_safetensors(path);
  const auto found = file.tensors.find("input_ids");
  if (found == file.tensors.end()) fail("{}: has no tensor 'input_ids'", path.string());
  const Tensor& tensor = found->second;
  if (tensor.rank() < 1 || tensor.rank() > 2 || tensor.elements() == 0) {
    fail("{}: 'input_ids' has the shape {}, expected [tokens] or [sequences, tokens], not empty",
         path.string(), to_string(tensor.shape()));
  }
  TokenIds result;
  result.is_matrix = tensor.rank() == 2;
  result.sequences = result.is_matrix ? tensor.dim(0) : 1;
  result.length = result.is_matrix ? tensor.dim(1) : tensor.dim(0);
  result.ids.reserve(static_cast<size_t>(tensor.elements()));
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    int64_t id = 0;
    if (tensor.dtype() == DType::kI64) {
      id = tensor.data<int64_t>()[i];
    } else if (tensor.dtype() == DType::kI32) {
      id = tensor.data<int32_t>()[i];
    } else {
      fail("{}: 'input_ids' is of type {}, expected I64 or I32", path.string(), dtype_name(tensor.dtype()));
    }
    if (id < 0 || id >= vocabulary) {
      fail("{}: 'input_ids' has {} at position {}, outside the model's vocabulary of {}", path.string(), id,
           i, vocabulary);
    }
    result.ids.push_back(static_cast<int32_t>(id));
  }
  return result;
}

std::vector<int32_t> parse_token_ids(std::string_view text, const std::string& source) {
  const auto separates = [](char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == ',' || c == '[' || c == ']';
  };
  std::vector<int32_t> ids;
  for (size_t at = 0; at < text.size();) {
    if (separates(text[at])) {
      ++at;
      continue;
    }
    size_t end = at;
    while (end < text.size() && !separates(text[end])) ++end;
    const std::string_view word = text.substr(at, end - at);
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || stop != word.data() + word.size() || id < 0) {
      fail("{}: '{}' is no token id, expected decimal numbers from 0 to 2147483647", source,
           word.substr(0, 40));
    }
    ids.push_back(id);
    at = end;
  }
  return ids;
}

}  // namespace nibble
