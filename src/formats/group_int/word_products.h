// Few tokens times rows of codes in integers, for AVX2. Included only by *.isa.cc sources; everything has
// internal linkage.
//
// Columns are cut into chunks, the codes of one of which come from one load of a row, and these into vectors
// of 16 weights, a 16-bit word each. Within a segment of columns (at most 512, inside of one group) an
// activation x is
//   X = 2^12 a + b = x 2^(23 - e),  |a|, |b| <= 2^11,  2^e above the segment's largest |x|,
// so that dot products of words with a and b (VPMADDWD) add exactly what a float product would round. What a
// row makes of the sums is one float per lane and segment. (With AVX-512 bytes are faster:
// integer_products.h.)
#pragma once

#include "formats/group_int/segment_scale.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr int64_t kWords = 16;                 // of one vector
constexpr int64_t kVectorPlanes = 2 * kWords;  // words of a vector's activations: a, then b
constexpr int64_t kWordPass = 2;               // tokens of one pass over the codes
constexpr int64_t kWordPrefetch = 4096;
constexpr int kWordRows = 2;

// What a segment's sums start from and are scaled by. Lanes are those of the sums: two words of every vector
// each.
struct alignas(32) WordSegment {
  int32_t starts[2][8];  // minus the center of the codes times the lane's sum of a, b
  float sums[2][8];      // the lane's sums of a, b
  float exponent;        // x = X 2^-21 exponent
};

// How a format lays a chunk out: columns[i] of the chunk is in place i of its vectors.
struct WordShape {
  int64_t chunk;    // columns, a multiple of 16
  int64_t segment;  // columns, a multiple of chunk
  int center;       // subtracted from every weight
  const int32_t* columns;
};

inline int64_t word_segments(const WordShape& shape, int64_t k) {
  return (k + shape.segment - 1) / shape.segment;
}
// A prepared token: its segments, then its vectors' activations.
inline int64_t word_token_bytes(const WordShape& shape, int64_t k) {
  return word_segments(shape, k) * static_cast<int64_t>(sizeof(WordSegment)) +
         k / kWords * kVectorPlanes * static_cast<int64_t>(sizeof(int16_t));
}

inline __m256i load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_words(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// The planes of 16 activations, x[columns[0]], x[columns[1]], ..., times the two factors, and their lanes'
// sums.
inline void prepare_words(const float* x, const int32_t* columns, Vec factor0, Vec factor1, int16_t* planes,
                          __m256i* sums) {
  __m256i a[2], b[2];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Vec values = _mm256_i32gather_ps(x, load_words(columns + half * 8), 4);
    const __m256i whole = _mm256_cvtps_epi32(mul(mul(values, factor0), factor1));
    a[half] = _mm256_srai_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(1 << 11)), 12);
    b[half] = _mm256_sub_epi32(whole, _mm256_slli_epi32(a[half], 12));
  }
  const auto place = [&](int plane, const __m256i* halves) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(halves[0], halves[1]), 0xd8);
    store_words(planes + plane * kWords, words);
    sums[plane] = _mm256_add_epi32(sums[plane], _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
  };
  place(0, a), place(1, b);
}

// k is a multiple of the chunk.
void prepare_word_token(const WordShape& shape, const float* x, int64_t k, uint8_t* out) {
  auto* segment = reinterpret_cast<WordSegment*>(out);
  auto* planes = reinterpret_cast<int16_t*>(segment + word_segments(shape, k));
  for (int64_t begin = 0; begin < k; begin += shape.segment, ++segment) {
    const int64_t end = smaller(k, begin + shape.segment);
    __m256i most = _mm256_setzero_si256();
    for (int64_t j = begin; j < end; j += kLanes)
      most = _mm256_max_epi32(most, _mm256_and_si256(load_words(x + j), _mm256_set1_epi32(0x7fffffff)));
    alignas(32) int32_t lanes[8];
    store_words(lanes, most);
    int32_t largest = 0;
    for (const int32_t lane : lanes) largest = largest < lane ? lane : largest;
    const int biased = largest >> 23;  // e is biased - 126
    const SegmentScale scale = {biased, largest < 0x7f800000};
    const auto [factor0, factor1] = scale.factors();
    __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t chunk = begin; chunk < end; chunk += shape.chunk) {
      for (int64_t v = 0; v < shape.chunk; v += kWords, planes += kVectorPlanes)
        prepare_words(x + chunk, shape.columns + v, factor0, factor1, planes, sums);
    }
#pragma GCC unroll 2
    for (int plane = 0; plane < 2; ++plane) {
      store_words(segment->starts[plane], _mm256_mullo_epi32(sums[plane], _mm256_set1_epi32(-shape.center)));
      store(segment->sums[plane], _mm256_cvtepi32_ps(sums[plane]));
    }
    segment->exponent = scale.exponent();
  }
}

