// squeezellm on AVX2 and AVX-512: rows decode by a lookup in the row's own table; the products are those of
// group_int/row_products.h.
#include "formats/squeezellm/cpu_kernels.h"

#include "formats/group_int/row_products.h"
#include "formats/squeezellm/levels.h"

namespace nibble::NIBBLE_ISA {
namespace {

inline __m256i load_256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

#if defined(__AVX512F__)

// group_int's decoder, with the levels in place of (u - zero) * scale; narrower tables repeat in the 16
// entries that a permute looks up, so that the bits of the next code need no masking.
template <int kBits>
struct TableDecoder : Decoder<kBits, true> {
  void set_row(const SqueezellmLayout& layout, int64_t row) { this->table = row_levels<kBits>(layout, row); }
  Unit look_up(__m512i codes) const { return {{_mm512_permutexvar_ps(codes, this->table)}}; }

  // The 3-bit codes of a block (README.md), p at its double words: eight codes from each of two neighbours,
  // in even and odd lanes; two from the highest byte of each of eight; and those that are spread over two.
  Unit pairs(const uint8_t* p) const {
    const __m512i shifts = _mm512_setr_epi32(0, 0, 3, 3, 6, 6, 9, 9, 12, 12, 15, 15, 18, 18, 21, 21);
    return look_up(_mm512_srlv_epi32(_mm512_set1_epi64(load_64(p)), shifts));
  }
  Unit tops(const uint8_t* p) const {
    const __m512i shifts = _mm512_setr_epi32(24, 24, 24, 24, 24, 24, 24, 24, 27, 27, 27, 27, 27, 27, 27, 27);
    return look_up(_mm512_srlv_epi32(_mm512_broadcast_i32x8(load_256(p)), shifts));
  }
  Unit split(const uint8_t* p) const {
    const __m512i shifts = _mm512_setr_epi32(28, 28, 28, 28, 28, 28, 28, 28, 29, 29, 29, 29, 29, 29, 29, 29);
    const __m512i low = _mm512_srli_epi32(_mm512_loadu_si512(p), 30);
    const __m512i high = _mm512_srlv_epi32(_mm512_broadcast_i32x8(load_256(p + 64)), shifts);
    return look_up(_mm512_or_si512(low, _mm512_and_si512(high, _mm512_set1_epi32(4))));
  }
};

#else  // AVX2

// The same with 8 entries.
template <int kBits>
struct TableDecoder : Decoder<kBits, true> {
  void set_row(const SqueezellmLayout& layout, int64_t row) {
    const int64_t at = row << kBits;
    if (layout.codebooks_f16 != nullptr) {
      const uint16_t* p = layout.codebooks_f16 + at;
      this->table = kBits == 3
                        ? load_f16(p)
                        : _mm256_cvtph_ps(_mm_set1_epi64x(load_64(reinterpret_cast<const uint8_t*>(p))));
    } else {
      const float* p = layout.codebooks_f32 + at;
      this->table = kBits == 3 ? load(p) : _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
    }
  }
  Unit look_up(__m256i first, __m256i second) const {
    return {{_mm256_permutevar8x32_ps(this->table, first), _mm256_permutevar8x32_ps(this->table, second)}};
  }
  // As above.
  Unit pairs(const uint8_t* p) const {
    const __m256i bits = _mm256_set1_epi64x(load_64(p));
    return look_up(_mm256_srlv_epi32(bits, _mm256_setr_epi32(0, 0, 3, 3, 6, 6, 9, 9)),
                   _mm256_srlv_epi32(bits, _mm256_setr_epi32(12, 12, 15, 15, 18, 18, 21, 21)));
  }
  Unit tops(const uint8_t* p) const {
    return look_up(_mm256_srli_epi32(load_256(p), 24), _mm256_srli_epi32(load_256(p), 27));
  }
  Unit split(const uint8_t* p) const {
    const __m256i four = _mm256_set1_epi32(4), high = load_256(p + 64);
    return look_up(_mm256_or_si256(_mm256_srli_epi32(load_256(p), 30),
                                   _mm256_and_si256(_mm256_srli_epi32(high, 28), four)),
                   _mm256_or_si256(_mm256_srli_epi32(load_256(p + 32), 30),
                                   _mm256_and_si256(_mm256_srli_epi32(high, 29), four)));
  }
};

// Sixteen levels in two registers; bit 3 of a code says which of the two lookups counts.
template <>
struct TableDecoder<4> {
  Vec low_levels, high_levels;
  void set_row(const SqueezellmLayout& layout, int64_t row) {
    const int64_t at = row << 4;
    const bool f16 = layout.codebooks_f16 != nullptr;
    low_levels = f16 ? load_f16(layout.codebooks_f16 + at) : load(layout.codebooks_f32 + at);
    high_levels =
        f16 ? load_f16(layout.codebooks_f16 + at + kLanes) : load(layout.codebooks_f32 + at + kLanes);
  }
  Vec look_up(__m256i codes) const {
    const Vec low = _mm256_permutevar8x32_ps(low_levels, codes);
    const Vec high = _mm256_permutevar8x32_ps(high_levels, codes);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
  }
  Unit decode(const uint8_t* p) const {
    // Even lanes hold the dword of columns 0 to 7, odd lanes that of columns 8 to 15.
    const __m256i bits = _mm256_set1_epi64x(load_64(p));
    const __m256i low = _mm256_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12);
    const __m256i high = _mm256_setr_epi32(16, 16, 20, 20, 24, 24, 28, 28);
    return {{look_up(_mm256_srlv_epi32(bits, low)), look_up(_mm256_srlv_epi32(bits, high))}};
  }
};

#endif

inline void store_unit(float* out, const Unit& unit) {
#pragma GCC unroll 2
  for (int v = 0; v < kUnitVectors; ++v) store(out + v * kLanes, unit.v[v]);
}

// Where a column stands among the decoded ones: within whole blocks of 3-bit codes in the order of pairs(),
// tops() and split(), and in units of 4-bit codes with the two halves interleaved; else at its place.
inline int64_t arranged_column(int bits, int64_t k, int64_t column) {
  const int64_t interleaved = (column & ~int64_t{15}) | (column & 7) << 1 | (column >> 3 & 1);
  if (bits == 4) return interleaved;
  if (bits != 3 || column >= k / kBlockColumns * kBlockColumns) return column;
  const int64_t at = column % kBlockColumns, block = column - at;
  if (at < 192) return interleaved;
  if (at >= 240) return column;
  const int64_t second = at >= 216, i = at - (second ? 216 : 192);
  return block + 192 + i / 8 * kGroupIntUnit + second * 8 + i % 8;
}

void arrange_token(int bits, const float* x, int64_t k, float* out) {
  const int64_t blocks = bits == 3 ? k / kBlockColumns : 0;
  for (int64_t block = 0; block < blocks; ++block, x += kBlockColumns, out += kBlockColumns) {
    for (int64_t j = 0; j < 192; j += kGroupIntUnit) interleave_halves(x + j, out + j);
    for (int64_t i = 0; i < 24; ++i) {
      out[192 + i / 8 * kGroupIntUnit + i % 8] = x[192 + i];
      out[192 + i / 8 * kGroupIntUnit + 8 + i % 8] = x[216 + i];
    }
    for (int64_t j = 240; j < kBlockColumns; ++j) out[j] = x[j];
  }
  arrange(bits, x, k - blocks * kBlockColumns, out);
}

template <int kBitsOfCode>
struct SqueezellmRows {
  static constexpr int kBits = kBitsOfCode;
  static constexpr bool kBlocks = kBits == 3;
  static constexpr int64_t kDepth = 2 * kBlockColumns;
  using Decoder = TableDecoder<kBits>;
  struct State {};
  const SqueezellmLayout& layout;
  const int64_t groups = 1, group_size;

