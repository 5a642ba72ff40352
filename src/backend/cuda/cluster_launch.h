// Launching a kernel of one argument in clusters of blocks, which may start before its predecessor on the
// stream has ended.
#pragma once

#include <cuda_runtime.h>

namespace nibble::cuda {

struct ClusterLaunch {
  const void* kernel = nullptr;
  int blocks = 0, threads = 0;  // in the grid (a multiple of `cluster`), and in a block
  int shared_bytes = 0;         // dynamic
  int cluster = 1;              // blocks
};

// `argument` is a host pointer to the kernel's only parameter. Returns the launch's error.
inline cudaError_t launch_clusters(const ClusterLaunch& launch, void* argument, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(launch.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(launch.blocks));
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = static_cast<size_t>(launch.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  void* pointers[] = {argument};
  return cudaLaunchKernelExC(&config, launch.kernel, pointers);
}

}  // namespace nibble::cuda
