// A block takes token after token and holds a row in registers from the range to the codes: x is read once. Codes are
// packed side by side in shared memory (outliers fall out), then written in the order of prompt_layout.h.
#include "backend/cuda/ptx.cuh"
#include "formats/quik/cuda/product.h"
#include "formats/quik/cuda/prompt_layout.h"
#include "formats/quik/cuda/token_codes.h"

namespace nibble::quik_cuda {
namespace {

constexpr int kMaximumThreads = 512;

struct QuantizeArguments {
  const __half* x;
  int64_t x_stride;
  int tokens, k, columns, outliers, top;
  const uint32_t* words;  // [k / 8 rounded up]
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

// 16 ones for every of two columns that is not an outlier.
__device__ inline uint32_t kept_pair(uint32_t word, int pair) {
  const uint32_t bits = word >> (2 * pair);
  return ((bits & 1) ? 0u : 0xFFFFu) | ((bits & 2) ? 0u : 0xFFFF0000u);
}

__device__ inline __half2 as_pair(uint32_t bits) { return reinterpret_cast<const __half2&>(bits); }

// Least and greatest value of the columns that are kept, zero included. Comparisons of halves are exact, and a NaN
// stays.
template <int kVectors>
__device__ inline void find_range(const uint4 (&x)[kVectors], const uint32_t (&words)[kVectors], __half2& low,
                                  __half2& high) {
  low = high = __float2half2_rn(0.0f);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const uint32_t pairs[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const __half2 kept = as_pair(pairs[p] & kept_pair(words[i], p));
      low = __hmin2_nan(low, kept);
      high = __hmax2_nan(high, kept);
    }
  }
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    low = __hmin2_nan(low, __shfl_xor_sync(0xffffffffu, low, lane));
    high = __hmax2_nan(high, __shfl_xor_sync(0xffffffffu, high, lane));
  }
}

// kVectors times 8 columns per thread. While a row is being worked on, the block's next one is on its way.
template <int kVectors, bool kAligned>
__global__ void __launch_bounds__(kMaximumThreads, kVectors > 4 ? 1 : 2) quantize_kernel(const QuantizeArguments a) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ __half2 lows[kMaximumThreads / 32], highs[kMaximumThreads / 32];
  uint8_t* const codes = shared;
  __half* const outliers = reinterpret_cast<__half*>(shared + a.out.code_stride);
  const int thread = threadIdx.x, threads = blockDim.x, vectors = (a.k + 7) / 8;

  uint32_t words[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = i * threads + thread;
    words[i] = v < vectors ? __ldg(a.words + v) : 0xFF;
  }
  // What no row writes: padding after the last code and the last outlier.
  for (int i = a.columns + thread; i < a.out.code_stride; i += threads) codes[i] = 0;
  for (int i = a.outliers + thread; i < a.out.outlier_stride; i += threads) outliers[i] = __ushort_as_half(0);
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();

  uint4 next[kVectors];
  const auto load = [&](int token) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = i * threads + thread;
      next[i] = v < vectors ? load_vector<kAligned>(a.x + token * a.x_stride, v, a.k) : make_uint4(0, 0, 0, 0);
    }
  };
  constexpr bool kAhead = kVectors <= 8;  // where registers hold two rows
  if (kAhead) load(blockIdx.x);
  for (int token = blockIdx.x; token < a.tokens; token += gridDim.x) {
    uint4 x[kVectors];
    if (!kAhead) load(token);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      x[i] = next[i];
      asm volatile("" : "+r"(words[i]));  // or all that follows from them is kept in registers over the rows
    }
    __half2 low, high;
    find_range(x, words, low, high);
    if (kAhead && token + gridDim.x < a.tokens) load(token + gridDim.x);
    if (thread % 32 == 0) {
      lows[thread / 32] = low;
      highs[thread / 32] = high;
    }
    __syncthreads();
    for (int i = 0; i < threads / 32; ++i) {
      low = __hmin2_nan(low, lows[i]);
      high = __hmax2_nan(high, highs[i]);
    }
    const float lo = __half2float(__hmin_nan(__low2half(low), __high2half(low)));
    const float hi = __half2float(__hmax_nan(__low2half(high), __high2half(high)));
    const CodeRange range = code_range(lo, hi, a.top);
    const CodeRule rule = code_rule(range, a.top);

