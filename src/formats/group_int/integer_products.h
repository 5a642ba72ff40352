// Few tokens times rows of codes in integers, for AVX-512 with VNNI and VBMI. Included only by *.isa.cc
// sources; everything has internal linkage.
//
// Columns are cut into chunks, the codes of one of which come from one load of a row, and these into vectors
// of 64 codes, a byte each. Within a segment of columns (at most 512, inside of one group) an activation x is
//   X = 2^16 a + 2^8 b + c = x 2^(23 - e),  a, b, c signed bytes, 2^e above the segment's largest |x|,
// so that dot products of unsigned bytes with a, b and c (VPDPBUSD) add exactly what a float product would
// round. What a row makes of the sums is one float per lane and segment.
#pragma once

#include "formats/group_int/segment_scale.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr int64_t kVectorCodes = 64;
constexpr int64_t kPlanes = 3;
constexpr int64_t kVectorBytes = kPlanes * kVectorCodes;  // of activations
constexpr int64_t kMostSegment = 512;
constexpr int64_t kIntegerPass = 4;  // tokens of one pass over the codes
constexpr int64_t kIntegerPrefetch = 8192;

// What a segment's sums start from and are scaled by. Lanes are those of the sums: four bytes of every vector
// each.
struct alignas(64) IntegerSegment {
  int32_t starts[kPlanes][16];  // minus the center of the codes times the lane's sum of a, b, c
  float high_sum[16];           // the lane's sums of a, and of 2^8 b + c
  float low_sum[16];
  float exponent;  // x = X 2^-21 exponent
};

// How a format lays a chunk out: columns[i] of the chunk is in place i of its vectors.
struct IntegerShape {
  int64_t chunk;    // columns, a multiple of 64, at most 256
  int64_t segment;  // columns, a multiple of chunk
  int center;       // subtracted from every code
  const int32_t* columns;
};

inline int64_t chunk_bytes(const IntegerShape& shape) { return shape.chunk / kVectorCodes * kVectorBytes; }
inline int64_t segments_of(const IntegerShape& shape, int64_t k) {
  return (k + shape.segment - 1) / shape.segment;
}
// A prepared token: its segments, then its chunks.
inline int64_t prepared_bytes(const IntegerShape& shape, int64_t k) {
  return segments_of(shape, k) * static_cast<int64_t>(sizeof(IntegerSegment)) +
         k / shape.chunk * chunk_bytes(shape);
}

// The planes of 64 activations, x[columns[0]], x[columns[1]], ..., times the two factors, and their lanes'
// sums.
inline void prepare_vector(const float* x, const int32_t* columns, Vec factor0, Vec factor1, uint8_t* planes,
                           __m512i* sums) {
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    const Vec values = _mm512_i32gather_ps(_mm512_loadu_si512(columns + part * 16), x, 4);
    const __m512i c = _mm512_cvtps_epi32(mul(mul(values, factor0), factor1));
    const __m512i half = _mm512_set1_epi32(128);
    const __m512i b = _mm512_srai_epi32(_mm512_add_epi32(c, half), 8);
    const __m512i a = _mm512_srai_epi32(_mm512_add_epi32(b, half), 8);
    const auto place = [&](int64_t plane, __m512i values32) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + plane * kVectorCodes + part * 16),
                       _mm512_cvtepi32_epi8(values32));
    };
    place(0, a), place(1, b), place(2, c);
  }
#pragma GCC unroll 3
  for (int plane = 0; plane < kPlanes; ++plane) {
    sums[plane] = _mm512_dpbusd_epi32(sums[plane], _mm512_set1_epi8(1),
                                      _mm512_loadu_si512(planes + plane * kVectorCodes));
  }
}