  explicit SqueezellmRows(const SqueezellmLayout& l) : layout(l), group_size(l.in_features) {}

  void start(const int64_t* row, Decoder* decoder, State&) const {
#pragma GCC unroll 4
    for (int r = 0; r < kGemvRows; ++r) decoder[r].set_row(layout, row[r]);
  }
  void enter_group(int64_t, const int64_t*, Decoder*, State&) const {}

  float finish(int64_t row, float sum, const float* x) const { return finish_row(layout, row, sum, x); }

  void decode_row(int64_t row, int64_t begin, int64_t end, float* out) const {
    const uint8_t* codes = layout.codes + row * layout.row_bytes;
    Decoder decoder;
    decoder.set_row(layout, row);
    int64_t j = begin;
    if constexpr (kBlocks) {
      for (; end - j >= kBlockColumns; j += kBlockColumns) {
        const uint8_t* p = codes + j / kBlockColumns * kBlockBytes;
        float* to = out + (j - begin);
        for (int64_t pair = 0; pair < kBlockPairs; ++pair) {
          store_unit(to + kGroupIntUnit * pair, decoder.pairs(p + 8 * pair));
        }
        for (int64_t eight = 0; eight < 3; ++eight) {
          store_unit(to + kGroupIntUnit * (kBlockPairs + eight), decoder.tops(p + 32 * eight));
        }
        store_unit(to + kGroupIntUnit * (kBlockPairs + 3), decoder.split(p));
      }
    }
    constexpr int64_t kUnitBytes = 2 * kBits;
    for (; j < end; j += kGroupIntUnit) {
      const uint8_t* p = codes + j / kGroupIntUnit * kUnitBytes;
      alignas(16) uint8_t buffer[16];
      if (j + kGroupIntUnit > layout.in_features) p = tail_unit(p, codes + layout.row_bytes - p, buffer);
      store_unit(out + (j - begin), decoder.decode(p));
    }
    if (layout.sparse_offsets != nullptr) add_sparse(row, begin, end, out);
  }

