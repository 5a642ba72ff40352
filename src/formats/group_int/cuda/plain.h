// Products of 4-bit group_int weights with few FP16 tokens on every GPU from compute capability 8.0 on.
// Weights u - 8 are exact and scales are applied to FP32 sums, in a fixed order.
#pragma once

#include "formats/group_int/cuda/decode.h"

namespace nibble::group_int_cuda {

// Every weight is read once for so many tokens.
inline constexpr int kMaximumPlainTokens = 32;

// Enqueues y = x W^T for 1 to kMaximumPlainTokens tokens; k a multiple of 8. May start before the stream's
// previous kernel has ended, where there is such a thing (it waits before it reads x). Throws Error when the
// launch is refused.
void launch_plain(const DecodeProblem& problem, cudaStream_t stream);

}  // namespace nibble::group_int_cuda
