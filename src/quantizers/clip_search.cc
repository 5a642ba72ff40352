#include "quantizers/clip_search.h"

#include "backend/cpu/cpu_path.h"

namespace nibble {

namespace scalar {
int find_clip_step(const ClipStretch& stretch);
}
namespace avx2 {
int find_clip_step(const ClipStretch& stretch);
}
namespace avx512vnni {
int find_clip_step(const ClipStretch& stretch);
}

int find_clip_step(const ClipStretch& stretch) {
  static const auto search = cpu_path_enabled(CpuPath::kAvx512Vnni) ? &avx512vnni::find_clip_step
                             : cpu_path_enabled(CpuPath::kAvx2)     ? &avx2::find_clip_step
                                                                    : &scalar::find_clip_step;
  return search(stretch);
}

}  // namespace nibble
