// A block multiplies a tile of outputs (the products' rows) by tokens. A ring of stages in shared memory,
// filled by asynchronous copies, brings slabs of the columns: 64 bytes of every token's codes and the same
// columns of the weights, as they lie in memory. Both are packed so that lane l of a warp finds its operand
// registers at byte 16 l of every 512: no shuffles, no bank conflicts.
//
//   integer slabs   128 columns in 4 bits, or 64 in 8 bits; INT32 sums
//   then the sums become floats in their registers: zero points, scales, bias
//   outlier slabs   32 FP16 columns on top of them
//   last            through shared memory, so that rows of y are written in vectors
#include "backend/cuda/async_copy.cuh"
#include "backend/cuda/mma_int4.cuh"
#include "backend/cuda/mma_int8.cuh"
#include "backend/cuda/ptx.cuh"
#include "formats/quik/cuda/mma_layout.h"
#include "formats/quik/cuda/mma_product.h"

namespace nibble::quik_cuda {
namespace {

using group_int_a8_cuda::FewTokensOperand;
using group_int_a8_cuda::FewTokensShape;
using group_int_a8_cuda::kTileRows;

constexpr int kWarps = 4, kThreads = 32 * kWarps, kRowBytes = 64, kVectorBytes = 512;

enum class Arithmetic { kInt4, kInt4TimesInt8, kInt8 };

// How a block's warps share its tile, and the depth of its ring: 48 KiB at most, which two blocks have even
// where a multiprocessor has 100 KiB.
struct Tile {
  int output_tiles, token_tiles, output_warps, stages;  // of a warp, in 16 outputs and 8 tokens
  constexpr int outputs() const { return kTileRows * output_tiles * output_warps; }
  constexpr int tokens() const { return 8 * token_tiles * (kWarps / output_warps); }
  constexpr int weight_bytes() const { return outputs() / kTileRows * 2 * kVectorBytes; }
  constexpr int stage_bytes() const { return weight_bytes() + tokens() * kRowBytes; }
  constexpr int shared_bytes() const { return stages * stage_bytes(); }
  constexpr int staged_row() const { return outputs() + 8; }  // halves of a token's row on its way out
};
constexpr Tile kPromptTile = {4, 8, 2, 3}, kDecodeTile = {1, 2, 4, 8};
static_assert(kPromptTile.shared_bytes() <= 48 << 10 && kDecodeTile.shared_bytes() <= 48 << 10);
static_assert(2 * kPromptTile.tokens() * kPromptTile.staged_row() <= kPromptTile.shared_bytes());

struct Arguments {
  const uint8_t* weights;
  int64_t tile_bytes;
  const float* scales;
  const int32_t* code_sums;
  const float* bias;
  Activations activations;
  int n, tokens, outliers, integer_slabs, outlier_slabs, outlier_offset;
  __half* y;
  int64_t y_stride;
  int32_t* accumulators;
};

// d += a b with FP32 sums, of which d holds the bits: sums of integers and of floats share their registers.
__device__ inline void multiply_halves(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <Arithmetic kArithmetic, bool kDecode>
struct MmaProduct {
  static constexpr Tile kTile = kDecode ? kDecodeTile : kPromptTile;
  // Bytes of 16 outputs' weights in a slab.
  static constexpr int kSlabBytes = (kArithmetic == Arithmetic::kInt4TimesInt8 ? 1 : 2) * kVectorBytes;
  using Sums = int32_t[kTile.output_tiles][kTile.token_tiles][4];

  const Arguments& a;
  uint8_t* const shared;
  const int first_token = static_cast<int>(blockIdx.x) * kTile.tokens();
  const int first_output = static_cast<int>(blockIdx.y) * kTile.outputs();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_output = warp % kTile.output_warps * kTile.output_tiles;  // in 16 outputs
  const int warp_token = warp / kTile.output_warps * kTile.token_tiles;    // in 8 tokens

  __device__ uint8_t* stage(int slab) const { return shared + slab % kTile.stages * kTile.stage_bytes(); }

  // Starts the copies of slab `slab`, outliers counted behind the integers.
  __device__ void fetch(int slab) const {
    const bool integers = slab < a.integer_slabs;
    const int place = integers ? slab : slab - a.integer_slabs;
    const int bytes = integers ? kSlabBytes : 2 * kVectorBytes;  // of 16 outputs
    const uint8_t* const weights = a.weights + (integers ? 0 : a.outlier_offset) + int64_t{place} * bytes;
    const uint32_t to = ptx::shared_address(stage(slab));
    for (int at = 16 * static_cast<int>(threadIdx.x); at < kTile.outputs() / kTileRows * bytes;
         at += 16 * kThreads) {
      const int tile = at / bytes, row = first_output + kTileRows * tile;
      const uint8_t* const from = weights + (row / kTileRows) * a.tile_bytes + at % bytes;
      ptx::copy_async(to + at, row < a.n ? from : a.weights, row < a.n ? 16 : 0);
    }
    const auto* const rows =
        integers ? a.activations.codes : reinterpret_cast<const uint8_t*>(a.activations.outliers);
    const int64_t stride = integers ? a.activations.code_stride : 2 * a.activations.outlier_stride;
    const int row_bytes = integers ? static_cast<int>(a.activations.code_stride) : 2 * a.outliers;
    for (int at = 16 * static_cast<int>(threadIdx.x); at < kTile.tokens() * kRowBytes; at += 16 * kThreads) {
      const int token = first_token + at / kRowBytes, byte = place * kRowBytes + at % kRowBytes;
      const int there = token < a.tokens ? min(max(row_bytes - byte, 0), 16) : 0;
      ptx::copy_async(to + kTile.weight_bytes() + at, there > 0 ? rows + token * stride + byte : rows, there);
    }
  }

  __device__ uint4 weights_of(int slab, int tile, int slab_bytes, int vector) const {
    return *reinterpret_cast<const uint4*>(stage(slab) + (warp_output + tile) * slab_bytes +
                                           vector * kVectorBytes + 16 * lane);
  }
  __device__ void load_tokens(int slab, uint4 (&b)[kTile.token_tiles]) const {
#pragma unroll
    for (int j = 0; j < kTile.token_tiles; ++j) {
      b[j] = *reinterpret_cast<const uint4*>(stage(slab) + kTile.weight_bytes() +
                                             (warp_token + j) * 8 * kRowBytes + 16 * lane);
    }
  }

  // sums += one product per step 0 and 1 of a slab; `operand(tile, step)` is the weights' Registers.
  template <typename Operand, typename Multiply>
  __device__ void multiply(int slab, Sums& sums, const Operand& operand, const Multiply& product) const {
    uint4 b[kTile.token_tiles];
    load_tokens(slab, b);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int tile = 0; tile < kTile.output_tiles; ++tile) {
        const Registers registers = operand(tile, step);
#pragma unroll
        for (int j = 0; j < kTile.token_tiles; ++j) {
          product(sums[tile][j], registers.word, step == 0 ? b[j].x : b[j].z, step == 0 ? b[j].y : b[j].w);
        }
      }
    }
  }