// k is a multiple of the chunk.
void prepare_token(const IntegerShape& shape, const float* x, int64_t k, uint8_t* out) {
  auto* segment = reinterpret_cast<IntegerSegment*>(out);
  uint8_t* planes = out + segments_of(shape, k) * static_cast<int64_t>(sizeof(IntegerSegment));
  for (int64_t begin = 0; begin < k; begin += shape.segment, ++segment) {
    const int64_t end = smaller(k, begin + shape.segment);
    __m512i most = _mm512_setzero_si512();
    for (int64_t j = begin; j < end; j += kLanes) {
      most =
          _mm512_max_epi32(most, _mm512_and_si512(_mm512_loadu_si512(x + j), _mm512_set1_epi32(0x7fffffff)));
    }
    const int largest = _mm512_reduce_max_epi32(most);
    // 2^e, e = biased - 126, is a power of two that |X| <= 127 (2^16 + 2^8 + 1) follows from: the next one
    // above the largest magnitude, or the one after where that is just below it.
    const int biased = (largest + 0x10101) >> 23;
    const SegmentScale scale = {biased, largest < 0x7f800000};
    const auto [factor0, factor1] = scale.factors();
    __m512i sums[kPlanes] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t chunk = begin; chunk < end; chunk += shape.chunk) {
      for (int64_t v = 0; v < shape.chunk; v += kVectorCodes, planes += kVectorBytes)
        prepare_vector(x + chunk, shape.columns + v, factor0, factor1, planes, sums);
    }
#pragma GCC unroll 3
    for (int plane = 0; plane < kPlanes; ++plane) {
      _mm512_store_si512(segment->starts[plane],
                         _mm512_mullo_epi32(sums[plane], _mm512_set1_epi32(-shape.center)));
    }
    store(segment->high_sum, _mm512_cvtepi32_ps(sums[0]));
    store(segment->low_sum, _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums[1], 8), sums[2])));
    segment->exponent = scale.exponent();
  }
}

// Sums of one row and token: of the codes' products with a, b and c.
struct IntegerSums {
  __m512i plane[kPlanes];
};

inline __m512i dot_bytes(__m512i sums, __m512i codes, const uint8_t* bytes) {
  return _mm512_dpbusd_epi32(sums, codes, _mm512_loadu_si512(bytes));
}

// A Rows has a layout, `shape()`, kVectors of a chunk, kChunkBytes of a row's codes, and
//   struct Row: start(rows, row number); enter(rows, segment): returns the scale of the segment's sums times
//   2^-21;
//     load(p, codes): the kVectors vectors of a chunk at p; add(codes, planes, sums): a vector's products;
//     kZeros and zero: what codes are zero at beside the center.
template <typename Rows, int kTokens, int kRows>
void integer_rows(const Rows& source, int64_t first, int64_t rows, const uint8_t* prepared,
                  int64_t token_stride, const float* plain, float* y, int64_t y_stride) {
  constexpr int kVectors = Rows::kVectors;
  const auto& layout = source.layout;
  const int64_t k = layout.in_features, segments = segments_of(source.shape, k);
  const uint8_t* codes[kRows];
  typename Rows::Row row[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const int64_t number = first + smaller(r, rows - 1);  // rows that are missing repeat the last one
    codes[r] = layout.codes + number * layout.row_bytes;
    row[r].start(source, number);
  }
  const int64_t block_bytes = kRows * layout.row_bytes;
  const uint8_t* ahead = codes[0] + (block_bytes > kIntegerPrefetch ? block_bytes : kIntegerPrefetch);
  const auto* segment = reinterpret_cast<const IntegerSegment*>(prepared);
  const uint8_t* planes = prepared + segments * static_cast<int64_t>(sizeof(IntegerSegment));

  Vec sums[kTokens][kRows];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[t][r] = zero();
  }
  int64_t at = 0;
  for (int64_t s = 0; s < segments; ++s, ++segment) {
    Vec scale[kRows];
    IntegerSums products[kTokens][kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) scale[r] = row[r].enter(source, s);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const auto* own = reinterpret_cast<const IntegerSegment*>(reinterpret_cast<const uint8_t*>(segment) +
                                                                t * token_stride);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
        for (int plane = 0; plane < kPlanes; ++plane)
          products[t][r].plane[plane] = _mm512_load_si512(own->starts[plane]);
      }
    }
    const int64_t columns = smaller(source.shape.segment, k - s * source.shape.segment);
    for (int64_t chunk = columns / Rows::kChunk; chunk > 0; --chunk) {
#pragma GCC unroll 8
      for (int64_t line = 0; line < kRows * Rows::kChunkBytes; line += 64) prefetch_to_l2(ahead + line);
      ahead += kRows * Rows::kChunkBytes;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        __m512i vectors[kVectors];
        row[r].load(codes[r] + at, vectors);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const auto weights = row[r].weights(vectors[v]);
#pragma GCC unroll 4
          for (int t = 0; t < kTokens; ++t)
            row[r].add(weights, planes + t * token_stride + v * kVectorBytes, products[t][r]);
        }
      }
      planes += kVectors * kVectorBytes;
      at += Rows::kChunkBytes;
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const auto* own = reinterpret_cast<const IntegerSegment*>(reinterpret_cast<const uint8_t*>(segment) +
                                                                t * token_stride);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m512i* sum = products[t][r].plane;
        Vec high = _mm512_cvtepi32_ps(sum[0]);
        Vec low = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum[1], 8), sum[2]));
        if constexpr (Rows::kZeros) {
          high = _mm512_fnmadd_ps(row[r].zero, load(own->high_sum), high);
          low = _mm512_fnmadd_ps(row[r].zero, load(own->low_sum), low);
        }
        sums[t][r] = fma(mul(fma(high, set1(0x1p16f), low), scale[r]), set1(own->exponent), sums[t][r]);
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    alignas(16) float result[4];
    if constexpr (kRows == 4) {
      _mm_store_ps(result, reduce_4(sums[t][0], sums[t][1], sums[t][2], sums[t][3]));
    } else {
      _mm_store_ps(result, reduce_4(sums[t][0], sums[t][1], zero(), zero()));
    }
    for (int64_t r = 0; r < rows; ++r)
      y[t * y_stride + first + r] = source.finish(first + r, result[r], plain + t * k);
  }
}

