// Keys and values of one sequence. Attention reads them page by page through this interface, so that a paged cache can
// take the place of the contiguous one without a change to the model.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace nibble {

// `count` consecutive positions of one layer and head: keys and values [count, head_dim] as F16 bits.
struct KvPage {
  const uint16_t* keys;
  const uint16_t* values;
  int64_t first_position;
  int64_t count;
};

class SequenceCache {
 public:
  virtual ~SequenceCache() = default;
  virtual int64_t capacity() const = 0;  // positions
  virtual int64_t length() const = 0;    // positions filled in every layer
  virtual void set_length(int64_t positions) = 0;  // truncates, or publishes what all layers have appended

  // Writes positions [first, first + count) of `layer`: rows of keys and values, kv_heads * head_dim floats each, row
  // stride `stride`.
  virtual void write(int64_t layer, int64_t first, int64_t count, const float* keys, const float* values,
                     int64_t stride) = 0;
  virtual int64_t page_count(int64_t layer) const = 0;
  virtual KvPage page(int64_t layer, int64_t kv_head, int64_t page) const = 0;
  virtual size_t bytes() const = 0;
};

// Throws Error when the memory cannot be had.
std::unique_ptr<SequenceCache> make_contiguous_cache(int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t capacity);

}  // namespace nibble
