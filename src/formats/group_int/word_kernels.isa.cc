// group_int of 2 and 4 bits for few tokens, in integers on AVX2: codes are multiplied as they are, their zero
// point is subtracted from the exact sums.
#include "formats/group_int/word_products.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr int64_t kMostSegment = 512;
constexpr auto kColumns2 = columns_of_words<8>();
constexpr auto kColumns4 = columns_of_words<4>();

// The largest segment of at most kMostSegment columns that is a multiple of the chunk and divides the group;
// a row that is one group may be cut anywhere.
int64_t segment_columns(const GroupIntLayout& layout) {
  if ((layout.bits != 2 && layout.bits != 4) || layout.zeros_f32 != nullptr) return 0;
  const int64_t chunk = kWords * kWords / layout.bits;
  if (layout.in_features % chunk != 0) return 0;
  if (layout.groups == 1) return kMostSegment;
  for (int64_t segment = kMostSegment; segment > 0; segment -= chunk) {
    if (layout.group_size % segment == 0) return segment;
  }
  return 0;
}

WordShape shape_of(const GroupIntLayout& layout) {
  return {.chunk = kWords * kWords / layout.bits,
          .segment = segment_columns(layout),
          .center = 1 << (layout.bits - 1),
          .columns = layout.bits == 2 ? kColumns2.columns : kColumns4.columns};
}

template <int kBits, bool kSymmetric>
struct WordGroupRows {
  static constexpr int kVectors = 16 / kBits;
  static constexpr int64_t kChunk = kWords * kVectors;
  static constexpr int64_t kChunkBytes = 2 * kWords;
  static constexpr bool kZeros = !kSymmetric;
  const GroupIntLayout& layout;
  const WordShape shape;
  const int64_t group_segments;  // segments of one group

  explicit WordGroupRows(const GroupIntLayout& l)
      : layout(l),
        shape(shape_of(l)),
        group_segments(l.groups == 1 ? word_segments(shape, l.in_features) : l.group_size / shape.segment) {}

  struct Row {
    int64_t number;
    Vec zero;
    alignas(64) float scales[kGroupChunk];

    void start(const WordGroupRows&, int64_t row) { number = row; }
    Vec enter(const WordGroupRows& rows, int64_t segment) {
      const int64_t group = segment / rows.group_segments, in_chunk = group % kGroupChunk;
      if (segment % (rows.group_segments * kGroupChunk) == 0)
        load_scales(rows.layout, number, group, smaller(kGroupChunk, rows.layout.groups - group), scales);
      if constexpr (kZeros)
        zero = set1(zero_at(rows.layout, number, group) - static_cast<float>(1 << (kBits - 1)));
      return mul(set1(scales[in_chunk]), set1(0x1p-21f));
    }
    void load(const uint8_t* p, __m256i* vectors) const {
      const __m256i words = load_words(p), mask = _mm256_set1_epi16((1 << kBits) - 1);
      vectors[0] = _mm256_and_si256(words, mask);
#pragma GCC unroll 8
      for (int v = 1; v < kVectors - 1; ++v)
        vectors[v] = _mm256_and_si256(_mm256_srli_epi16(words, kBits * v), mask);
      vectors[kVectors - 1] = _mm256_srli_epi16(words, 16 - kBits);
    }
  };

  float finish(int64_t row, float sum, const float*) const {
    return layout.bias != nullptr ? sum + layout.bias[row] : sum;
  }
};

int64_t token_bytes(const GroupIntLayout& layout) {
  return word_token_bytes(shape_of(layout), layout.in_features);
}

void prepare(const GroupIntLayout& layout, const float* x, uint8_t* out) {
  prepare_word_token(shape_of(layout), x, layout.in_features, out);
}

template <int kBits>
void multiply_bits(const GroupIntLayout& layout, int64_t first, int64_t rows, const uint8_t* prepared,
                   const float* plain, int64_t tokens, float* y, int64_t y_stride) {
  if (is_symmetric(layout)) {
    multiply_words(WordGroupRows<kBits, true>(layout), first, rows, prepared, plain, tokens, y, y_stride);
  } else {
    multiply_words(WordGroupRows<kBits, false>(layout), first, rows, prepared, plain, tokens, y, y_stride);
  }
}

void multiply(const GroupIntLayout& layout, int64_t first, int64_t rows, const uint8_t* prepared,
              const float* plain, int64_t tokens, float* y, int64_t y_stride) {
  if (layout.bits == 2) {
    multiply_bits<2>(layout, first, rows, prepared, plain, tokens, y, y_stride);
  } else {
    multiply_bits<4>(layout, first, rows, prepared, plain, tokens, y, y_stride);
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
