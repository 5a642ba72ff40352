// The kernels of mixed_2_4_16; format.cc lists them in order.
#pragma once

#include "formats/format.h"

namespace nibble {

extern const LinearKernel kMixedAvx512;
extern const LinearKernel kMixedAvxVnni;
extern const LinearKernel kMixedAvx2;
// The same products without fetching and rebuilding ahead, to measure what that brings.
extern const LinearKernel kMixedAvx512Sync;
extern const LinearKernel kMixedAvx2Sync;
extern const LinearKernel kMixedReference;

}  // namespace nibble
