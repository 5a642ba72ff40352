// The tensor cores' speed with operands at hand: what a product can reach at most when it waits for no
// memory. For Hopper.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace nibble::cuda {

enum class PeakNumbers { kInt8, kHalf };

// What a launch reads from `data`, at least.
inline constexpr size_t kPeakDataBytes = size_t{64} << 10;

// Enqueues dense products (s8 x u8 in INT32, or FP16 in FP32) of what lies in `data`, one block on every
// multiprocessor, first operands in registers and second ones in shared memory. `rounds` repeats them; `sink`
// is one word that keeps them from being left out.
cudaError_t launch_peak(PeakNumbers numbers, const void* data, int rounds, int* sink, int multiprocessors,
                        cudaStream_t stream);
// Operations of such a launch, two per multiply-add.
double peak_operations(PeakNumbers numbers, int rounds, int multiprocessors);

}  // namespace nibble::cuda
