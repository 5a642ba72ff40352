#include "base/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "base/half.h"

namespace nibble {

static constexpr size_t kHugePage = size_t{2} << 20;

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    if (extent < 0) fail("shape {} has a negative extent", to_string(shape));
    if (__builtin_mul_overflow(count, extent, &count))
      fail("shape {} has too many elements", to_string(shape));
  }
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

Tensor Tensor::empty(DType dtype, Shape shape) {
  Tensor made;
  made.dtype_ = dtype;
  made.elements_ = element_count(shape);
  made.shape_ = std::move(shape);
  size_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<size_t>(made.elements_), dtype_size(dtype), &bytes) ||
      bytes > SIZE_MAX - 64) {
    fail("a tensor of shape {} does not fit into memory", to_string(made.shape_));
  }
  // Whole cache lines, and one even for an empty tensor, so that the pointer is never null. Large tensors ask
  // for huge pages, which spares most page faults and address translation misses.
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const size_t size = (bytes / 64 + 1) * 64;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, size) != 0) memory = nullptr;
  if (memory == nullptr)
    fail("out of memory: a tensor of shape {} needs {}", to_string(made.shape_), format_bytes(bytes));
  if (alignment == kHugePage) madvise(memory, size, MADV_HUGEPAGE);  // a hint: failing costs only speed
  made.data_ = static_cast<std::byte*>(memory);
  made.owner_ = std::shared_ptr<const void>(memory, [](const void* p) { std::free(const_cast<void*>(p)); });
  return made;
}

Tensor Tensor::zeros(DType dtype, Shape shape) {
  Tensor made = empty(dtype, std::move(shape));
  std::memset(made.data_, 0, made.bytes());
  return made;
}

Tensor Tensor::view(DType dtype, Shape shape, const std::byte* data, std::shared_ptr<const void> owner) {
  Tensor made;
  made.dtype_ = dtype;
  made.elements_ = element_count(shape);
  made.shape_ = std::move(shape);
  made.data_ = const_cast<std::byte*>(data);  // views are read through const accessors only
  made.owner_ = std::move(owner);
  return made;
}

bool Tensor::holds(DType wanted) const noexcept {
  if (dtype_ == wanted) return true;
  if (wanted == DType::kU16) return dtype_ == DType::kF16 || dtype_ == DType::kBF16;
  if (wanted == DType::kU8) return dtype_ == DType::kI8 || dtype_ == DType::kBool;
  if (wanted == DType::kI8) return dtype_ == DType::kU8;
  return false;
}

void copy_to_float(const Tensor& tensor, int64_t first, int64_t count, float* out) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && first + count <= tensor.elements());
  const std::byte* source = tensor.raw() + static_cast<size_t>(first) * dtype_size(tensor.dtype());
  switch (tensor.dtype()) {
    case DType::kF32:
      std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kF16:
    case DType::kBF16: {
      const bool f16 = tensor.dtype() == DType::kF16;
      for (int64_t i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, source + i * 2, 2);
        out[i] = f16 ? f16_to_float(bits) : bf16_to_float(bits);
      }
      return;
    }
    case DType::kF64:
      for (int64_t i = 0; i < count; ++i) {
        double value;
        std::memcpy(&value, source + i * 8, 8);
        out[i] = static_cast<float>(value);
      }
      return;
    default:
      fail("a tensor of type {} cannot be read as floats", dtype_name(tensor.dtype()));
  }
}

Tensor to_f32(const Tensor& tensor) {
  if (tensor.dtype() == DType::kF32) return tensor;
  Tensor made = Tensor::empty(DType::kF32, tensor.shape());
  copy_to_float(tensor, 0, tensor.elements(), made.mutable_data<float>());
  return made;
}

}  // namespace nibble
