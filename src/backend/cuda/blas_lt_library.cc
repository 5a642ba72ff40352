#include "backend/cuda/blas_lt_library.h"

#include <dlfcn.h>

#include <array>
#include <string>

#include "base/error.h"

namespace nibble::cuda {
namespace {

template <typename Function>
void resolve(void* library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (function == nullptr) fail("libcublasLt has no function '{}'", symbol);
}

}  // namespace

void check_blas(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail("cuBLASLt: {} fails with status {}", what, static_cast<int>(status));
}

const BlasLt& blas_lt() {
  static const BlasLt loaded = [] {
    constexpr std::array kNames = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    void* handle = nullptr;
    std::string reason;
    for (const char* name : kNames) {
      handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) break;
      if (reason.empty()) reason = dlerror();
    }
    if (handle == nullptr)
      fail(
          "FP16 products on the GPU need cuBLASLt, which could not be opened ({}): install CUDA's libraries, "
          "or "
          "name their folder in LD_LIBRARY_PATH",
          reason);
    BlasLt made = {};
    resolve(handle, "cublasLtCreate", made.create);
    resolve(handle, "cublasLtGetVersion", made.version);
    resolve(handle, "cublasLtMatmulDescCreate", made.desc_create);
    resolve(handle, "cublasLtMatmulDescDestroy", made.desc_destroy);
    resolve(handle, "cublasLtMatmulDescSetAttribute", made.desc_set);
    resolve(handle, "cublasLtMatrixLayoutCreate", made.layout_create);
    resolve(handle, "cublasLtMatrixLayoutDestroy", made.layout_destroy);
    resolve(handle, "cublasLtMatmulPreferenceCreate", made.preference_create);
    resolve(handle, "cublasLtMatmulPreferenceDestroy", made.preference_destroy);
    resolve(handle, "cublasLtMatmulPreferenceSetAttribute", made.preference_set);
    resolve(handle, "cublasLtMatmulAlgoGetHeuristic", made.heuristic);
    resolve(handle, "cublasLtMatmul", made.matmul);
    check_blas(made.create(&made.handle), "creating a handle");
    return made;
  }();
  return loaded;
}

}  // namespace nibble::cuda