  // The row's sparse values in columns [begin, end), added to the decoded weights.
  void add_sparse(int64_t row, int64_t begin, int64_t end, float* out) const {
    // The first entry from `begin` on, by bisection.
    uint32_t i = layout.sparse_offsets[row];
    const uint32_t last = layout.sparse_offsets[row + 1];
    for (uint32_t count = last - i; count > 0;) {
      const uint32_t half = count / 2;
      if (layout.sparse_columns[i + half] < begin) {
        i += half + 1;
        count -= half + 1;
      } else {
        count = half;
      }
    }
    for (; i < last && layout.sparse_columns[i] < end; ++i) {
      const int64_t column = layout.sparse_columns[i];
      out[arranged_column(kBits, layout.in_features, column) - begin] += sparse_value(layout, i);
    }
  }
};

void gemv(const SqueezellmLayout& layout, int64_t first, int64_t rows, const float* x, const float* plain,
          int64_t tokens, float* y, int64_t y_stride) {
  switch (layout.bits) {
    case 2:
      return multiply_few(SqueezellmRows<2>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 3:
      return multiply_few(SqueezellmRows<3>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 4:
      return multiply_few(SqueezellmRows<4>(layout), first, rows, x, plain, tokens, y, y_stride);
    default:
      __builtin_trap();
  }
}

void gemm(const SqueezellmLayout& layout, int64_t first, int64_t rows, const float* x, int64_t tokens,
          float* panel, float* y, int64_t y_stride) {
  switch (layout.bits) {
    case 2:
      return multiply_many(SqueezellmRows<2>(layout), first, rows, x, tokens, panel, y, y_stride);
    case 3:
      return multiply_many(SqueezellmRows<3>(layout), first, rows, x, tokens, panel, y, y_stride);
    case 4:
      return multiply_many(SqueezellmRows<4>(layout), first, rows, x, tokens, panel, y, y_stride);
    default:
      __builtin_trap();
  }
}

}  // namespace

extern const SqueezellmKernels kSqueezellmKernels;
const SqueezellmKernels kSqueezellmKernels = {
    .gemv_tokens = kGemvLimit, .arrange = arrange_token, .gemv = gemv, .gemm = gemm};

}  // namespace nibble::NIBBLE_ISA
