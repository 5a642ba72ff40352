#include "models/kv_cache.h"

#include <sys/mman.h>

#include <cstring>

#include "base/error.h"
#include "kernels/float_kernels.h"

namespace nibble {
namespace {

// [layers, keys and values, kv_heads, capacity, head_dim] in one anonymous mapping: pages cost memory once
// they are written, so a large capacity is cheap until it is used.
class ContiguousCache final : public SequenceCache {
 public:
  ContiguousCache(int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t capacity, CacheType type)
      : layers_(layers),
        kv_heads_(kv_heads),
        head_dim_(head_dim),
        capacity_(capacity),
        element_(type == CacheType::kF32 ? 4 : 2),
        kernels_(float_kernels()) {
    NIBBLE_CHECK(layers > 0 && kv_heads > 0 && head_dim > 0);
    if (capacity < 1) fail_usage("a cache for {} positions was asked for, expected at least 1", capacity);
    stride_ = (capacity + kKeyTile - 1) / kKeyTile * kKeyTile;
    int64_t bytes = 0;
    if (__builtin_mul_overflow(stride_, layers * 2 * kv_heads * head_dim * element_, &bytes)) {
      fail("a key-value cache for {} positions does not fit into memory", capacity);
    }
    bytes_ = static_cast<size_t>(bytes);
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      fail("out of memory: a key-value cache for {} positions needs {}", capacity,
           format_bytes(static_cast<double>(bytes_)));
    }
    data_ = static_cast<char*>(memory);
  }
  ~ContiguousCache() override { munmap(data_, bytes_); }
  ContiguousCache(const ContiguousCache&) = delete;
  ContiguousCache& operator=(const ContiguousCache&) = delete;

  int64_t capacity() const override { return capacity_; }
  int64_t length() const override { return length_; }
  void set_length(int64_t positions) override {
    NIBBLE_CHECK(positions >= 0 && positions <= capacity_);
    length_ = positions;
  }

  void write(int64_t layer, int64_t first, int64_t count, const float* keys, const float* values,
             int64_t stride) override {
    NIBBLE_CHECK(layer >= 0 && layer < layers_ && first >= 0 && count >= 0 && first + count <= capacity_);
    for (int64_t head = 0; head < kv_heads_; ++head) {
      for (int64_t t = 0; t < count; ++t) {
        const int64_t offset = t * stride + head * head_dim_;
        write_row(keys + offset, at(layer, 0, head, first + t));
        write_row(values + offset, at(layer, 1, head, first + t));
      }
    }
  }

  void tiles(int64_t layer, int64_t kv_head, int64_t count, const void** keys,
             const void** values) const override {
    NIBBLE_CHECK(layer >= 0 && layer < layers_ && kv_head >= 0 && kv_head < kv_heads_);
    NIBBLE_CHECK(count >= 0 && count * kKeyTile <= stride_);
    for (int64_t i = 0; i < count; ++i) {
      keys[i] = at(layer, 0, kv_head, i * kKeyTile);
      values[i] = at(layer, 1, kv_head, i * kKeyTile);
    }
  }

  WeightType type() const override { return element_ == 4 ? WeightType::kF32 : WeightType::kF16; }
  size_t bytes() const override { return bytes_; }

 private:
  char* at(int64_t layer, int64_t which, int64_t head, int64_t position) const {
    return data_ + (((layer * 2 + which) * kv_heads_ + head) * stride_ + position) * head_dim_ * element_;
  }
  void write_row(const float* from, char* to) const {
    if (element_ == 4) {
      std::memcpy(to, from, static_cast<size_t>(head_dim_) * sizeof(float));
    } else {
      kernels_.f32_to_f16(from, head_dim_, reinterpret_cast<uint16_t*>(to));
    }
  }

  int64_t layers_, kv_heads_, head_dim_, capacity_, element_, stride_ = 0, length_ = 0;
  size_t bytes_ = 0;
  char* data_ = nullptr;
  const FloatKernels& kernels_;
};

}  // namespace

std::unique_ptr<SequenceCache> make_contiguous_cache(int64_t layers, int64_t kv_heads, int64_t head_dim,
                                                     int64_t capacity, CacheType type) {
  return std::make_unique<ContiguousCache>(layers, kv_heads, head_dim, capacity, type);
}

}  // namespace nibble
