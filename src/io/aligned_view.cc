#include "io/aligned_view.h"

#include <cstring>

namespace nibble {

Tensor aligned_view(DType dtype, Shape shape, const std::byte* data, std::shared_ptr<const void> owner) {
  if (reinterpret_cast<uintptr_t>(data) % dtype_size(dtype) == 0) {
    return Tensor::view(dtype, std::move(shape), data, std::move(owner));
  }
  Tensor copy = Tensor::empty(dtype, std::move(shape));
  if (copy.bytes() > 0) std::memcpy(copy.mutable_raw(), data, copy.bytes());
  return copy;
}

}  // namespace nibble
