// Helpers for weights that stay floating point; the layout is in README.md.
#pragma once

#include <string>

#include "formats/format.h"

namespace nibble {

extern const LinearFormat kDenseFormat;

// A dense linear of `weight` (F32, F16 or BF16 [n, k]; shared, not copied) and `bias` (F32 [n], or
// undefined). Throws Error naming the linear for other types and shapes.
PackedLinear make_dense_linear(const std::string& name, Tensor weight, Tensor bias = {});

// The same from floats, which are copied: for weights computed in memory.
PackedLinear make_dense_linear(const std::string& name, const float* weight, int64_t out_features,
                               int64_t in_features, const float* bias = nullptr);

// The same in 16 bits, rounded to nearest even.
PackedLinear make_dense_linear_16bit(const std::string& name, DType dtype, const float* weight,
                                     int64_t out_features, int64_t in_features, const float* bias = nullptr);

// `source`, a dense linear, in 16 bits: as it is when it has 16, else rounded to F16, or to BF16 where F16
// would overflow.
PackedLinear to_16_bit(const PackedLinear& source);

}  // namespace nibble
