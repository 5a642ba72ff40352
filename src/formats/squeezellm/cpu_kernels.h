// squeezellm's kernels per instruction set, from cpu_kernels.isa.cc.
#pragma once

#include "formats/group_int/row_kernels.h"
#include "formats/squeezellm/layout.h"

namespace nibble {

using SqueezellmKernels = RowKernels<SqueezellmLayout>;

namespace avx2 {
extern const SqueezellmKernels kSqueezellmKernels;
extern const IntegerKernels<SqueezellmLayout> kSqueezellmIntegerKernels;
}  // namespace avx2
namespace avx512vnni {
extern const SqueezellmKernels kSqueezellmKernels;
}
namespace avx512vbmi {
extern const IntegerKernels<SqueezellmLayout> kSqueezellmIntegerKernels;
}

}  // namespace nibble
