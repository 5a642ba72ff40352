// A block per token. A thread has 8 consecutive entries, or several times 8, in registers: the butterflies of
// the 8 and of the 32 lanes need no memory, longer ones pass through shared memory, three levels at a time.
// The base matrix then mixes what lies there, 8 rows of it per thread, on the way out.
#include <algorithm>
#include <cmath>

#include "backend/cuda/hadamard.h"
#include "backend/cuda/input_rows.cuh"
#include "backend/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

using namespace rows;

constexpr int kMixedRows = DeviceHadamard::kMixedRows;

struct Shape {
  int columns, block, power, base, padded_rows;  // power = block / base
  float scale;                                   // 1 / sqrt(power)
  const float* matrix;
};

__device__ inline void butterfly(float& a, float& b) {
  const float sum = a + b, difference = a - b;
  a = sum;
  b = difference;
}

// Levels of 2^kLevels entries `distance` apart, of all entries, in place.
template <int kLevels>
__device__ void shared_levels(float* values, int columns, int distance) {
  constexpr int kCount = 1 << kLevels;
  for (int item = threadIdx.x; item < columns >> kLevels; item += blockDim.x) {
    float* const from = values + item / distance * (distance << kLevels) + item % distance;
    float x[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = from[i * distance];
#pragma unroll
    for (int half = 1; half < kCount; half *= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if ((i & half) == 0) butterfly(x[i], x[i + half]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) from[i * distance] = x[i];
  }
  __syncthreads();
}

__device__ inline void store(float value, float* to) { *to = value; }
__device__ inline void store(float value, __half* to) { *to = __float2half_rn(value); }
__device__ inline void store_eight(const float (&x)[8], float* to) { store_floats(x, to); }
__device__ inline void store_eight(const float (&x)[8], __half* to) { store_halves(x, to); }

// Grid (tokens, pieces of the mixed rows).
template <int kVectors, typename Step, typename Out>
__global__ void __launch_bounds__(kMaximumThreads, kVectors <= 2 ? 2 : 1)
    hadamard_kernel(const Step step, const Shape shape, Out* all_out) {
  extern __shared__ __align__(16) float values[];  // [columns]
  __shared__ Exchange exchange;
  const Team team(1, shape.columns);
  const int lane = threadIdx.x % 32, power = shape.power;
  float x[kVectors][8];
  load_row(step, team, exchange, x);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < 8; ++e) x[i][e] *= shape.scale;
#pragma unroll
    for (int half = 1; half < 8; half *= 2) {
      if (half >= power) continue;
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if ((e & half) == 0) butterfly(x[i][e], x[i][e + half]);
    }
    // Whole eights: `power` divides the columns, so partners are both of the row or both beyond it.
    for (int step_lanes = 1; step_lanes < 32 && 8 * step_lanes < power; step_lanes *= 2) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float other = __shfl_xor_sync(0xffffffffu, x[i][e], step_lanes);
        x[i][e] = (lane & step_lanes) != 0 ? other - x[i][e] : x[i][e] + other;
      }
    }
    if (team.eight(i) < team.count) store_floats(x[i], values + 8 * team.eight(i));
  }
  __syncthreads();
  for (int distance = 256; distance < power;) {
    const int left = power / distance;
    if (left >= 8) {
      shared_levels<3>(values, shape.columns, distance);
      distance *= 8;
    } else if (left == 4) {
      shared_levels<2>(values, shape.columns, distance);
      distance *= 4;
    } else {
      shared_levels<1>(values, shape.columns, distance);
      distance *= 2;
    }
  }

  Out* const out = all_out + team.token * shape.columns;
  if (shape.base == 1) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (team.eight(i) >= team.count) continue;
      load_floats(values + 8 * team.eight(i), x[i]);
      store_eight(x[i], out + 8 * team.eight(i));
    }
    return;
  }
  // Items: (block, 8 rows of the matrix, column of `power`).
  const int groups = shape.padded_rows / kMixedRows, items = shape.columns / shape.block * groups * power;
  for (int item = blockIdx.y * blockDim.x + threadIdx.x; item < items; item += gridDim.y * blockDim.x) {
    const int column = item % power, group = item / power % groups;
    const int from = item / power / groups * shape.block + column;
    float sums[kMixedRows] = {};
    const float* matrix = shape.matrix + group * kMixedRows;
#pragma unroll 4
    for (int i = 0; i < shape.base; ++i, matrix += shape.padded_rows) {
      const float value = values[from + i * power];
      const float4 a = __ldg(reinterpret_cast<const float4*>(matrix)),
                   b = __ldg(reinterpret_cast<const float4*>(matrix) + 1);
      const float factors[kMixedRows] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int r = 0; r < kMixedRows; ++r) sums[r] = fmaf(factors[r], value, sums[r]);
    }
#pragma unroll
    for (int r = 0; r < kMixedRows; ++r) {
      const int row = group * kMixedRows + r;
      if (row < shape.base) store(sums[r], out + from + row * power);
    }
  }
}

template <typename Step, typename Out>
void (*find_kernel(int vectors))(const Step, const Shape, Out*) {
  switch (vectors) {
    case 1:
      return hadamard_kernel<1, Step, Out>;
    case 2:
      return hadamard_kernel<2, Step, Out>;
    case 4:
      return hadamard_kernel<4, Step, Out>;
    default:
      return hadamard_kernel<8, Step, Out>;
  }
}

}  // namespace

template <typename Out>
void DeviceHadamard::launch_any(const InputStep& any_step, int tokens, Out* out, cudaStream_t stream) const {
  const char* const what = "rotating activations";
  const int columns = static_cast<int>(shape_.size), power = static_cast<int>(shape_.block / shape_.base);
  const Shape shape = {.columns = columns,
                       .block = static_cast<int>(shape_.block),
                       .power = power,
                       .base = static_cast<int>(shape_.base),
                       .padded_rows = padded_rows_,
                       .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(power))),
                       .matrix = matrix_.bytes() > 0 ? matrix_.as<float>() : nullptr};
  const Cut cut = cut_rows(columns, tokens, false);
  const auto launch = [&](const auto& step, int pieces) {
    const auto kernel = find_kernel<std::remove_cvref_t<decltype(step)>, Out>(cut.vectors);
    const size_t bytes = sizeof(float) * static_cast<size_t>(columns);
    allow_shared_bytes(kernel, bytes, what);
    launch_dependent(kernel, dim3(tokens, pieces), cut.threads, bytes, stream, what, step, shape, out);
  };
  if (const auto* norm = std::get_if<NormStep>(&any_step)) {
    launch(*norm, 1);  // it writes the residual: by one block
  } else if (const auto* gate = std::get_if<GateStep>(&any_step)) {
    // Few tokens: mixing is most of the work, so several blocks each repeat what comes before it.
    constexpr int kFew = 8, kMostPieces = 16;
    const int items = columns / kMixedRows;
    const bool split = tokens <= kFew && shape.base > 1;
    launch(*gate, split ? std::clamp(items / cut.threads, 1, kMostPieces) : 1);
  } else {
    check(cudaErrorInvalidValue, what);  // only norms and gates are rotated
  }
}

void DeviceHadamard::launch(const InputStep& step, int tokens, float* out, cudaStream_t stream) const {
  launch_any(step, tokens, out, stream);
}
void DeviceHadamard::launch(const InputStep& step, int tokens, __half* out, cudaStream_t stream) const {
  launch_any(step, tokens, out, stream);
}

}  // namespace nibble::cuda