  __device__ void multiply_integers(int slab, Sums& sums) const {
    const auto operand = [&](int tile, int step) -> Registers {
      const uint4 v =
          weights_of(slab, tile, kSlabBytes, kArithmetic == Arithmetic::kInt4TimesInt8 ? 0 : step);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      if constexpr (kArithmetic == Arithmetic::kInt4) {
        return pair_codes(words);
      } else if constexpr (kArithmetic == Arithmetic::kInt4TimesInt8) {
        return expand_codes(words, step);
      } else {
        return {{v.x, v.y, v.z, v.w}};
      }
    };
    multiply(slab, sums, operand, [](int32_t(&d)[4], const uint32_t(&words)[4], uint32_t b0, uint32_t b1) {
      if constexpr (kArithmetic == Arithmetic::kInt4) {
        ptx::mma_16x8x64(d, words, b0, b1);
      } else {
        ptx::mma_16x8x32<true>(d, words, b0, b1);
      }
    });
  }

  __device__ void multiply_outliers(int slab, Sums& sums) const {
    const auto operand = [&](int tile, int step) -> Registers {
      const uint4 v = weights_of(slab, tile, 2 * kVectorBytes, step);
      return {{v.x, v.y, v.z, v.w}};
    };
    multiply(slab, sums, operand, [](int32_t(&d)[4], const uint32_t(&words)[4], uint32_t b0, uint32_t b1) {
      multiply_halves(d, words, b0, b1);
    });
  }

