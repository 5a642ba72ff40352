// One block per token, which holds its row in registers from the range to the codes. Codes are packed side by
// side in shared memory (outliers fall out), then written in the order of prompt_layout.h. Bound by
// instructions as much as by memory: hence one division per token, and masks by multiplication.
#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/ptx.cuh"
#include "formats/quik/cuda/pack_columns.cuh"
#include "formats/quik/cuda/product.h"
#include "formats/quik/cuda/prompt_layout.h"
#include "formats/quik/cuda/token_codes.h"

namespace nibble::quik_cuda {
namespace {

constexpr int kMaximumThreads = 512;

struct QuantizeArguments {
  const __half* x;
  int64_t x_stride;
  Columns columns;
  int integers, top;  // integer columns, largest code
  Activations out;
};

// Columns 8 v to 8 v + 7 of a row; zeros beyond k.
template <bool kAligned>
__device__ inline uint4 load_vector(const __half* row, int v, int k) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const uint4*>(row + 8 * v);
  } else {
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 8 * v + 2 * i;
      const uint32_t low = column < k ? __half_as_ushort(row[column]) : 0;
      const uint32_t high = column + 1 < k ? __half_as_ushort(row[column + 1]) : 0;
      w[i] = low | high << 16;
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
  }
}

__device__ inline __half2 as_pair(uint32_t bits) { return reinterpret_cast<const __half2&>(bits); }

// 32 bits of the signs of bytes of `word`: nibble i of kSelector is 8 + the byte whose sign fills byte i.
// (__byte_perm does not spread signs.)
template <uint32_t kSelector>
__device__ inline uint32_t spread_signs(uint32_t word) {
  uint32_t spread;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(spread) : "r"(word), "n"(kSelector));
  return spread;
}

// Four times two columns with the outliers, whose bits in `mask` are set, replaced by zeros. The product puts
// bit e of four into the sign of byte e.
__device__ inline void keep_integers(const uint4& x, uint32_t mask, __half2 (&pairs)[4]) {
  const uint32_t kept = ~mask, low = (kept & 15) * 0x10204080u, high = (kept >> 4 & 15) * 0x10204080u;
  pairs[0] = as_pair(x.x & spread_signs<0x9988>(low));
  pairs[1] = as_pair(x.y & spread_signs<0xBBAA>(low));
  pairs[2] = as_pair(x.z & spread_signs<0x9988>(high));
  pairs[3] = as_pair(x.w & spread_signs<0xBBAA>(high));
}

// kVectors times 8 columns per thread.
template <int kVectors, bool kAligned>
__global__ void __launch_bounds__(kMaximumThreads, kVectors > 8   ? 1
                                                   : kVectors > 4 ? 2
                                                   : kVectors > 2 ? 3
                                                                  : 4)
    quantize_kernel(const QuantizeArguments a) {
  extern __shared__ __align__(16) uint8_t codes[];
  __shared__ __half2 of_warps[kMaximumThreads / 32];
  const int token = blockIdx.x, thread = threadIdx.x, threads = blockDim.x, vectors = (a.columns.k + 7) / 8;

  // What depends on no kernel. (Loads by __ldg would sink below the wait.)
  uint32_t words[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = i * threads + thread;
    words[i] = v < vectors ? a.columns.words[v] : 0xFF;
  }
  int gathered[2] = {0, 0};  // the pair of outliers that this thread takes first
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (2 * thread + i < a.columns.outliers) gathered[i] = a.columns.outlier_columns[2 * thread + i];
  }
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const __half* const row = a.x + token * a.x_stride;
  uint4 x[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = i * threads + thread;
    x[i] = v < vectors ? load_vector<kAligned>(row, v, a.columns.k) : make_uint4(0, 0, 0, 0);
  }

  // The range, zero included. Comparisons of halves are exact, and a NaN stays.
  __half2 low = __float2half2_rn(0.0f), high = low;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    __half2 pairs[4];
    keep_integers(x[i], words[i], pairs);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      low = __hmin2_nan(low, pairs[p]);
      high = __hmax2_nan(high, pairs[p]);
    }
  }
  // Both in one: {-minimum, maximum}.
  __half2 widest = __halves2half2(__hneg(__hmin_nan(__low2half(low), __high2half(low))),
                                  __hmax_nan(__low2half(high), __high2half(high)));
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2)
    widest = __hmax2_nan(widest, __shfl_xor_sync(0xffffffffu, widest, lane));
  if (thread % 32 == 0) of_warps[thread / 32] = widest;
  const int stride = static_cast<int>(a.out.code_stride);
