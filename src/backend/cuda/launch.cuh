// Launching a kernel that may start before its predecessor on the stream has ended (programmatic dependent
// launch): it must call ptx::wait_for_previous_kernel() before it touches what others write or read. Before
// Hopper kernels simply follow one another.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "backend/cuda/device.h"

namespace nibble::cuda {

template <typename... Parameters, typename... Arguments>
void launch_dependent(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                      cudaStream_t stream, const char* what, Arguments&&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = on_hopper() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...),
        what);
}

// For kernels that ask for more than 48 KiB of shared memory.
template <typename Kernel>
void allow_shared_bytes(Kernel* kernel, size_t bytes, const char* what) {
  if (bytes <= 48 << 10) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        what);
}

}  // namespace nibble::cuda
