// Unsigned activation codes of few tokens, and their outlier columns.
#include "formats/group_int_a8/cuda/few_tokens_quantize.cuh"
#include "formats/quik/cuda/few_tokens.h"
#include "formats/quik/cuda/mma_layout.h"

namespace nibble::quik_cuda {
namespace {

using namespace few_tokens;

// The places of eight columns; outliers beyond k.
struct Places {
  int of[8];
};
__device__ inline Places load_places(const int32_t* places, int column, int k) {
  Places eight;
  if (k % 8 == 0 && column < k) {
    const int4 first = __ldg(reinterpret_cast<const int4*>(places + column)),
               second = __ldg(reinterpret_cast<const int4*>(places + column) + 1);
    return {{first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w}};
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) eight.of[i] = column + i < k ? __ldg(places + column + i) : -1;
  return eight;
}

// Byte `at` to `at` + 15 of a row of paired codes, from one code per byte.
__device__ inline uint4 load_paired(const uint8_t* codes, int at) {
  static_assert(paired_code_byte(16) == 16 && paired_code_byte(64) == 8 && paired_code_byte(8) == 4 &&
                paired_code_byte(4) == 0 && paired_code_shift(4) == 4);
  const auto* const from = reinterpret_cast<const uint4*>(codes + at / 64 * kPairedUnit + at % 64);
  const uint4 a = from[0], b = from[4];  // the same lane's columns of both products
  return make_uint4(pair_low_nibbles(a.x, a.y), pair_low_nibbles(a.z, a.w), pair_low_nibbles(b.x, b.y),
                    pair_low_nibbles(b.z, b.w));
}

// Codes gather in shared memory, because their places are no runs of columns.
template <int kTurns>
__global__ void __launch_bounds__(kThreads, kTurns > 4 ? 1 : 2)
    quantize_kernel(const __half* x, int k, const FewTokensColumns columns, int bits,
                    const FewTokensCodes out) {
  extern __shared__ __align__(16) uint8_t row_codes[];
  __shared__ uint32_t of_warps[2][kThreads / 32];
  ptx::launch_dependents();
  // The places depend on nothing: few of them wait in registers, more are read a second time from the cache.
  constexpr int kKept = kTurns <= 2 ? kTurns : 1;
  Places kept[kKept];
  const int first_column = static_cast<int>(threadIdx.x) * 8;
#pragma unroll
  for (int i = 0; i < kKept; ++i)
    kept[i] = load_places(columns.places, i * kColumnsPerTurn + first_column, k);
  const auto places_of = [&](int turn) {
    return turn < kKept ? kept[turn < kKept ? turn : 0]
                        : load_places(columns.places, turn * kColumnsPerTurn + first_column, k);
  };
  const int padded = static_cast<int>(out.code_stride) * (out.paired ? 2 : 1);
  for (int j = threadIdx.x * 16; j < padded; j += kThreads * 16) {
    *reinterpret_cast<uint4*>(row_codes + j) = make_uint4(0, 0, 0, 0);
  }
  ptx::wait_for_previous_kernel();
  const int token = blockIdx.x;
  const __half* const row = x + int64_t{token} * k;
  uint4 eights[kTurns];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) eights[i] = load_eight(row, i * kColumnsPerTurn + first_column, k);
  uint32_t lowest = 0, highest = 0;  // magnitudes of the smallest and the largest
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const Places places = places_of(turn);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t bits = places.of[i] < 0 ? 0 : half_bits(eights[turn], i);
      if (bits >= 0x8000) {
        lowest = max(lowest, bits & 0x7FFF);
      } else {
        highest = max(highest, bits);
      }
    }
  }
  const uint32_t range = block_maximum(lowest | highest << 16, of_warps);
  const bool finite = (range & 0xFFFF) < kInfinityBits && range >> 16 < kInfinityBits;
  float low = magnitude(range & 0xFFFF);  // minus the smallest
  const int top = (1 << bits) - 1;
  float scale = __fdiv_rn(magnitude(range >> 16) + low, static_cast<float>(top));
  if (scale == 0.0f) {
    low = 1.0f;
    scale = __fdiv_rn(2.0f, static_cast<float>(top));
  }
  const int zero = finite ? __float2int_rn(__fdiv_rn(low, scale)) : 0;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int column = turn * kColumnsPerTurn + first_column;
    if (column >= k) break;
    const Places places = places_of(turn);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i >= k) break;
      const int place = places.of[i];
      if (place < 0) {
        out.outliers[int64_t{token} * out.outlier_stride + ~place] =
            __ushort_as_half(static_cast<unsigned short>(half_bits(eights[turn], i)));
      } else if (finite) {
        const int code = __float2int_rn(__fdiv_rn(half_value(eights[turn], i), scale)) + zero;
        row_codes[place] = static_cast<uint8_t>(min(max(code, 0), top));
      }
    }
  }
  __syncthreads();
  for (int j = threadIdx.x * 16; j < out.code_stride; j += kThreads * 16) {
    *reinterpret_cast<uint4*>(out.codes + int64_t{token} * out.code_stride + j) =
        out.paired ? load_paired(row_codes, j) : *reinterpret_cast<const uint4*>(row_codes + j);
  }
  if (threadIdx.x == 0) {
    out.scales[token] = finite ? scale : __int_as_float(0x7FC00000);
    out.zeros[token] = zero;
  }
}

}  // namespace

cudaError_t launch_quantize_few(const __half* x, int tokens, int k, const FewTokensColumns& columns, int bits,
                                const FewTokensCodes& out, cudaStream_t stream) {
  if ((bits != 4 && bits != 8) || out.code_stride % (out.paired ? 64 : 16) != 0 || (out.paired && bits != 4))
    return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(out.code_stride) * (out.paired ? 2 : 1);
  return for_turns(k, [&]<int kTurns>() {
    if (bytes > 48 << 10) {
      if (const cudaError_t error = cudaFuncSetAttribute(
              quantize_kernel<kTurns>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
          error != cudaSuccess) {
        return error;
      }
    }
    return token_launch(tokens, kThreads, bytes, stream)
        .run(quantize_kernel<kTurns>, x, k, columns, bits, out);
  });
}

}  // namespace nibble::quik_cuda