#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = i * threads + thread;
      if (v >= vectors) break;
      const uint32_t pairs[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
      const int before = static_cast<int>(words[i] >> 8);
      uint8_t* to = codes + 8 * v - before;
      __half* outlier = outliers + before;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const __half value = e % 2 == 0 ? __low2half(as_pair(pairs[e / 2])) : __high2half(as_pair(pairs[e / 2]));
        const auto code = static_cast<uint8_t>(code_of(__half2float(value), rule));
        const bool kept = (words[i] >> e & 1) == 0;
        if (kept) *to = code;
        // Columns beyond k are marked as outliers too.
        if (!kept && (kAligned || outlier < outliers + a.outliers)) *outlier = value;
        to += kept ? 1 : 0;
        outlier += kept ? 0 : 1;
      }
    }
    __syncthreads();

    // 16 bytes at p of a unit are words p / 16 % 2 + 2 (p / 32 % 2) + 4 q of its 16.
    const auto* const code_words = reinterpret_cast<const uint32_t*>(codes);
    auto* const to = reinterpret_cast<uint4*>(a.out.codes + token * a.out.code_stride);
    for (int piece = thread; piece < a.out.code_stride / 16; piece += threads) {
      const uint32_t* const from = code_words + piece / 4 * 16 + piece % 4;
      static_assert(code_position(4) == 16 && code_position(8) == 32 && code_position(16) == 4 && kCodeUnit == 64);
      to[piece] = make_uint4(from[0], from[4], from[8], from[12]);
    }
    // 8 outliers at p of a unit of 32 are pairs p / 8 % 2 + 2 (p / 16) + 4 q of its 16.
    const auto* const outlier_pairs = reinterpret_cast<const uint32_t*>(outliers);
    auto* const outliers_to = reinterpret_cast<uint4*>(a.out.outliers + token * a.out.outlier_stride);
    for (int piece = thread; piece < a.out.outlier_stride / 8; piece += threads) {
      const uint32_t* const from = outlier_pairs + piece / 4 * 16 + piece % 4;
      static_assert(outlier_position(2) == 8 && outlier_position(4) == 16 && outlier_position(8) == 2);
      outliers_to[piece] = make_uint4(from[0], from[4], from[8], from[12]);
    }
    if (thread == 0) {
      a.out.scales[token] = range.scale;
      a.out.zeros[token] = range.zero;
    }
  }
}

template <bool kAligned>
const void* find_kernel(int vectors_per_thread) {
  switch (vectors_per_thread) {
    case 1: return reinterpret_cast<const void*>(quantize_kernel<1, kAligned>);
    case 2: return reinterpret_cast<const void*>(quantize_kernel<2, kAligned>);
    case 4: return reinterpret_cast<const void*>(quantize_kernel<4, kAligned>);
    case 8: return reinterpret_cast<const void*>(quantize_kernel<8, kAligned>);
    default: return reinterpret_cast<const void*>(quantize_kernel<16, kAligned>);
  }
}

}  // namespace

cudaError_t launch_quantize(const __half* x, int64_t x_stride, int tokens, int k, const uint32_t* words, int outliers,
                            int bits, const Activations& out, cudaStream_t stream) {
  const int columns = k - outliers, vectors = (k + 7) / 8;
  if ((bits != 4 && bits != 8) || k > 65536 || out.code_stride % kCodeUnit != 0 || out.code_stride < columns ||
      out.outlier_stride % kOutlierUnit != 0 || out.outlier_stride < outliers) {
    return cudaErrorInvalidValue;
  }
  int per_thread = 1;
  while (per_thread < 16 && vectors > per_thread * kMaximumThreads / (per_thread < 4 ? 2 : 1)) per_thread *= 2;
  const int threads = ((vectors + per_thread - 1) / per_thread + 31) / 32 * 32;
  const bool aligned = k % 8 == 0 && x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const void* const kernel = aligned ? find_kernel<true>(per_thread) : find_kernel<false>(per_thread);
  QuantizeArguments arguments = {x, x_stride, tokens, k, columns, outliers, (1 << bits) - 1, words, out};
  const auto bytes = static_cast<size_t>(out.code_stride + 2 * out.outlier_stride);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  int device = 0, multiprocessors = 0, resident = 0;
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, bytes);
  if (error != cudaSuccess) return error;
  // As many blocks as are resident at once, each with as many rows as the others.
  const int rows = (tokens + multiprocessors * resident - 1) / (multiprocessors * resident);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((tokens + rows - 1) / rows);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  void* pointers[] = {&arguments};
  return cudaLaunchKernelExC(&config, kernel, pointers);
}

}  // namespace nibble::quik_cuda
