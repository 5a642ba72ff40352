#include "kernels/float_kernels.h"

namespace nibble {

namespace scalar {
extern const FloatKernels kFloatKernels;
}
namespace avx2 {
extern const FloatKernels kFloatKernels;
}
namespace avx512vnni {
extern const FloatKernels kFloatKernels;
}

const FloatKernels* float_kernels_for(CpuPath path) {
  if (!cpu_path_enabled(path)) return nullptr;
  switch (path) {
    case CpuPath::kScalar:
      return &scalar::kFloatKernels;
    case CpuPath::kAvx2:
      return &avx2::kFloatKernels;
    case CpuPath::kAvx512Vnni:
      return &avx512vnni::kFloatKernels;
    default:
      return nullptr;
  }
}

const FloatKernels& float_kernels() {
  static const FloatKernels& best = []() -> const FloatKernels& {
    for (const CpuPath path : {CpuPath::kAvx512Vnni, CpuPath::kAvx2}) {
      if (const FloatKernels* table = float_kernels_for(path)) return *table;
    }
    return scalar::kFloatKernels;
  }();
  return best;
}

}  // namespace nibble
