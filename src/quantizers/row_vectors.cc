#include "quantizers/row_vectors.h"

#include "backend/cpu/cpu_path.h"

namespace nibble {

namespace scalar {
void add_scaled(float a, const float* x, int64_t count, float* y);
}
namespace avx2 {
void add_scaled(float a, const float* x, int64_t count, float* y);
}
namespace avx512vnni {
void add_scaled(float a, const float* x, int64_t count, float* y);
}

void add_scaled(float a, const float* x, int64_t count, float* y) {
  static const auto chosen = cpu_path_enabled(CpuPath::kAvx512Vnni) ? &avx512vnni::add_scaled
                             : cpu_path_enabled(CpuPath::kAvx2)     ? &avx2::add_scaled
                                                                    : &scalar::add_scaled;
  chosen(a, x, count, y);
}

}  // namespace nibble
