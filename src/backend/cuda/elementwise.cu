#include <algorithm>
#include <climits>

#include "backend/cuda/elementwise.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/cuda/row_eights.cuh"

namespace nibble::cuda {
namespace {

struct alignas(8) Half4 {
  __half2 a, b;
};
__device__ inline float4 to_float(Half4 h) {
  const float2 a = __half22float2(h.a), b = __half22float2(h.b);
  return {a.x, a.y, b.x, b.y};
}
__device__ inline Half4 to_half(float4 v) {
  return {__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w)};
}

__global__ void embed_kernel(const __half* table, const int32_t* ids, int hidden, float* residual) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const __half* const from = table + int64_t{ids[blockIdx.x]} * hidden;
  float* const to = residual + int64_t{blockIdx.x} * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) to[i] = __half2float(from[i]);
}

__global__ void norm_kernel(NormStep step, int hidden, __half* out) {
  extern __shared__ __align__(16) float kept[];  // [hidden]
  // Weights depend on no kernel: the first of them arrive while the previous one ends. (A load by __ldg would
  // sink below the wait.)
  const float4* const weights = reinterpret_cast<const float4*>(step.weight);
  const float4 first_weight = threadIdx.x < hidden / 4 ? weights[threadIdx.x] : float4{};
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const int64_t token = blockIdx.x;
  const float4* const from = reinterpret_cast<const float4*>(step.residual + token * hidden);
  const Half4* const more = reinterpret_cast<const Half4*>(step.update + token * hidden);
  float4* const sums = reinterpret_cast<float4*>(step.sum + token * hidden);
  float squares = 0;
  for (int i = threadIdx.x; i < hidden / 4; i += blockDim.x) {
    float4 v = from[i];
    if (step.update != nullptr) {
      const float4 u = to_float(more[i]);
      v = {v.x + u.x, v.y + u.y, v.z + u.z, v.w + u.w};
    }
    if (step.update != nullptr || step.sum != step.residual) sums[i] = v;
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    reinterpret_cast<float4*>(kept)[i] = v;
  }
  const float scale = rsqrtf(block_sum(squares) / static_cast<float>(hidden) + step.epsilon);
  Half4* const to = reinterpret_cast<Half4*>(out + token * hidden);
  for (int i = threadIdx.x; i < hidden / 4; i += blockDim.x) {
    const float4 v = reinterpret_cast<const float4*>(kept)[i];  // written by this thread
    const float4 w = i == threadIdx.x ? first_weight : __ldg(weights + i);
    to[i] = to_half({v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w});
  }
}

__global__ void add_kernel(float* residual, const __half* update, int64_t count) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) residual[i] += __half2float(update[i]);
}

// Grid (tokens, pieces of the width), 8 elements per thread.
__global__ void silu_multiply_kernel(const __half* gate_up, int width, __half* out) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  if (i >= width) return;
  const __half* const gate = gate_up + int64_t{blockIdx.x} * 2 * width + i;
  float x[8];
  rows::load_gated(gate, gate + width, x);
  rows::store_halves(x, out + int64_t{blockIdx.x} * width + i);
}

__global__ void add_bias_kernel(__half* y, int64_t y_stride, const float* bias, int n) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  __half* const row = y + int64_t{blockIdx.x} * y_stride;
  for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = __float2half_rn(__half2float(row[i]) + bias[i]);
}

template <typename T>
__global__ void to_half_kernel(const T* values, int64_t count, __half* out, int* overflowed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    float value;
    if constexpr (sizeof(T) == 2) {
      value = __uint_as_float(uint32_t{values[i]} << 16);
    } else {
      value = values[i];
    }
    const __half rounded = __float2half_rn(value);
    if (__hisinf(rounded) && !isinf(value)) *overflowed = 1;
    out[i] = rounded;
  }
}

