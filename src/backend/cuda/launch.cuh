// Launching a kernel of a pass (dependent_launch.h), on GPUs before Hopper too; errors are thrown.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device.h"

namespace nibble::cuda {

template <typename... Parameters, typename... Arguments>
void launch_dependent(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                      cudaStream_t stream, const char* what, Arguments&&... arguments) {
  const DependentLaunch launch(
      {.grid = grid, .block = block, .shared_bytes = shared_bytes, .early = on_hopper()}, stream);
  check(launch.run(kernel, std::forward<Arguments>(arguments)...), what);
}

// For kernels that ask for more than 48 KiB of shared memory.
template <typename Kernel>
void allow_shared_bytes(Kernel* kernel, size_t bytes, const char* what) {
  if (bytes <= 48 << 10) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        what);
}

}  // namespace nibble::cuda
