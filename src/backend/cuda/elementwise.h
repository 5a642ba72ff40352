// What a decoder block does beside its products and attention, on the GPU. Activations are FP16, the residual
// stream FP32; arithmetic is FP32. All launches may overlap the end of their predecessors (launch.cuh) and
// throw Error when refused.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/input_step.h"
#include "backend/cuda/kv_cache.h"

namespace nibble::cuda {

// residual [tokens, hidden] = rows of table [vocabulary, hidden]. Ids lie on the device and are valid.
void launch_embed(const __half* table, const int32_t* ids, int tokens, int hidden, float* residual,
                  cudaStream_t stream);

// out [tokens, hidden] = what the step yields (input_step.h). hidden is a multiple of 4.
void launch_norm(const NormStep& step, int tokens, int hidden, __half* out, cudaStream_t stream);

// residual [count] += update.
void launch_add(float* residual, const __half* update, int64_t count, cudaStream_t stream);

// out [tokens, width] = silu(gate) * up of gate_up [tokens, 2 width] = gate, up. width is a multiple of 8.
void launch_silu_multiply(const __half* gate_up, int tokens, int width, __half* out, cudaStream_t stream);

// y [tokens, y_stride] += bias [n].
void launch_add_bias(__half* y, int64_t y_stride, const float* bias, int tokens, int n, cudaStream_t stream);

// One attention layer's queries, keys and values side by side, as its first linears yield them.
struct HeadsShape {
  int heads = 0, kv_heads = 0, head_dim = 0;
  __host__ __device__ int64_t stride() const { return int64_t{heads + 2 * kv_heads} * head_dim; }
};

struct RotateProblem {
  HeadsShape shape;
  __half* qkv = nullptr;  // [tokens, shape.stride()], queries are rotated in place
  int tokens = 0;
  const int32_t* first_position = nullptr;  // on the device, of token 0; the others follow
  const float* frequencies = nullptr;       // [head_dim / 2], null: no rotation
  bool interleaved = false;                 // pairs (2i, 2i + 1), else (i, i + head_dim / 2)
  const float* query_norm = nullptr;        // [head_dim], RMS norm of every head before rotation, or null
  const float* key_norm = nullptr;
  float epsilon = 0;
  LayerCache cache;  // keys and values go there
};
// Position and table of pages must have been there before any kernel of the pass started; they are read
// early. Norm of heads, rotary embedding (angles are FP32 products of position and frequency) and the cache's
// new positions. head_dim is a multiple of 4, at most 256.
void launch_rotate_and_store(const RotateProblem& problem, cudaStream_t stream);

// values [count] to FP16; *overflowed becomes 1 where a finite one does not fit.
void launch_half_from_float(const float* values, int64_t count, __half* out, int* overflowed,
                            cudaStream_t stream);
void launch_half_from_bf16(const uint16_t* values, int64_t count, __half* out, int* overflowed,
                           cudaStream_t stream);

// *id = the lowest index of the largest logit; *position += 1, then history[*position] = *id, or -1 when a
// logit is NaN or infinite (*id is a valid index nevertheless).
void launch_argmax(const float* logits, int vocabulary, int32_t* id, int32_t* position, int32_t* history,
                   cudaStream_t stream);

// values [count] = uniform in [-amplitude, amplitude], a function of the seed and the index.
void launch_random_half(__half* values, int64_t count, float amplitude, uint32_t seed, cudaStream_t stream);

}  // namespace nibble::cuda
