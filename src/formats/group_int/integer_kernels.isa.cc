// group_int of 2, 3 and 4 bits for few tokens, in integers: codes are multiplied as they are, their zero
// point is subtracted from the exact sums.
#include "formats/group_int/integer_products.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr ChunkColumns kColumns[] = {interleaved_columns(4), interleaved_columns(1), interleaved_columns(2)};

template <int kBits>
constexpr int64_t chunk_columns() {
  return kBits == 3 ? 64 : 512 / kBits;
}

// A row that is one group may be cut anywhere.
int64_t segment_columns(const GroupIntLayout& layout) {
  if (layout.bits == 8 || layout.zeros_f32 != nullptr) return 0;
  const int64_t chunk = layout.bits == 3 ? 64 : 512 / layout.bits;
  if (layout.in_features % chunk != 0) return 0;
  return layout.groups == 1 ? kMostSegment : segment_for(chunk, layout.group_size);
}

IntegerShape shape_of(const GroupIntLayout& layout) {
  return {.chunk = layout.bits == 3 ? 64 : 512 / layout.bits,
          .segment = segment_columns(layout),
          .center = 1 << (layout.bits - 1),
          .columns = kColumns[layout.bits - 2].columns};
}

template <int kBits, bool kSymmetric>
struct IntegerGroupRows {
  static constexpr int64_t kChunk = chunk_columns<kBits>();
  static constexpr int kVectors = kChunk / kVectorCodes;
  static constexpr int64_t kChunkBytes = kChunk * kBits / 8;
  static constexpr bool kZeros = !kSymmetric;
  const GroupIntLayout& layout;
  const IntegerShape shape;
  const int64_t group_segments;  // segments of one group

  explicit IntegerGroupRows(const GroupIntLayout& l)
      : layout(l),
        shape(shape_of(l)),
        group_segments(l.groups == 1 ? segments_of(shape, l.in_features) : l.group_size / shape.segment) {}

  struct Row : GroupWalk<kBits, kZeros> {
    void start(const IntegerGroupRows&, int64_t row) { this->begin(row); }
    Vec enter(const IntegerGroupRows& rows, int64_t) { return this->next(rows.layout, rows.group_segments); }
    void load(const uint8_t* p, __m512i* vectors) const {
      const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
      if constexpr (kBits == 3) {
        vectors[0] = _mm512_and_si512(spread_3_bit(p), mask);
      } else {
        const __m512i bytes = _mm512_loadu_si512(p);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          vectors[v] = _mm512_and_si512(v == 0 ? bytes : _mm512_srli_epi16(bytes, kBits * v), mask);
      }
    }
    __m512i weights(__m512i codes) const { return codes; }
    void add(__m512i codes, const uint8_t* planes, IntegerSums& sums) const {
#pragma GCC unroll 3
      for (int plane = 0; plane < kPlanes; ++plane)
        sums.plane[plane] = dot_bytes(sums.plane[plane], codes, planes + plane * kVectorCodes);
    }
  };

  float finish(int64_t row, float sum, const float*) const {
    return layout.bias != nullptr ? sum + layout.bias[row] : sum;
  }
};

int64_t token_bytes(const GroupIntLayout& layout) {
  return prepared_bytes(shape_of(layout), layout.in_features);
}

void prepare(const GroupIntLayout& layout, const float* x, uint8_t* out) {
  prepare_token(shape_of(layout), x, layout.in_features, out);
}

template <int kBits>
void multiply_bits(const GroupIntLayout& layout, int64_t first, int64_t rows, const uint8_t* prepared,
                   const float* plain, int64_t tokens, float* y, int64_t y_stride) {
  if (is_symmetric(layout)) {
    multiply_integers(IntegerGroupRows<kBits, true>(layout), first, rows, prepared, plain, tokens, y,
                      y_stride);
  } else {
    multiply_integers(IntegerGroupRows<kBits, false>(layout), first, rows, prepared, plain, tokens, y,
                      y_stride);
  }
}

void multiply(const GroupIntLayout& layout, int64_t first, int64_t rows, const uint8_t* prepared,
              const float* plain, int64_t tokens, float* y, int64_t y_stride) {
  switch (layout.bits) {
    case 2:
      return multiply_bits<2>(layout, first, rows, prepared, plain, tokens, y, y_stride);
    case 3:
      return multiply_bits<3>(layout, first, rows, prepared, plain, tokens, y, y_stride);
    case 4:
      return multiply_bits<4>(layout, first, rows, prepared, plain, tokens, y, y_stride);
    default:
      __builtin_trap();
  }
}

}  // namespace

extern const IntegerKernels<GroupIntLayout> kGroupIntIntegerKernels;
const IntegerKernels<GroupIntLayout> kGroupIntIntegerKernels = {.most_tokens = kGemvLimit,
                                                                .segment = segment_columns,
                                                                .token_bytes = token_bytes,
                                                                .prepare = prepare,
                                                                .multiply = multiply};

}  // namespace nibble::NIBBLE_ISA
