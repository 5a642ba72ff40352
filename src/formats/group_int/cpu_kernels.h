// group_int's kernels per instruction set, from cpu_kernels.isa.cc.
#pragma once

#include "formats/group_int/layout.h"
#include "formats/group_int/row_kernels.h"

namespace nibble {

using GroupIntKernels = RowKernels<GroupIntLayout>;

namespace avx2 {
extern const GroupIntKernels kGroupIntKernels;
extern const IntegerKernels<GroupIntLayout> kGroupIntIntegerKernels;
}  // namespace avx2
namespace avx512vnni {
extern const GroupIntKernels kGroupIntKernels;
}
namespace avx512vbmi {
extern const IntegerKernels<GroupIntLayout> kGroupIntIntegerKernels;
}

}  // namespace nibble