  // Lane 4 g + q has outputs g and g + 8 of a tile and tokens 2 q, 2 q + 1: element e is output g + 8 (e /
  // 2).
  __device__ int output_of(int tile, int e) const {
    return kTileRows * (warp_output + tile) + lane / 4 + 8 * (e / 2);
  }
  __device__ int token_of(int j, int e) const { return 8 * (warp_token + j) + 2 * (lane % 4) + e % 2; }

  // Sums of codes to the bits of FP32 outputs, outliers still missing.
  __device__ void finish_integers(Sums& sums) const {
#pragma unroll
    for (int tile = 0; tile < kTile.output_tiles; ++tile) {
      float scales[2], biases[2];
      int32_t code_sums[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int output = min(first_output + output_of(tile, 2 * half), a.n - 1);
        scales[half] = __ldg(a.scales + output);
        code_sums[half] = __ldg(a.code_sums + output);
        biases[half] = a.bias != nullptr ? __ldg(a.bias + output) : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kTile.token_tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int output = first_output + output_of(tile, e), token = first_token + token_of(j, e);
          const int known = min(token, a.tokens - 1);
          int32_t sum = sums[tile][j][e];
          if constexpr (kArithmetic == Arithmetic::kInt4TimesInt8) sum >>= 4;  // weights were 16 times theirs
          if (a.accumulators != nullptr && output < a.n && token < a.tokens)
            a.accumulators[int64_t{token} * a.n + output] = sum;
          const float corrected =
              static_cast<float>(sum - __ldg(a.activations.zeros + known) * code_sums[e / 2]);
          const float scale = __ldg(a.activations.scales + known) * scales[e / 2];
          sums[tile][j][e] = __float_as_int(fmaf(corrected, scale, biases[e / 2]));
        }
      }
    }
  }

  __device__ void store(const Sums& sums) const {
    auto* const staged = reinterpret_cast<__half*>(shared);
#pragma unroll
    for (int tile = 0; tile < kTile.output_tiles; ++tile) {
#pragma unroll
      for (int j = 0; j < kTile.token_tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          staged[token_of(j, e) * kTile.staged_row() + output_of(tile, e)] =
              __float2half_rn(__int_as_float(sums[tile][j][e]));
        }
      }
    }
    __syncthreads();
    constexpr int kVectors = kTile.outputs() / 8;
    for (int i = threadIdx.x; i < kTile.tokens() * kVectors; i += kThreads) {
      const int token = first_token + i / kVectors, output = first_output + i % kVectors * 8;
      if (token >= a.tokens || output >= a.n) continue;
      const __half* const from = staged + i / kVectors * kTile.staged_row() + i % kVectors * 8;
      __half* const to = a.y + token * a.y_stride + output;
      if (output + 8 <= a.n && a.y_stride % 8 == 0) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
        for (int e = 0; e < 8 && output + e < a.n; ++e) to[e] = from[e];
      }
    }
  }

  __device__ void run() const {
    const int slabs = a.integer_slabs + a.outlier_slabs;
    Sums sums = {};
#pragma unroll 1
    for (int slab = 0; slab < kTile.stages - 1; ++slab) {
      if (slab < slabs) fetch(slab);
      ptx::commit_copies();
    }
    const auto next = [&](int slab) {
      ptx::wait_for_copies<kTile.stages - 2>();
      __syncthreads();  // slab has come for everyone, and everyone has left the one before it
      if (slab + kTile.stages - 1 < slabs) fetch(slab + kTile.stages - 1);
      ptx::commit_copies();
    };
#pragma unroll 1
    for (int slab = 0; slab < a.integer_slabs; ++slab) {
      next(slab);
      multiply_integers(slab, sums);
    }
    finish_integers(sums);
#pragma unroll 1
    for (int slab = a.integer_slabs; slab < slabs; ++slab) {
      next(slab);
      multiply_outliers(slab, sums);
    }
    ptx::wait_for_copies<0>();
    __syncthreads();
    store(sums);
  }
};

