#include "calibration/blas.h"

#include <dlfcn.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "backend/cpu/cpu_path.h"
#include "base/error.h"
#include "base/log.h"

namespace nibble {
namespace {

// The CBLAS enumerators, by their values: the header would make OpenBLAS a build dependency of this library.
constexpr int kRowMajor = 101, kNoTranspose = 111, kTranspose = 112, kLower = 122, kNonUnit = 131,
              kLeft = 141, kRight = 142;

template <typename T>
struct Routines {
  void (*gemm)(int, int, int, int, int, int, T, const T*, int, const T*, int, T, T*, int) = nullptr;
  void (*syrk)(int, int, int, int, int, T, const T*, int, T, T*, int) = nullptr;
  void (*trsm)(int, int, int, int, int, int, int, T, const T*, int, T*, int) = nullptr;
  // LAPACK: every argument by address, column-major, and the hidden length of the character argument.
  void (*potrf)(const char*, const int*, T*, const int*, int*, size_t) = nullptr;
};

struct Library {
  BlasInfo info;
  Routines<float> f32;
  Routines<double> f64;

  template <typename T>
  const Routines<T>& routines() const;
};

template <>
const Routines<float>& Library::routines<float>() const {
  return f32;
}
template <>
const Routines<double>& Library::routines<double>() const {
  return f64;
}

template <typename Function>
void resolve(void* handle, const std::string& library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, symbol));
  if (function == nullptr) {
    fail(
        "{} has no function '{}'; a build of OpenBLAS with CBLAS and LAPACK is needed (Debian: apt-get "
        "install libopenblas0)",
        library, symbol);
  }
}

// OpenBLAS looks its kernels up by the processor's model number; a release older than the processor knows
// only its SSE3 kernels for it (0.3.21 on an Emerald Rapids). Instruction sets tell more.
void choose_core() {
  if (machine_has(CpuPath::kAvx512Vnni)) {
    setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
  } else if (machine_has(CpuPath::kAvx2)) {
    setenv("OPENBLAS_CORETYPE", "Haswell", 1);
  } else {
    unsetenv("OPENBLAS_CORETYPE");
  }
}

// Some releases are known to compute wrong products on processors newer than they are. Integers are exact in
// any order of summation, so that any other result is a fault.
void check_products(const Library& library) {
  constexpr int kRows = 37, kColumns = 53, kDepth = 171;
  std::vector<float> a(kRows * kDepth), b(kDepth * kColumns), c(kRows * kColumns), gram(kDepth * kDepth);
  for (int i = 0; i < kRows * kDepth; ++i) a[i] = static_cast<float>(i * 7919 % 23 - 11);
  for (int i = 0; i < kDepth * kColumns; ++i) b[i] = static_cast<float>(i * 104729 % 19 - 9);
  library.f32.gemm(kRowMajor, kNoTranspose, kNoTranspose, kRows, kColumns, kDepth, 1.0f, a.data(), kDepth,
                   b.data(), kColumns, 0.0f, c.data(), kColumns);
  library.f32.syrk(kRowMajor, kLower, kTranspose, kDepth, kRows, 1.0f, a.data(), kDepth, 0.0f, gram.data(),
                   kDepth);
  bool right = true;
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float sum = 0;
      for (int l = 0; l < kDepth; ++l) sum += a[i * kDepth + l] * b[l * kColumns + j];
      right = right && sum == c[i * kColumns + j];
    }
  }
  for (int i = 0; i < kDepth; ++i) {
    for (int j = 0; j <= i; ++j) {
      float sum = 0;
      for (int l = 0; l < kRows; ++l) sum += a[l * kDepth + i] * a[l * kDepth + j];
      right = right && sum == gram[i * kDepth + j];
    }
  }
  if (!right) {
    fail(
        "{} computes wrong matrix products on this processor with its kernels for '{}'; update OpenBLAS, or "
        "set "
        "OPENBLAS_CORETYPE to others (such as Haswell) together with NIBBLE_KEEP_OPENBLAS_CORETYPE=1",
        library.info.library, library.info.core);
  }
}

