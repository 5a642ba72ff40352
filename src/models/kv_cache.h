// Keys and values of one sequence. Attention reads them tile by tile through this interface, so that a paged
// cache can take the place of the contiguous one without a change to the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "kernels/float_kernels.h"

namespace nibble {

// F32 keeps logits within float rounding of the definition: for evaluation and calibration. F16 halves memory
// and traffic and costs about 1e-3 of the logits' standard deviation: for generating. Q8 and Q4 take 8.5 and
// 5 bits a value (kernels/cache_row.h).
struct CacheTypes {
  CacheTypes(CacheType both = CacheType::kF32) : keys(both), values(both) {}
  CacheTypes(CacheType of_keys, CacheType of_values) : keys(of_keys), values(of_values) {}
  CacheType keys, values;
};

std::string_view cache_type_name(CacheType type) noexcept;  // "f32", "f16", "q8", "q4"
// Also takes llama.cpp's names of the same widths, "q8_0", "q4_0" and "q4_1". UsageError naming `option`.
CacheType cache_type_from_name(std::string_view name, std::string_view option);

class SequenceCache {
 public:
  virtual ~SequenceCache() = default;
  virtual int64_t capacity() const = 0;            // positions
  virtual int64_t length() const = 0;              // positions filled in every layer
  virtual void set_length(int64_t positions) = 0;  // truncates, or publishes what all layers have appended

  // Writes positions [first, first + count) of `layer`, rounded to the cache's types: rows of keys and
  // values, kv_heads * head_dim floats each, row stride `stride`. Threads may write disjoint positions at the
  // same time.
  virtual void write(int64_t layer, int64_t first, int64_t count, const float* keys, const float* values,
                     int64_t stride) = 0;
  // For each i in [0, count): where positions [i * kKeyTile, (i + 1) * kKeyTile) of one head are, kKeyTile
  // rows of the type each. Only what was written may be read.
  virtual void tiles(int64_t layer, int64_t kv_head, int64_t count, const void** keys,
                     const void** values) const = 0;
  virtual CacheTypes types() const = 0;
  virtual size_t bytes() const = 0;  // when full
};

// Throws Error when the memory cannot be had.
std::unique_ptr<SequenceCache> make_contiguous_cache(int64_t layers, int64_t kv_heads, int64_t head_dim,
                                                     int64_t capacity, CacheTypes types);

}  // namespace nibble