template <Arithmetic kArithmetic, bool kDecode>
__global__ void __launch_bounds__(kThreads, 2) mma_product_kernel(const Arguments arguments) {
  extern __shared__ __align__(16) uint8_t shared[];
  MmaProduct<kArithmetic, kDecode>{arguments, shared}.run();
}

template <Arithmetic kArithmetic, bool kDecode>
cudaError_t launch(const Arguments& arguments, cudaStream_t stream) {
  constexpr Tile kTile = kDecode ? kDecodeTile : kPromptTile;
  const dim3 grid((arguments.tokens + kTile.tokens() - 1) / kTile.tokens(),
                  (arguments.n + kTile.outputs() - 1) / kTile.outputs());
  mma_product_kernel<kArithmetic, kDecode><<<grid, kThreads, kTile.shared_bytes(), stream>>>(arguments);
  return cudaGetLastError();
}

template <Arithmetic kArithmetic>
cudaError_t launch(const Arguments& arguments, cudaStream_t stream) {
  return arguments.tokens <= kDecodeTile.tokens() ? launch<kArithmetic, true>(arguments, stream)
                                                  : launch<kArithmetic, false>(arguments, stream);
}

}  // namespace

int mma_code_bytes(int columns, int weight_bits, int activation_bits) {
  return multiplies_in_4_bits(weight_bits, activation_bits)
             ? paired_code_bytes(columns)
             : (columns + kRowBytes - 1) / kRowBytes * kRowBytes;
}

cudaError_t launch_mma_product(const FewTokensOperand& weights, int activation_bits,
                               const Activations& activations, int tokens, __half* y, int64_t y_stride,
                               int32_t* accumulators, cudaStream_t stream) {
  const FewTokensShape& shape = weights.shape;
  const bool in_4_bits = multiplies_in_4_bits(shape.weight_bits, activation_bits);
  const int columns = static_cast<int>(shape.columns), outliers = static_cast<int>(shape.outliers);
  const int code_bytes = mma_code_bytes(columns, shape.weight_bits, activation_bits);
  if (weights.form != group_int_a8_cuda::FewTokensForm::kRows || tokens < 1 || shape.columns < 1 ||
      activations.code_stride % kRowBytes != 0 || activations.code_stride < code_bytes) {
    return cudaErrorInvalidValue;
  }
  const Arguments arguments = {.weights = weights.slots,
                               .tile_bytes = shape.tile_bytes(),
                               .scales = weights.row_scales,
                               .code_sums = weights.code_sums,
                               .bias = weights.bias,
                               .activations = activations,
                               .n = static_cast<int>(shape.n),
                               .tokens = tokens,
                               .outliers = outliers,
                               .integer_slabs = code_bytes / kRowBytes,
                               .outlier_slabs = (2 * outliers + kRowBytes - 1) / kRowBytes,
                               .outlier_offset = static_cast<int>(shape.integer_slots() * shape.slot_bytes()),
                               .y = y,
                               .y_stride = y_stride,
                               .accumulators = accumulators};
  if (in_4_bits) return launch<Arithmetic::kInt4>(arguments, stream);
  return shape.weight_bits == 4 ? launch<Arithmetic::kInt4TimesInt8>(arguments, stream)
                                : launch<Arithmetic::kInt8>(arguments, stream);
}

}  // namespace nibble::quik_cuda