// A Rows has a layout, `shape`, kVectors of a chunk, kChunkBytes of a row's codes, and
//   struct Row: start(rows, row number); enter(rows, segment): returns the scale of the segment's sums times
//   2^-21; load(p, vectors): the kVectors vectors of a chunk at p;
//     kZeros and zero: what weights are zero at beside the center.
template <typename Rows, int kTokens>
void word_rows(const Rows& source, int64_t first, int64_t rows, const uint8_t* prepared, int64_t token_stride,
               const float* plain, float* y, int64_t y_stride) {
  const auto& layout = source.layout;
  const int64_t k = layout.in_features, segments = word_segments(source.shape, k);
  const uint8_t* codes[kWordRows];
  typename Rows::Row row[kWordRows];
#pragma GCC unroll 2
  for (int r = 0; r < kWordRows; ++r) {
    const int64_t number = first + smaller(r, rows - 1);  // rows that are missing repeat the last one
    codes[r] = layout.codes + number * layout.row_bytes;
    row[r].start(source, number);
  }
  const int64_t block_bytes = kWordRows * layout.row_bytes;
  const uint8_t* ahead = codes[0] + (block_bytes > kWordPrefetch ? block_bytes : kWordPrefetch);
  const uint8_t* segment = prepared;
  const uint8_t* planes = prepared + segments * static_cast<int64_t>(sizeof(WordSegment));

  Vec sums[kTokens][kWordRows];
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < kWordRows; ++r) sums[t][r] = zero();
  }
  int64_t at = 0;
  for (int64_t s = 0; s < segments; ++s, segment += sizeof(WordSegment)) {
    Vec scale[kWordRows];
    __m256i products[kTokens][kWordRows][2];
#pragma GCC unroll 2
    for (int r = 0; r < kWordRows; ++r) scale[r] = row[r].enter(source, s);
#pragma GCC unroll 2
    for (int t = 0; t < kTokens; ++t) {
      const auto* own = reinterpret_cast<const WordSegment*>(segment + t * token_stride);
#pragma GCC unroll 2
      for (int r = 0; r < kWordRows; ++r) {
#pragma GCC unroll 2
        for (int plane = 0; plane < 2; ++plane) products[t][r][plane] = load_words(own->starts[plane]);
      }
    }
    const int64_t columns = smaller(source.shape.segment, k - s * source.shape.segment);
    for (int64_t chunk = columns / Rows::kChunk; chunk > 0; --chunk) {
      prefetch(ahead);
      ahead += kWordRows * Rows::kChunkBytes;
#pragma GCC unroll 2
      for (int r = 0; r < kWordRows; ++r) {
        __m256i vectors[Rows::kVectors];
        row[r].load(codes[r] + at, vectors);
#pragma GCC unroll 8
        for (int v = 0; v < Rows::kVectors; ++v) {
#pragma GCC unroll 2
          for (int t = 0; t < kTokens; ++t) {
            const auto* words =
                reinterpret_cast<const int16_t*>(planes + t * token_stride) + v * kVectorPlanes;
#pragma GCC unroll 2
            for (int plane = 0; plane < 2; ++plane) {
              products[t][r][plane] = _mm256_add_epi32(
                  products[t][r][plane], _mm256_madd_epi16(vectors[v], load_words(words + plane * kWords)));
            }
          }
        }
      }
      planes += Rows::kVectors * kVectorPlanes * static_cast<int64_t>(sizeof(int16_t));
      at += Rows::kChunkBytes;
    }
#pragma GCC unroll 2
    for (int t = 0; t < kTokens; ++t) {
      const auto* own = reinterpret_cast<const WordSegment*>(segment + t * token_stride);
#pragma GCC unroll 2
      for (int r = 0; r < kWordRows; ++r) {
        Vec high = _mm256_cvtepi32_ps(products[t][r][0]), low = _mm256_cvtepi32_ps(products[t][r][1]);
        if constexpr (Rows::kZeros) {
          high = _mm256_fnmadd_ps(row[r].zero, load(own->sums[0]), high);
          low = _mm256_fnmadd_ps(row[r].zero, load(own->sums[1]), low);
        }
        sums[t][r] = fma(mul(fma(high, set1(0x1p12f), low), scale[r]), set1(own->exponent), sums[t][r]);
      }
    }
  }
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t) {
    alignas(16) float result[4];
    _mm_store_ps(result, reduce_4(sums[t][0], sums[t][1], zero(), zero()));
    for (int64_t r = 0; r < rows; ++r)
      y[t * y_stride + first + r] = source.finish(first + r, result[r], plain + t * k);
  }
}

