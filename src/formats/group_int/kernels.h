// The kernels of group_int; format.cc lists them in order.
#pragma once

#include "formats/format.h"

namespace nibble {

extern const LinearKernel kGroupIntAmx;
extern const LinearKernel kGroupIntAvx512Vbmi;
extern const LinearKernel kGroupIntAvx512;
extern const LinearKernel kGroupIntAvx2;
extern const LinearKernel kGroupIntReference;

}  // namespace nibble
