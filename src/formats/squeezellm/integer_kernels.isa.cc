// squeezellm for few tokens, in integers. A level becomes a 16-bit integer in steps of a power of two, 2^-15
// of the next power above the row's largest: exact for F16 levels down to 1/32 of that, and off by 2^-16 of
// it at most below. Its two bytes are looked up and multiplied apart; the product of the two lowest bytes,
// below 2^-24, is left out.
#include "formats/group_int/integer_products.h"
#include "formats/squeezellm/cpu_kernels.h"
#include "formats/squeezellm/levels.h"

namespace nibble::NIBBLE_ISA {
namespace {

// Places of a block of 256 codes of 3 bits (README.md), in the order in which load() finds them.
constexpr ChunkColumns block_columns() {
  ChunkColumns made{};
  for (int i = 0; i < 8; ++i) {
    for (int b = 0; b < 8; ++b) {
      made.columns[8 * i + b] = 16 * i + b;
      made.columns[64 + 8 * i + b] = 16 * i + 8 + b;
      made.columns[128 + 8 * i + b] = 128 + 8 * i + b;
    }
    int32_t* rest = made.columns + 192 + 8 * i;
    for (int odd = 0; odd < 2; ++odd) {
      const int word = 2 * i + odd;
      rest[2 * odd] = 192 + word;
      rest[2 * odd + 1] = 216 + word;
      rest[4 + odd] = 240 + word;
      rest[6 + odd] = i < 4 ? 192 + 16 + word : 216 + 16 + word - 8;
    }
  }
  return made;
}

constexpr ChunkColumns kColumns[] = {interleaved_columns(4), block_columns(), interleaved_columns(2)};

// 3-bit codes after the last whole block are stored differently: such widths are left to the float kernels.
int64_t segment_columns(const SqueezellmLayout& layout) {
  const int64_t chunk = layout.bits == 4 ? 128 : 256;
  return layout.in_features % chunk == 0 ? kMostSegment : 0;
}

IntegerShape shape_of(const SqueezellmLayout& layout) {
  return {.chunk = layout.bits == 4 ? 128 : 256,
          .segment = segment_columns(layout),
          .center = 128,
          .columns = kColumns[layout.bits - 2].columns};
}

// The levels' upper bytes get the center, so that both are unsigned.
struct LevelBytes {
  __m512i high, low;
};

template <int kBits>
struct IntegerTableRows {
  static constexpr int64_t kChunk = kBits == 4 ? 128 : 256;
  static constexpr int kVectors = kChunk / kVectorCodes;
  static constexpr int64_t kChunkBytes = kChunk * kBits / 8;
  static constexpr bool kZeros = false;
  const SqueezellmLayout& layout;
  const IntegerShape shape;

  explicit IntegerTableRows(const SqueezellmLayout& l) : layout(l), shape(shape_of(l)) {}

  struct Row {
    __m512i high, low;  // tables of 64 entries, in which the levels repeat: bits above a code need no masking
    Vec scale;

