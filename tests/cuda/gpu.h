// What the tests of GPU kernels share.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace nibble {

// Why no GPU can be used here, in CUDA's words, or nothing.
inline std::string gpu_problem() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return "";
  cudaGetLastError();
  return std::string("no NVIDIA GPU that can be used: ") +
         (code == cudaSuccess ? "the driver finds none" : cudaGetErrorString(code));
}

}  // namespace nibble
