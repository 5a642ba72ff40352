// Attention in its plainest form: a warp per query and head, key by key, with a running softmax.
#include "backend/cuda/attention.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4, kMaximumHeadDim = 256, kPerLane = kMaximumHeadDim / 32;

__global__ void __launch_bounds__(32 * kWarps) plain_kernel(AttentionProblem problem) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const HeadsShape shape = problem.shape;
  const int lane = threadIdx.x % 32, head = blockIdx.y * kWarps + threadIdx.x / 32, token = blockIdx.x;
  if (head >= shape.heads) return;
  const int kv_head = head / (shape.heads / shape.kv_heads), position = *problem.first_position + token;
  const __half* const query = problem.qkv + token * shape.stride() + head * shape.head_dim;
  float q[kPerLane], sum[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    q[i] = d < shape.head_dim ? __half2float(query[d]) * problem.scale : 0.0f;
    sum[i] = 0;
  }
  float largest = -INFINITY, total = 0;
  const int begin = problem.window > 0 ? max(0, position - problem.window + 1) : 0;
  for (int key = begin; key <= position; ++key) {
    const int64_t at = problem.cache.offset(problem.cache.pages[key / kPagePositions], kv_head);
    const __half* const k = problem.cache.keys + at + key % kPagePositions * shape.head_dim;
    const __half* const v = problem.cache.values + at + key % kPagePositions;
    float score = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int d = lane + 32 * i;
      if (d < shape.head_dim) score += q[i] * __half2float(k[d]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(0xffffffffu, score, step);
    const float now = fmaxf(largest, score), keep = __expf(largest - now), weight = __expf(score - now);
    largest = now;
    total = total * keep + weight;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int d = lane + 32 * i;
      if (d < shape.head_dim) sum[i] = sum[i] * keep + weight * __half2float(v[d * kPagePositions]);
    }
  }
  __half* const out = problem.out + (int64_t{token} * shape.heads + head) * shape.head_dim;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    if (d < shape.head_dim) out[d] = __float2half_rn(sum[i] / total);
  }
}

}  // namespace

void launch_attention_plain(const AttentionProblem& problem, cudaStream_t stream) {
  launch_dependent(plain_kernel, dim3(problem.tokens, (problem.shape.heads + kWarps - 1) / kWarps),
                   32 * kWarps, 0, stream, "attention", problem);
}

}  // namespace nibble::cuda
