// group_int for few tokens, in integers on AVX2: codes are multiplied as they are, their
// zero point is subtracted from the exact sums.
#include "formats/group_int/word_products.h"

namespace nibble::NIBBLE_ISA {
namespace {

// Columns that share a step: with fewer the floats are as fast.
constexpr int64_t kLeastSegment = 64, kMostSegment = 512;

// Codes that one word holds; those of 3 bits are spread to words in their order.
constexpr int64_t chunk_columns(int bits) { return bits == 3 ? 4 * kWords : kWords * 16 / bits; }
constexpr auto kColumns2 = columns_of_words<8>();
constexpr auto kColumns4 = columns_of_words<4>();
constexpr auto kColumns8 = columns_of_words<2>();
constexpr auto kColumns3 = [] {
  WordColumns<4> made{};
  for (int i = 0; i < 4 * kWords; ++i) made.columns[i] = i;
  return made;
}();

const int32_t* columns_of(int bits) {
  switch (bits) {
    case 2:
      return kColumns2.columns;
    case 3:
      return kColumns3.columns;
    case 4:
      return kColumns4.columns;
    default:
      return kColumns8.columns;
  }
}

// The largest segment of at most kMostSegment columns that is a multiple of the chunk and divides the group;
// a row that is one group may be cut anywhere.
int64_t segment_columns(const GroupIntLayout& layout) {
  if (layout.zeros_f32 != nullptr) return 0;
  const int64_t chunk = chunk_columns(layout.bits);
  if (layout.in_features % chunk != 0) return 0;
  if (layout.groups == 1) return kMostSegment;
  for (int64_t segment = kMostSegment; segment >= kLeastSegment; segment -= chunk) {
    if (layout.group_size % segment == 0) return segment;
  }
  return 0;
}

WordShape shape_of(const GroupIntLayout& layout) {
  return {.chunk = chunk_columns(layout.bits),
          .segment = segment_columns(layout),
          .center = 1 << (layout.bits - 1),
          .columns = columns_of(layout.bits)};
}

template <int kBits, bool kSymmetric>
struct WordGroupRows {
  static constexpr int64_t kChunk = chunk_columns(kBits);
  static constexpr int kVectors = kChunk / kWords;
  static constexpr int64_t kChunkBytes = kChunk * kBits / 8;
  static constexpr bool kZeros = !kSymmetric;
  const GroupIntLayout& layout;
  const WordShape shape;
  const int64_t group_segments;  // segments of one group

  explicit WordGroupRows(const GroupIntLayout& l)
      : layout(l),
        shape(shape_of(l)),
        group_segments(l.groups == 1 ? word_segments(shape, l.in_features) : l.group_size / shape.segment) {}

  struct Row : GroupWalk<kBits, kZeros> {
    void start(const WordGroupRows&, int64_t row) { this->begin(row); }
    Vec enter(const WordGroupRows& rows, int64_t) { return this->next(rows.layout, rows.group_segments); }
    void load(const uint8_t* p, __m256i* vectors) const {
      if constexpr (kBits == 3) {
        const __m256i first = load_twice(p), last = load_twice(p + 8);  // of 24 bytes
        vectors[0] = spread_3_bit_words<0>(first);
        vectors[1] = spread_3_bit_words<6>(first);
        vectors[2] = spread_3_bit_words<4>(last);
        vectors[3] = spread_3_bit_words<10>(last);
        return;
      }
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
  switch (layout.bits) {
    case 2:
      return multiply_bits<2>(layout, first, rows, prepared, plain, tokens, y, y_stride);
    case 3:
      return multiply_bits<3>(layout, first, rows, prepared, plain, tokens, y, y_stride);
    case 4:
      return multiply_bits<4>(layout, first, rows, prepared, plain, tokens, y, y_stride);
    case 8:
      return multiply_bits<8>(layout, first, rows, prepared, plain, tokens, y, y_stride);
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