    void start(const IntegerTableRows& rows, int64_t number) {
      const Vec levels = row_levels<kBits>(rows.layout, number);
      const __m512i magnitudes = _mm512_and_si512(_mm512_castps_si512(levels), _mm512_set1_epi32(0x7fffffff));
      // Far from where the step or its inverse would not be a normal number.
      int biased = _mm512_reduce_max_epi32(magnitudes) >> 23;
      biased = biased < 32 ? 32 : biased;
      const __m512i integers = _mm512_min_epi32(
          _mm512_cvtps_epi32(mul(levels, power_of_two(14 - (biased - 127)))), _mm512_set1_epi32(32767));
      const __m512i centered = _mm512_add_epi32(integers, _mm512_set1_epi32(32768));
      high = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(_mm512_srli_epi32(centered, 8)));
      low = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(centered));
      scale = power_of_two(biased - 127 - 14 + 8 - 21);
    }
    Vec enter(const IntegerTableRows&, int64_t) const { return scale; }
    void load(const uint8_t* p, __m512i* vectors) const {
      if constexpr (kBits == 3) {
        const __m512i words = _mm512_loadu_si512(p);
        const __m256i last = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 64));
        const __m512i spread = _mm512_cvtepu32_epi64(last), twice = _mm512_broadcast_i64x4(last);
        vectors[0] = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x15120f0c09060300), words);
        vectors[1] = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x35322f2c29262320), words);
        vectors[2] = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x15120f0c09060300), spread);
        // What is above the eight codes of each word: one code from each of bits 24 and 27, and two bits of a
        // third, whose highest bit is in the last words.
        const __m512i tops = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x00003e1e3b381b18), words);
        const __m512i rest = _mm512_multishift_epi64_epi8(
            _mm512_set_epi64(0x3b1b3d1d00000000, 0x3b1b3d1d00000000, 0x3b1b3d1d00000000, 0x3b1b3d1d00000000,
                             0x38183c1c00000000, 0x38183c1c00000000, 0x38183c1c00000000, 0x38183c1c00000000),
            twice);
        vectors[3] = _mm512_ternarylogic_epi64(_mm512_set1_epi64(0x00000303ffffffff), tops, rest, 0xca);
      } else {
        const __m512i bytes = _mm512_loadu_si512(p);
        vectors[0] = bytes;
#pragma GCC unroll 4
        for (int v = 1; v < kVectors; ++v) vectors[v] = _mm512_srli_epi16(bytes, kBits * v);
      }
    }
    LevelBytes weights(__m512i codes) const {
      return {_mm512_permutexvar_epi8(codes, high), _mm512_permutexvar_epi8(codes, low)};
    }
    void add(const LevelBytes& level, const uint8_t* planes, IntegerSums& sums) const {
      sums.plane[0] = dot_bytes(sums.plane[0], level.high, planes);
      sums.plane[1] = dot_bytes(sums.plane[1], level.high, planes + kVectorCodes);
      sums.plane[2] = dot_bytes(sums.plane[2], level.high, planes + 2 * kVectorCodes);
      sums.plane[1] = dot_bytes(sums.plane[1], level.low, planes);
      sums.plane[2] = dot_bytes(sums.plane[2], level.low, planes + kVectorCodes);
    }
  };

  float finish(int64_t row, float sum, const float* x) const { return finish_row(layout, row, sum, x); }
};

int64_t token_bytes(const SqueezellmLayout& layout) {
  return prepared_bytes(shape_of(layout), layout.in_features);
}

void prepare(const SqueezellmLayout& layout, const float* x, uint8_t* out) {
  prepare_token(shape_of(layout), x, layout.in_features, out);
}

void multiply(const SqueezellmLayout& layout, int64_t first, int64_t rows, const uint8_t* prepared,
              const float* plain, int64_t tokens, float* y, int64_t y_stride) {
  switch (layout.bits) {
    case 2:
      return multiply_integers(IntegerTableRows<2>(layout), first, rows, prepared, plain, tokens, y,
                               y_stride);
    case 3:
      return multiply_integers(IntegerTableRows<3>(layout), first, rows, prepared, plain, tokens, y,
                               y_stride);
    case 4:
      return multiply_integers(IntegerTableRows<4>(layout), first, rows, prepared, plain, tokens, y,
                               y_stride);
    default:
      __builtin_trap();
  }
}

}  // namespace

extern const IntegerKernels<SqueezellmLayout> kSqueezellmIntegerKernels;
const IntegerKernels<SqueezellmLayout> kSqueezellmIntegerKernels = {.most_tokens = kGemvLimit,
                                                                    .segment = segment_columns,
                                                                    .token_bytes = token_bytes,
                                                                    .prepare = prepare,
                                                                    .multiply = multiply};

}  // namespace nibble::NIBBLE_ISA
