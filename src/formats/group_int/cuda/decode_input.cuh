// How the decode kernel's tokens come into shared memory: as they are, or, of one token, through the step
// that makes them (backend/cuda/input_step.h), which every block then computes for itself. That costs each
// block more reading from the L2 while its first weights are still on their way, and spares a kernel.
#pragma once

#include "backend/cuda/input_rows.cuh"
#include "formats/group_int/cuda/decode_shape.h"

namespace nibble::group_int_cuda {

// Where the tokens go: [tokens, padded_k] in shared memory, zeros from k on. `threads` threads place them
// together, this one being number `thread`; `sync` is their barrier.
struct TokenPlace {
  __half* x;
  int k, padded_k, thread, threads;
};

// Copies 8 columns of a token to shared memory: within 32 columns, lane q of four is to find columns 2q, 2q +
// 1 of each 8 in 16 bytes, which are its operands of two products.
__device__ inline void place_columns(__half* row, int column, uint4 values) {
  uint32_t* const to = reinterpret_cast<uint32_t*>(row + column / 32 * 32) + column % 32 / 8;
  to[0] = values.x;
  to[4] = values.y;
  to[8] = values.z;
  to[12] = values.w;
}
__device__ inline void place_floats(__half* row, int column, const float (&x)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __half2 pair = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
    words[i] = reinterpret_cast<const uint32_t&>(pair);
  }
  place_columns(row, column, make_uint4(words[0], words[1], words[2], words[3]));
}

// x [tokens, k] itself.
struct HalvesStep {
  const __half* x;
};

template <int kTokens, typename Sync>
__device__ void place_tokens(const HalvesStep& step, const TokenPlace& to, float*, const Sync&) {
  ptx::wait_for_previous_kernel();
  for (int token = 0; token < kTokens; ++token) {
    for (int i = 8 * to.thread; i < to.padded_k; i += 8 * to.threads) {
      uint4 values = {0, 0, 0, 0};
      if (i < to.k) values = *reinterpret_cast<const uint4*>(step.x + int64_t{token} * to.k + i);
      place_columns(to.x + token * to.padded_k, i, values);
    }
  }
}

// The row stays in registers between its sum and its products: so many columns at most.
constexpr int kNormVectors = 4, kMaximumNormColumns = 8 * kNormVectors * 32 * static_cast<int>(kChunkBlocks);

// `scratch`: a float per warp.
template <int kTokens, typename Sync>
__device__ void place_tokens(const cuda::NormStep& step, const TokenPlace& to, float* scratch,
                             const Sync& sync) {
  static_assert(kTokens == 1);
  // Weights depend on no kernel.
  for (int i = 32 * to.thread; i < to.k; i += 32 * to.threads) ptx::prefetch_l2(step.weight + i);
  ptx::wait_for_previous_kernel();
  float x[kNormVectors][8], squares = 0;
#pragma unroll
  for (int v = 0; v < kNormVectors; ++v) {
    const int eight = v * to.threads + to.thread, column = 8 * eight;
#pragma unroll
    for (int e = 0; e < 8; ++e) x[v][e] = 0;
    if (column >= to.k) continue;
    cuda::rows::load_floats(step.residual + column, x[v]);
    if (step.update != nullptr) {
      float more[8];
      cuda::rows::load_halves(step.update + column, more);
#pragma unroll
      for (int e = 0; e < 8; ++e) x[v][e] += more[e];
    }
    // One block of all writes the sum.
    if (eight % gridDim.x == blockIdx.x) cuda::rows::store_floats(x[v], step.sum + column);
#pragma unroll
    for (int e = 0; e < 8; ++e) squares += x[v][e] * x[v][e];
  }
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, lane);
  if (to.thread % 32 == 0) scratch[to.thread / 32] = squares;
  sync();
  squares = 0;
  for (int warp = 0; warp < to.threads / 32; ++warp) squares += scratch[warp];
  const float scale = rsqrtf(squares / static_cast<float>(to.k) + step.epsilon);
#pragma unroll
  for (int v = 0; v < kNormVectors; ++v) {
    const int column = 8 * (v * to.threads + to.thread);
    if (column >= to.padded_k) continue;
    if (column < to.k) {
      float weight[8];
      cuda::rows::load_floats(step.weight + column, weight);
#pragma unroll
      for (int e = 0; e < 8; ++e) x[v][e] = x[v][e] * scale * weight[e];
    }
    place_floats(to.x, column, x[v]);
  }
}

// Eight values from `column` of steps whose values do not depend on each other.
__device__ inline void load_values(const cuda::GateStep& step, int k, int column, float (&x)[8]) {
  cuda::rows::load_gated(step.gate_up + column, step.gate_up + k + column, x);
}
__device__ inline void load_values(const cuda::FloatStep& step, int, int column, float (&x)[8]) {
  cuda::rows::load_floats(step.x + column, x);
}

template <int kTokens, typename Step, typename Sync>
__device__ void place_tokens(const Step& step, const TokenPlace& to, float*, const Sync&) {
  static_assert(kTokens == 1);
  ptx::wait_for_previous_kernel();
  for (int column = 8 * to.thread; column < to.padded_k; column += 8 * to.threads) {
    float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (column < to.k) load_values(step, to.k, column, x);
    place_floats(to.x, column, x);
  }
}

}  // namespace nibble::group_int_cuda