// IntegerKernels::multiply for one kind of rows.
template <typename Rows>
void multiply_integers(const Rows& source, int64_t first, int64_t rows, const uint8_t* prepared,
                       const float* plain, int64_t tokens, float* y, int64_t y_stride) {
  const int64_t k = source.layout.in_features, stride = prepared_bytes(source.shape, k);
  if (tokens == 1) {
    for (int64_t r = 0; r < rows; r += 4)
      integer_rows<Rows, 1, 4>(source, first + r, smaller(4, rows - r), prepared, stride, plain, y, y_stride);
    return;
  }
  for (int64_t r = 0; r < rows; r += 2) {
    const int64_t here = smaller(2, rows - r);
    for (int64_t t = 0; t < tokens; t += kIntegerPass) {
      const uint8_t* token = prepared + t * stride;
      const float* pt = plain + t * k;
      float* yt = y + t * y_stride;
      switch (smaller(kIntegerPass, tokens - t)) {
        case 1:
          integer_rows<Rows, 1, 2>(source, first + r, here, token, stride, pt, yt, y_stride);
          break;
        case 2:
          integer_rows<Rows, 2, 2>(source, first + r, here, token, stride, pt, yt, y_stride);
          break;
        case 3:
          integer_rows<Rows, 3, 2>(source, first + r, here, token, stride, pt, yt, y_stride);
          break;
        default:
          integer_rows<Rows, 4, 2>(source, first + r, here, token, stride, pt, yt, y_stride);
          break;
      }
    }
  }
}

// The largest segment of at most kMostSegment columns that is a multiple of the chunk and divides the group;
// 0 if none.
inline int64_t segment_for(int64_t chunk, int64_t group) {
  for (int64_t segment = kMostSegment / chunk * chunk; segment > 0; segment -= chunk) {
    if (group % segment == 0) return segment;
  }
  return 0;
}

// Places of 64 codes each in one load: byte i of vector v holds column i * vectors + v.
constexpr int64_t kMostChunk = 256;
struct ChunkColumns {
  int32_t columns[kMostChunk];
};
constexpr ChunkColumns interleaved_columns(int vectors) {
  ChunkColumns made{};
  for (int v = 0; v < vectors; ++v) {
    for (int i = 0; i < kVectorCodes; ++i) made.columns[v * kVectorCodes + i] = i * vectors + v;
  }
  return made;
}

// 64 codes of 3 bits from 24 bytes of a plain stream, one to a byte, with the bits of later codes above them.
inline __m512i spread_3_bit(const uint8_t* p) {
  const __m512i stream = _mm512_maskz_loadu_epi8(0xffffff, p);
  const __m512i bytes =
      _mm512_set_epi64(0x1717171717171615, 0x1414141414141312, 0x111111111111100f, 0x0e0e0e0e0e0e0d0c,
                       0x0b0b0b0b0b0b0a09, 0x0808080808080706, 0x0505050505050403, 0x0202020202020100);
  const __m512i shifts = _mm512_set1_epi64(0x15120f0c09060300);
  return _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(bytes, stream));
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA
