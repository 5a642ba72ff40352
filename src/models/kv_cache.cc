#include "models/kv_cache.h"

#include <sys/mman.h>

#include "base/error.h"
#include "io/printable.h"
#include "kernels/cache_row.h"

namespace nibble {
namespace {

struct TypeName {
  CacheType type;
  std::string_view name;
};
// The first of a type is its own name; the others are llama.cpp's for the same width.
constexpr TypeName kTypeNames[] = {
    {CacheType::kF32, "f32"}, {CacheType::kF16, "f16"}, {CacheType::kQ8, "q8"},   {CacheType::kQ8, "q8_0"},
    {CacheType::kQ4, "q4"},   {CacheType::kQ4, "q4_0"}, {CacheType::kQ4, "q4_1"},
};

// [layers, keys then values, kv_heads, capacity] rows in one anonymous mapping: pages cost memory once they
// are written, so a large capacity is cheap until it is used.
class ContiguousCache final : public SequenceCache {
 public:
  ContiguousCache(int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t capacity, CacheTypes types)
      : layers_(layers),
        kv_heads_(kv_heads),
        head_dim_(head_dim),
        capacity_(capacity),
        types_(types),
        key_bytes_(cache_row_bytes(types.keys, head_dim)),
        value_bytes_(cache_row_bytes(types.values, head_dim)),
        kernels_(float_kernels()) {
    NIBBLE_CHECK(layers > 0 && kv_heads > 0 && head_dim > 0);
    if (capacity < 1) fail_usage("a cache for {} positions was asked for, expected at least 1", capacity);
    stride_ = (capacity + kKeyTile - 1) / kKeyTile * kKeyTile;
    int64_t bytes = 0;
    if (__builtin_mul_overflow(stride_, layers * kv_heads * (key_bytes_ + value_bytes_), &bytes)) {
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
        kernels_.store_cache_row(types_.keys, keys + offset, head_dim_, key_at(layer, head, first + t));
        kernels_.store_cache_row(types_.values, values + offset, head_dim_, value_at(layer, head, first + t));
      }
    }
  }

  void tiles(int64_t layer, int64_t kv_head, int64_t count, const void** keys,
             const void** values) const override {
    NIBBLE_CHECK(layer >= 0 && layer < layers_ && kv_head >= 0 && kv_head < kv_heads_);
    NIBBLE_CHECK(count >= 0 && count * kKeyTile <= stride_);
    for (int64_t i = 0; i < count; ++i) {
      keys[i] = key_at(layer, kv_head, i * kKeyTile);
      values[i] = value_at(layer, kv_head, i * kKeyTile);
    }
  }

  CacheTypes types() const override { return types_; }
  size_t bytes() const override { return bytes_; }

 private:
  // A layer's keys of all heads come before its values.
  char* key_at(int64_t layer, int64_t head, int64_t position) const {
    return layer_at(layer) + (head * stride_ + position) * key_bytes_;
  }
  char* value_at(int64_t layer, int64_t head, int64_t position) const {
    return layer_at(layer) + kv_heads_ * stride_ * key_bytes_ + (head * stride_ + position) * value_bytes_;
  }
  char* layer_at(int64_t layer) const {
    return data_ + layer * kv_heads_ * stride_ * (key_bytes_ + value_bytes_);
  }

  int64_t layers_, kv_heads_, head_dim_, capacity_;
  CacheTypes types_;
  int64_t key_bytes_, value_bytes_;  // of a row
  int64_t stride_ = 0, length_ = 0;
  size_t bytes_ = 0;
  char* data_ = nullptr;
  const FloatKernels& kernels_;
};

}  // namespace

std::string_view cache_type_name(CacheType type) noexcept {
  for (const TypeName& each : kTypeNames) {
    if (each.type == type) return each.name;
  }
  return "";
}

CacheType cache_type_from_name(std::string_view name, std::string_view option) {
  std::string known;
  for (const TypeName& each : kTypeNames) {
    if (each.name == name) return each.type;
    known += (known.empty() ? "" : ", ") + std::string(each.name);
  }
  fail_usage("{} is '{}', expected one of {}", option, printable(std::string(name)), known);
}

std::unique_ptr<SequenceCache> make_contiguous_cache(int64_t layers, int64_t kv_heads, int64_t head_dim,
                                                     int64_t capacity, CacheTypes types) {
  return std::make_unique<ContiguousCache>(layers, kv_heads, head_dim, capacity, types);
}

}  // namespace nibble
