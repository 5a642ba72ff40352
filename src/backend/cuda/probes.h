// Synthetic data and the memory's speed: what benchmarks need on the device.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

// Random bytes; `bytes` a multiple of 4.
cudaError_t fill_random_bytes(void* data, size_t bytes, uint32_t seed, cudaStream_t stream);
// Uniform in [-scale, scale].
cudaError_t fill_random_half(__half* data, size_t count, float scale, uint32_t seed, cudaStream_t stream);
// Reads `bytes` (a multiple of 16) once and writes their sum, so that no read can be left out. `sum` is one
// word.
cudaError_t read_all(const void* data, size_t bytes, uint32_t* sum, int multiprocessors, cudaStream_t stream);

}  // namespace nibble::cuda
