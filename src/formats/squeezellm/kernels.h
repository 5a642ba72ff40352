// The kernels of squeezellm; format.cc lists them in order.
#pragma once

#include "formats/format.h"

namespace nibble {

extern const LinearKernel kSqueezellmAvx512Vbmi;
extern const LinearKernel kSqueezellmAvx512;
extern const LinearKernel kSqueezellmAvx2;
extern const LinearKernel kSqueezellmReference;

}  // namespace nibble