__global__ void __launch_bounds__(1024)
    argmax_kernel(const float* logits, int vocabulary, int32_t* id, int32_t* position, int32_t* history) {
  __shared__ float best_of[32];
  __shared__ int index_of[32];
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  float best = -INFINITY;
  int index = INT_MAX;
  bool bad = false;
#pragma unroll 8
  for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
    const float value = logits[i];
    bad = bad || !isfinite(value);
    if (value > best) {
      best = value;
      index = i;
    }
  }
  bad = __syncthreads_or(bad);
  const auto reduce = [&] {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, lane);
      const int other_index = __shfl_xor_sync(kAllLanes, index, lane);
      if (other > best || (other == best && other_index < index)) {
        best = other;
        index = other_index;
      }
    }
  };
  reduce();
  if (threadIdx.x % 32 == 0) {
    best_of[threadIdx.x / 32] = best;
    index_of[threadIdx.x / 32] = index;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  best = best_of[threadIdx.x];
  index = index_of[threadIdx.x];
  reduce();
  if (threadIdx.x == 0) {
    *id = min(index, vocabulary - 1);
    const int next = *position + 1;
    *position = next;
    history[next] = bad ? -1 : index;
  }
}

__global__ void random_half_kernel(__half* values, int64_t count, float amplitude, uint32_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 0x9E3779B9u ^ static_cast<uint32_t>(i >> 32) ^ seed;
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;  // the finalizer of MurmurHash3
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    h ^= h >> 16;
    values[i] = __float2half_rn(amplitude * (static_cast<float>(h) * 0x1p-31f - 1.0f));
  }
}

int threads_for(int items) { return std::min(1024, (items + 31) / 32 * 32); }
int blocks_for(int64_t count) { return static_cast<int>(std::min<int64_t>((count + 255) / 256, 132 * 16)); }

}  // namespace

void launch_embed(const __half* table, const int32_t* ids, int tokens, int hidden, float* residual,
                  cudaStream_t stream) {
  launch_dependent(embed_kernel, tokens, std::min(256, threads_for(hidden)), 0, stream,
                   "looking embeddings up", table, ids, hidden, residual);
}

void launch_norm(const NormStep& step, int tokens, int hidden, __half* out, cudaStream_t stream) {
  if (hidden % 4 != 0) check(cudaErrorInvalidValue, "normalising");
  const size_t bytes = sizeof(float) * static_cast<size_t>(hidden);
  allow_shared_bytes(norm_kernel, bytes, "normalising");
  // A single token is waited for: all of it at once. Of many, several fit a multiprocessor.
  const int threads = tokens < 64 ? threads_for(hidden / 4) : std::min(256, threads_for(hidden / 4));
  launch_dependent(norm_kernel, tokens, threads, bytes, stream, "normalising", step, hidden, out);
}

void launch_add(float* residual, const __half* update, int64_t count, cudaStream_t stream) {
  launch_dependent(add_kernel, static_cast<unsigned>((count + 255) / 256), 256, 0, stream, "adding", residual,
                   update, count);
}

void launch_silu_multiply(const __half* gate_up, int tokens, int width, __half* out, cudaStream_t stream) {
  if (width % 8 != 0) check(cudaErrorInvalidValue, "multiplying gates");
  const int threads = std::min(256, threads_for(width / 8));
  launch_dependent(silu_multiply_kernel, dim3(tokens, (width / 8 + threads - 1) / threads), threads, 0,
                   stream, "multiplying gates", gate_up, width, out);
}

void launch_add_bias(__half* y, int64_t y_stride, const float* bias, int tokens, int n, cudaStream_t stream) {
  launch_dependent(add_bias_kernel, tokens, std::min(256, threads_for(n)), 0, stream, "adding a bias", y,
                   y_stride, bias, n);
}

void launch_half_from_float(const float* values, int64_t count, __half* out, int* overflowed,
                            cudaStream_t stream) {
  to_half_kernel<<<blocks_for(count), 256, 0, stream>>>(values, count, out, overflowed);
  check_last("rounding to FP16");
}

void launch_half_from_bf16(const uint16_t* values, int64_t count, __half* out, int* overflowed,
                           cudaStream_t stream) {
  to_half_kernel<<<blocks_for(count), 256, 0, stream>>>(values, count, out, overflowed);
  check_last("rounding to FP16");
}

void launch_argmax(const float* logits, int vocabulary, int32_t* id, int32_t* position, int32_t* history,
                   cudaStream_t stream) {
  launch_dependent(argmax_kernel, 1, 1024, 0, stream, "choosing a token", logits, vocabulary, id, position,
                   history);
}

void launch_random_half(__half* values, int64_t count, float amplitude, uint32_t seed, cudaStream_t stream) {
  random_half_kernel<<<blocks_for(count), 256, 0, stream>>>(values, count, amplitude, seed);
  check_last("filling with random numbers");
}

}  // namespace nibble::cuda
