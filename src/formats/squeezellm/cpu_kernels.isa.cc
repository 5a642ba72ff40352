// squeezellm on AVX2 and AVX-512: rows decode by a lookup in the row's own table; the products are those of
// group_int/row_products.h.
#include "formats/squeezellm/cpu_kernels.h"

#include "formats/group_int/row_products.h"

namespace nibble::NIBBLE_ISA {
namespace {

// Levels of one row, as often as they fit the 16 entries (8 on AVX2, but for 4 bits) that a permute looks up.
template <int kBits>
inline void load_levels(const SqueezellmLayout& layout, int64_t row, float* out) {
  constexpr int kLevels = 1 << kBits;
  for (int i = 0; i < 16; ++i) {
    const int64_t at = row * kLevels + i % kLevels;
    out[i] = layout.codebooks_f16 != nullptr ? _cvtsh_ss(layout.codebooks_f16[at]) : layout.codebooks_f32[at];
  }
}

// group_int's decoder with the levels in place of (u - zero) * scale.
template <int kBits>
struct TableDecoder : Decoder<kBits, true> {
  void set_table(const float* levels) { this->table = load(levels); }
};

#if !defined(__AVX512F__)
// Sixteen levels in two registers; bit 3 of a code says which of the two lookups counts.
template <>
struct TableDecoder<4> {
  Vec low_levels, high_levels;
  void set_table(const float* levels) {
    low_levels = load(levels);
    high_levels = load(levels + kLanes);
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

inline float sparse_value(const SqueezellmLayout& layout, uint32_t i) {
  return layout.sparse_values_f16 != nullptr ? _cvtsh_ss(layout.sparse_values_f16[i])
                                             : layout.sparse_values_f32[i];
}

template <int kBitsOfCode>
struct SqueezellmRows {
  static constexpr int kBits = kBitsOfCode;
  using Decoder = TableDecoder<kBits>;
  struct State {};
  const SqueezellmLayout& layout;
  const int64_t groups = 1, group_size;

  explicit SqueezellmRows(const SqueezellmLayout& l) : layout(l), group_size(l.in_features) {}

  void start(const int64_t* row, Decoder* decoder, State&) const {
#pragma GCC unroll 4
    for (int r = 0; r < kGemvRows; ++r) {
      alignas(64) float levels[16];
      load_levels<kBits>(layout, row[r], levels);
      decoder[r].set_table(levels);
    }
  }
  void enter_group(int64_t, const int64_t*, Decoder*, State&) const {}

  // Where arrange() put a column.
  static int64_t arranged(int64_t column) {
    return kBits == 4 ? (column & ~int64_t{15}) | (column & 7) << 1 | (column >> 3 & 1) : column;
  }

  float finish(int64_t row, float sum, const float* x) const {
    if (layout.sparse_offsets != nullptr) {
      const uint32_t end = layout.sparse_offsets[row + 1];
      float odd = 0;  // two chains of additions
      uint32_t i = layout.sparse_offsets[row];
      for (; i + 1 < end; i += 2) {
        sum += sparse_value(layout, i) * x[arranged(layout.sparse_columns[i])];
        odd += sparse_value(layout, i + 1) * x[arranged(layout.sparse_columns[i + 1])];
      }
      if (i < end) sum += sparse_value(layout, i) * x[arranged(layout.sparse_columns[i])];
      sum += odd;
    }
    return layout.bias != nullptr ? sum + layout.bias[row] : sum;
  }

  void decode_row(int64_t row, int64_t begin, int64_t end, float* out) const {
    constexpr int64_t kUnitBytes = 2 * kBits;
    const uint8_t* codes = layout.codes + row * layout.row_bytes;
    alignas(64) float levels[16];
    load_levels<kBits>(layout, row, levels);
    Decoder decoder;
    decoder.set_table(levels);
    for (int64_t j = begin; j < end; j += kGroupIntUnit) {
      const uint8_t* p = codes + j / kGroupIntUnit * kUnitBytes;
      alignas(16) uint8_t buffer[16];
      if (j + kGroupIntUnit > layout.in_features) p = tail_unit(p, codes + layout.row_bytes - p, buffer);
      const Unit weights = decoder.decode(p);
#pragma GCC unroll 2
      for (int v = 0; v < kUnitVectors; ++v) store(out + (j - begin) + v * kLanes, weights.v[v]);
    }
    if (layout.sparse_offsets == nullptr) return;
    // The first entry of the row from `begin` on, by bisection.
    uint32_t i = layout.sparse_offsets[row], last = layout.sparse_offsets[row + 1];
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
      out[arranged(layout.sparse_columns[i] - begin)] += sparse_value(layout, i);
    }
  }
};

void gemv(const SqueezellmLayout& layout, int64_t first, int64_t rows, const float* x, int64_t tokens,
          float* y, int64_t y_stride) {
  switch (layout.bits) {
    case 2:
      return multiply_few(SqueezellmRows<2>(layout), first, rows, x, tokens, y, y_stride);
    case 3:
      return multiply_few(SqueezellmRows<3>(layout), first, rows, x, tokens, y, y_stride);
    case 4:
      return multiply_few(SqueezellmRows<4>(layout), first, rows, x, tokens, y, y_stride);
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
    .gemv_tokens = kGemvLimit, .arrange = arrange, .gemv = gemv, .gemm = gemm};

}  // namespace nibble::NIBBLE_ISA
