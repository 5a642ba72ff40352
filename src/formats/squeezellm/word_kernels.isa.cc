// squeezellm of 4 bits for few tokens, in integers on AVX2. A level becomes a 16-bit integer in steps of a
// power of two, 2^-15 of the next power above the row's largest: exact for F16 levels down to 1/32 of that,
// and off by 2^-16 of it at most below. Its two bytes are looked up apart. (Tables of 4 and 8 levels fit
// VPERMPS, which is faster: cpu_kernels.isa.cc.)
#include "formats/group_int/word_products.h"
#include "formats/squeezellm/cpu_kernels.h"
#include "formats/squeezellm/levels.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr int64_t kChunkColumns = 64;
// Sums of levels of 16 bits times activations of 12 stay below 2^31 for 128 columns.
constexpr int64_t kTableSegment = 128;

// Bytes of both nibbles, of whose levels unpacking takes eight of each half at a time.
constexpr WordColumns<4> table_columns() {
  WordColumns<4> made{};
  for (int v = 0; v < 4; ++v) {
    for (int i = 0; i < kWords; ++i) {
      const int byte = i / 8 * 16 + v % 2 * 8 + i % 8;
      made.columns[v * kWords + i] = 2 * byte + v / 2;
    }
  }
  return made;
}
constexpr WordColumns<4> kColumns = table_columns();

int64_t segment_columns(const SqueezellmLayout& layout) {
  return layout.bits == 4 && layout.in_features % kChunkColumns == 0 ? kTableSegment : 0;
}

struct WordTableRows {
  static constexpr int kVectors = 4;
  static constexpr int64_t kChunk = kChunkColumns;
  static constexpr int64_t kChunkBytes = kChunkColumns / 2;
  static constexpr bool kZeros = false;
  const SqueezellmLayout& layout;
  const WordShape shape = {
      .chunk = kChunkColumns, .segment = kTableSegment, .center = 0, .columns = kColumns.columns};

  struct Row {
    __m256i high, low;  // the levels' bytes, in both halves
    Vec scale;

    void start(const WordTableRows& rows, int64_t number) {
      const Vec levels[2] = {level_octet(rows.layout, number, 0), level_octet(rows.layout, number, 8)};
      const Vec magnitudes = max(absolute(levels[0]), absolute(levels[1]));
      // Far from where the step or its inverse would not be a normal number.
      int biased = static_cast<int>(float_bits(reduce_max(magnitudes)) >> 23);
      biased = biased < 32 ? 32 : biased;
      const Vec steps = power_of_two(14 - (biased - 127));
      // Packing saturates: 32768 becomes 32767.
      const __m256i words =
          _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(mul(levels[0], steps)),
                                                      _mm256_cvtps_epi32(mul(levels[1], steps))),
                                   0xd8);
      const __m256i low_bytes = _mm256_and_si256(words, _mm256_set1_epi16(0xff));
      const __m256i high_bytes = _mm256_srli_epi16(words, 8);
      low = twice(low_bytes), high = twice(high_bytes);
      scale = power_of_two(biased - 127 - 14 - 21);
    }
    Vec enter(const WordTableRows&, int64_t) const { return scale; }
    void load(const uint8_t* p, __m256i* vectors) const {
      const __m256i bytes = load_words(p), mask = _mm256_set1_epi8(15);
#pragma GCC unroll 2
      for (int nibble = 0; nibble < 2; ++nibble) {
        const __m256i codes = _mm256_and_si256(nibble == 0 ? bytes : _mm256_srli_epi16(bytes, 4), mask);
        const __m256i lower = _mm256_shuffle_epi8(low, codes), upper = _mm256_shuffle_epi8(high, codes);
        vectors[2 * nibble] = _mm256_unpacklo_epi8(lower, upper);
        vectors[2 * nibble + 1] = _mm256_unpackhi_epi8(lower, upper);
      }
    }

   private:
    static Vec absolute(Vec v) { return _mm256_andnot_ps(set1(-0.0f), v); }
    static Vec level_octet(const SqueezellmLayout& layout, int64_t row, int64_t from) {
      const int64_t at = row * 16 + from;
      return layout.codebooks_f16 != nullptr ? load_f16(layout.codebooks_f16 + at)
                                             : NIBBLE_ISA::load(layout.codebooks_f32 + at);
    }
    // 16 words below 256 as bytes, in both halves.
    static __m256i twice(__m256i words) {
      const __m128i bytes =
          _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      return _mm256_broadcastsi128_si256(bytes);
    }
  };

  float finish(int64_t row, float sum, const float* x) const { return finish_row(layout, row, sum, x); }
};

int64_t token_bytes(const SqueezellmLayout& layout) {
  return word_token_bytes(WordTableRows{layout}.shape, layout.in_features);
}

void prepare(const SqueezellmLayout& layout, const float* x, uint8_t* out) {
  prepare_word_token(WordTableRows{layout}.shape, x, layout.in_features, out);
}

void multiply(const SqueezellmLayout& layout, int64_t first, int64_t rows, const uint8_t* prepared,
              const float* plain, int64_t tokens, float* y, int64_t y_stride) {
  multiply_words(WordTableRows{layout}, first, rows, prepared, plain, tokens, y, y_stride);
}

}  // namespace

extern const IntegerKernels<SqueezellmLayout> kSqueezellmIntegerKernels;
const IntegerKernels<SqueezellmLayout> kSqueezellmIntegerKernels = {.most_tokens = kGemvLimit,
                                                                    .segment = segment_columns,
                                                                    .token_bytes = token_bytes,
                                                                    .prepare = prepare,
                                                                    .multiply = multiply};

}  // namespace nibble::NIBBLE_ISA
