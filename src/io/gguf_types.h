// The storage types of GGUF tensors, one row each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/dtype.h"

namespace nibble {

// Decodes `count` blocks to count * weights_per_block floats.
using GgufDecode = void (*)(const std::byte* blocks, int64_t count, float* out);

// Rows of weights are stored as blocks along the innermost dimension; an element type is a block of one.
struct GgufType {
  uint32_t id;
  std::string_view name;
  uint32_t weights_per_block;
  uint32_t bytes_per_block;
  std::optional<DType> plain;  // set when the bytes are ordinary elements
  GgufDecode decode;           // of block types; null when we cannot read the type yet
};

constexpr uint32_t kMaxGgufBlockWeights = 256;

// Null for an id that GGUF does not define (or has withdrawn).
const GgufType* find_gguf_type(uint32_t id);

// Decodes elements [first, first + count) of the blocks at `data`, also from the middle of a block. The type
// has a decode.
void decode_gguf_range(const GgufType& type, const std::byte* data, int64_t first, int64_t count, float* out);

}  // namespace nibble
