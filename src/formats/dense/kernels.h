#pragma once

#include "formats/format.h"
#include "kernels/float_kernels.h"

namespace nibble {

extern const LinearKernel kDenseAvx512, kDenseAvx2, kDenseReference;

}  // namespace nibble