Library load() {
  if (std::getenv("NIBBLE_KEEP_OPENBLAS_CORETYPE") == nullptr) choose_core();
  // Read when the library loads: it must not start threads that would never get work.
  setenv("OPENBLAS_NUM_THREADS", "1", 1);

  constexpr std::array kNames = {"libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so"};
  Library library;
  void* handle = nullptr;
  std::string reason;
  for (const char* name : kNames) {
    handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) {
      library.info.library = name;
      break;
    }
    const char* text = dlerror();
    if (reason.empty() && text != nullptr) reason = text;
  }
  if (handle == nullptr) {
    fail(
        "calibration needs OpenBLAS, which could not be loaded ({}); install it (Debian: apt-get install "
        "libopenblas0)",
        reason);
  }
  const std::string& name = library.info.library;
  resolve(handle, name, "cblas_sgemm", library.f32.gemm);
  resolve(handle, name, "cblas_dgemm", library.f64.gemm);
  resolve(handle, name, "cblas_ssyrk", library.f32.syrk);
  resolve(handle, name, "cblas_dsyrk", library.f64.syrk);
  resolve(handle, name, "cblas_strsm", library.f32.trsm);
  resolve(handle, name, "cblas_dtrsm", library.f64.trsm);
  resolve(handle, name, "spotrf_", library.f32.potrf);
  resolve(handle, name, "dpotrf_", library.f64.potrf);
  void (*set_threads)(int) = nullptr;
  char* (*core_name)() = nullptr;
  char* (*config)() = nullptr;
  resolve(handle, name, "openblas_set_num_threads", set_threads);
  resolve(handle, name, "openblas_get_corename", core_name);
  resolve(handle, name, "openblas_get_config", config);
  set_threads(1);
  library.info.core = core_name();
  library.info.config = config();
  check_products(library);
  log_debug("OpenBLAS: {} core, {}", library.info.core, library.info.config);
  return library;
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

int extent(int64_t value) {
  NIBBLE_CHECK(value >= 0 && value <= std::numeric_limits<int>::max());
  return static_cast<int>(value);
}

}  // namespace

const BlasInfo& blas_info() { return library().info; }

template <typename T>
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
          int64_t a_stride, const T* b, int64_t b_stride, T beta, T* c, int64_t c_stride) {
  library().routines<T>().gemm(kRowMajor, transpose_a ? kTranspose : kNoTranspose,
                               transpose_b ? kTranspose : kNoTranspose, extent(m), extent(n), extent(k),
                               alpha, a, extent(a_stride), b, extent(b_stride), beta, c, extent(c_stride));
}

template <typename T>
void syrk_lower(int64_t n, int64_t k, T alpha, const T* a, int64_t a_stride, T beta, T* c, int64_t c_stride) {
  library().routines<T>().syrk(kRowMajor, kLower, kTranspose, extent(n), extent(k), alpha, a,
                               extent(a_stride), beta, c, extent(c_stride));
}

template <typename T>
bool cholesky_lower(int64_t n, T* a, int64_t a_stride) {
  // A lower triangle by rows is an upper triangle by columns: LAPACK's A = U^T U has U = L^T.
  const int size = extent(n), stride = extent(a_stride);
  int status = 0;
  library().routines<T>().potrf("U", &size, a, &stride, &status, 1);
  if (status != 0) return false;
  // A NaN passes OpenBLAS's test for pivots <= 0.
  for (int64_t i = 0; i < n; ++i) {
    if (!(a[i * a_stride + i] > 0) || !std::isfinite(a[i * a_stride + i])) return false;
  }
  return true;
}

template <typename T>
void solve_lower(int64_t n, int64_t m, const T* l, int64_t l_stride, T* b, int64_t b_stride) {
  library().routines<T>().trsm(kRowMajor, kLeft, kLower, kNoTranspose, kNonUnit, extent(n), extent(m), T{1},
                               l, extent(l_stride), b, extent(b_stride));
}

template <typename T>
void solve_lower_transposed_right(int64_t m, int64_t n, const T* l, int64_t l_stride, T* b,
                                  int64_t b_stride) {
  library().routines<T>().trsm(kRowMajor, kRight, kLower, kTranspose, kNonUnit, extent(m), extent(n), T{1}, l,
                               extent(l_stride), b, extent(b_stride));
}

#define NIBBLE_INSTANTIATE(T)                                                                              \
  template void gemm<T>(bool, bool, int64_t, int64_t, int64_t, T, const T*, int64_t, const T*, int64_t, T, \
                        T*, int64_t);                                                                      \
  template void syrk_lower<T>(int64_t, int64_t, T, const T*, int64_t, T, T*, int64_t);                     \
  template bool cholesky_lower<T>(int64_t, T*, int64_t);                                                   \
  template void solve_lower<T>(int64_t, int64_t, const T*, int64_t, T*, int64_t);                          \
  template void solve_lower_transposed_right<T>(int64_t, int64_t, const T*, int64_t, T*, int64_t);
NIBBLE_INSTANTIATE(float)
NIBBLE_INSTANTIATE(double)
#undef NIBBLE_INSTANTIATE

}  // namespace nibble