#pragma unroll 1
  for (int i = a.integers + thread; i < stride; i += threads) codes[i] = 0;
  __syncthreads();
  widest = of_warps[min(thread % 16, threads / 32 - 1)];  // both halves of a warp look at all
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2)
    widest = __hmax2_nan(widest, __shfl_xor_sync(0xffffffffu, widest, lane));
  static_assert(kMaximumThreads / 32 == 16);
  const float lo = -__low2float(widest), hi = __high2float(widest);
  const CodeRange range = code_range(lo, hi, a.top);
  const CodeRule rule = code_rule(range, a.top);

#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = i * threads + thread;
    const uint32_t pairs[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
    uint32_t to = ptx::shared_address(codes) + 8 * v - (words[i] >> 8);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const __half value =
          e % 2 == 0 ? __low2half(as_pair(pairs[e / 2])) : __high2half(as_pair(pairs[e / 2]));
      append_code(to, words[i] & 1u << e, code_of(__half2float(value), rule));
    }
  }
  // Pairs of outliers keep together in their order.
  auto* const outliers_to = a.out.outliers + token * a.out.outlier_stride;
  const int padded = static_cast<int>(a.out.outlier_stride);
  for (int o = 2 * thread; o < padded; o += 2 * threads) {
    __half pair[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = o + i < a.columns.outliers;
      if (o > 2 * thread && inside) gathered[i] = a.columns.outlier_columns[o + i];
      pair[i] = inside ? row[gathered[i]] : __ushort_as_half(0);
    }
    *reinterpret_cast<__half2*>(outliers_to + outlier_position(o)) = __halves2half2(pair[0], pair[1]);
  }
  __syncthreads();

  uint8_t* const to = a.out.codes + token * a.out.code_stride;
  for (int at = 16 * thread; at < stride; at += 16 * threads)
    *reinterpret_cast<uint4*>(to + at) = permuted_codes(codes, at);
  if (thread == 0) {
    a.out.scales[token] = range.scale;
    a.out.zeros[token] = range.zero;
  }
}

template <bool kAligned>
const void* find_kernel(int vectors_per_thread) {
  switch (vectors_per_thread) {
    case 1:
      return reinterpret_cast<const void*>(quantize_kernel<1, kAligned>);
    case 2:
      return reinterpret_cast<const void*>(quantize_kernel<2, kAligned>);
    case 4:
      return reinterpret_cast<const void*>(quantize_kernel<4, kAligned>);
    case 8:
      return reinterpret_cast<const void*>(quantize_kernel<8, kAligned>);
    default:
      return reinterpret_cast<const void*>(quantize_kernel<16, kAligned>);
  }
}

}  // namespace

cudaError_t launch_quantize(const __half* x, int64_t x_stride, int tokens, const Columns& columns, int bits,
                            const Activations& out, cudaStream_t stream) {
  const int integers = columns.k - columns.outliers, vectors = (columns.k + 7) / 8;
  if ((bits != 4 && bits != 8) || columns.k > 65536 || out.code_stride % kCodeUnit != 0 ||
      out.code_stride < integers || out.outlier_stride % kOutlierUnit != 0 ||
      out.outlier_stride < columns.outliers) {
    return cudaErrorInvalidValue;
  }
  int per_thread = 1;
  while (per_thread < 16 && vectors > per_thread * kMaximumThreads / (per_thread < 4 ? 2 : 1))
    per_thread *= 2;
  const int threads = ((vectors + per_thread - 1) / per_thread + 31) / 32 * 32;
  const bool aligned = columns.k % 8 == 0 && x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const void* const kernel = aligned ? find_kernel<true>(per_thread) : find_kernel<false>(per_thread);
  QuantizeArguments arguments = {x, x_stride, columns, integers, (1 << bits) - 1, out};
  const auto bytes = static_cast<size_t>(out.code_stride);
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
      error != cudaSuccess) {
    return error;
  }
  const cuda::DependentLaunch launch({.grid = dim3(static_cast<unsigned>(tokens)),
                                      .block = dim3(static_cast<unsigned>(threads)),
                                      .shared_bytes = bytes},
                                     stream);
  return launch.run_untyped(kernel, arguments);
}

}  // namespace nibble::quik_cuda
