// A tensor is an element type, a shape and bytes, row-major and contiguous. The bytes are shared: they belong
// to an owned, 64-byte aligned allocation or to a memory-mapped file that lives as long as any tensor on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"

namespace nibble {

using Shape = std::vector<int64_t>;

// Product of the extents; throws Error when one is negative or the product overflows int64.
int64_t element_count(const Shape& shape);
std::string to_string(const Shape& shape);  // "[576, 1536]"

class Tensor {
 public:
  Tensor() = default;

  // Owned and uninitialised / zeroed.
  static Tensor empty(DType dtype, Shape shape);
  static Tensor zeros(DType dtype, Shape shape);
  // A view of bytes that `owner` keeps alive.
  static Tensor view(DType dtype, Shape shape, const std::byte* data, std::shared_ptr<const void> owner);
  template <typename T>
  static Tensor copy_of(Shape shape, std::span<const T> values) {
    Tensor made = empty(DTypeOf<T>::value, std::move(shape));
    NIBBLE_CHECK(static_cast<int64_t>(values.size()) == made.elements());
    for (size_t i = 0; i < values.size(); ++i) made.mutable_data<T>()[i] = values[i];
    return made;
  }

  bool defined() const noexcept { return data_ != nullptr || elements_ > 0 || !shape_.empty(); }
  DType dtype() const noexcept { return dtype_; }
  const Shape& shape() const noexcept { return shape_; }
  int64_t dim(size_t axis) const { return shape_.at(axis); }
  size_t rank() const noexcept { return shape_.size(); }
  int64_t elements() const noexcept { return elements_; }
  size_t bytes() const noexcept { return static_cast<size_t>(elements_) * dtype_size(dtype_); }
  const std::byte* raw() const noexcept { return data_; }
  std::byte* mutable_raw() noexcept { return data_; }

  // Elements as T; the type must match (uint16_t reads F16 and BF16 bits, int8_t and uint8_t read each
  // other).
  template <typename T>
  const T* data() const {
    NIBBLE_CHECK(holds(DTypeOf<T>::value));
    return reinterpret_cast<const T*>(data_);
  }
  template <typename T>
  T* mutable_data() {
    NIBBLE_CHECK(holds(DTypeOf<T>::value));
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  std::span<const T> values() const {
    return {data<T>(), static_cast<size_t>(elements_)};
  }

 private:
  bool holds(DType wanted) const noexcept;
  DType dtype_ = DType::kF32;
  Shape shape_;
  int64_t elements_ = 0;
  std::byte* data_ = nullptr;
  std::shared_ptr<const void> owner_;
};

// Converts F64/F32/F16/BF16 elements [first, first + count) to float. Throws Error for other types.
void copy_to_float(const Tensor& tensor, int64_t first, int64_t count, float* out);
// The whole tensor as F32 (a view when it is F32 already).
Tensor to_f32(const Tensor& tensor);

}  // namespace nibble
