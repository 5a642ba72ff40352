// Tensors on bytes whose place a file chose.
#pragma once

#include <cstddef>
#include <memory>

#include "base/tensor.h"

namespace nibble {

// A view of the bytes that `owner` keeps alive, or an owned copy where their address is no multiple of the
// element size: reading elements in place would then be undefined behaviour.
Tensor aligned_view(DType dtype, Shape shape, const std::byte* data, std::shared_ptr<const void> owner);

}  // namespace nibble
