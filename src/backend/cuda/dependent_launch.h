// Launching kernels that may start before their predecessor on the stream has ended (programmatic dependent
// launch): they must call ptx::wait_for_previous_kernel() before they touch what others write or read.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace nibble::cuda {

struct LaunchShape {
  dim3 grid, block;         // blocks, and threads of each
  size_t shared_bytes = 0;  // dynamic
  int cluster = 0;          // blocks of a cluster, of which the grid is a multiple; 0: no clusters
  bool early = true;        // else, as before Hopper, kernels simply follow one another
};

class DependentLaunch {
 public:
  DependentLaunch(const LaunchShape& shape, cudaStream_t stream) {
    config_.gridDim = shape.grid;
    config_.blockDim = shape.block;
    config_.dynamicSmemBytes = shape.shared_bytes;
    config_.stream = stream;
    config_.attrs = attributes_;
    if (shape.early) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster > 0) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    }
  }
  // The configuration points into this object.
  DependentLaunch(const DependentLaunch&) = delete;
  DependentLaunch& operator=(const DependentLaunch&) = delete;

  const cudaLaunchConfig_t& config() const { return config_; }

  // Returns the launch's error.
  template <typename... Parameters, typename... Arguments>
  cudaError_t run(void (*kernel)(Parameters...), Arguments&&... arguments) const {
    return cudaLaunchKernelEx(&config_, kernel,
                              static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  }
  // The same for a kernel whose type is not known here: the arguments' types must be its parameters'.
  template <typename... Arguments>
  cudaError_t run_untyped(const void* kernel, Arguments&... arguments) const {
    void* pointers[] = {&arguments...};
    return cudaLaunchKernelExC(&config_, kernel, pointers);
  }

 private:
  cudaLaunchConfig_t config_ = {};
  cudaLaunchAttribute attributes_[2] = {};
};

}  // namespace nibble::cuda