// IntegerKernels::multiply for one kind of rows.
template <typename Rows>
void multiply_words(const Rows& source, int64_t first, int64_t rows, const uint8_t* prepared,
                    const float* plain, int64_t tokens, float* y, int64_t y_stride) {
  const int64_t k = source.layout.in_features, stride = word_token_bytes(source.shape, k);
  for (int64_t r = 0; r < rows; r += kWordRows) {
    const int64_t here = smaller(kWordRows, rows - r);
    for (int64_t t = 0; t < tokens; t += kWordPass) {
      const auto multiply = tokens - t >= kWordPass ? word_rows<Rows, kWordPass> : word_rows<Rows, 1>;
      multiply(source, first + r, here, prepared + t * stride, stride, plain + t * k, y + t * y_stride,
               y_stride);
    }
  }
}

// Places of words that hold `codes_per_word` codes each: vector v holds code v of every word.
template <int kCodesPerWord>
struct WordColumns {
  int32_t columns[kWords * kCodesPerWord];
};
template <int kCodesPerWord>
constexpr WordColumns<kCodesPerWord> columns_of_words() {
  WordColumns<kCodesPerWord> made{};
  for (int v = 0; v < kCodesPerWord; ++v) {
    for (int i = 0; i < kWords; ++i) made.columns[v * kWords + i] = i * kCodesPerWord + v;
  }
  return made;
}

// 16 codes of 3 bits from the six bytes of a plain stream that begin `offset` bytes into both halves of
// `bytes`, one to a word.
template <int kOffset>
inline __m256i spread_3_bit_words(__m256i bytes) {
  // Code i is bits [3 i, 3 i + 3), of two bytes at most; behind the last of them nothing is taken.
  constexpr auto window = [](int code) {
    const int first = kOffset + 3 * code / 8, second = first + 1 > 15 ? 0x80 : first + 1;
    return static_cast<int16_t>(first | second << 8);
  };
  constexpr auto factor = [](int code) { return static_cast<int16_t>(1 << (13 - 3 * code % 8)); };
  const __m256i windows = _mm256_setr_epi16(window(0), window(1), window(2), window(3), window(4), window(5),
                                            window(6), window(7), window(8), window(9), window(10),
                                            window(11), window(12), window(13), window(14), window(15));
  const __m256i factors = _mm256_setr_epi16(factor(0), factor(1), factor(2), factor(3), factor(4), factor(5),
                                            factor(6), factor(7), factor(8), factor(9), factor(10),
                                            factor(11), factor(12), factor(13), factor(14), factor(15));
  return _mm256_srli_epi16(_mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, windows), factors), 13);
}

inline __m256i load_twice(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA
