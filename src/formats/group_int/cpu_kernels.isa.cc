// group_int on AVX2 and AVX-512: decoding of canonical codes in registers, a GEMV that streams codes, and a GEMM that
// decodes a few rows at a time into a cached panel.
//
// All products are sums of dot products along k: lanes hold columns of one row, and are added up at the end. A unit of
// 16 columns is 2 * bits bytes, which one or two broadcasts bring into every lane; a variable shift then moves each lane's
// code into its lowest bits, and a permute looks the weight up in a table that holds (u - zero) * scale for every code.
#include "formats/group_int/cpu_kernels.h"
#include "kernels/cpu/vec.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr int kUnitVectors = kGroupIntUnit / kLanes;

struct Unit {
  Vec v[kUnitVectors];
};

inline int32_t load_32(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return bits;
}
inline int64_t load_64(const uint8_t* p) {
  int64_t bits;
  __builtin_memcpy(&bits, p, 8);
  return bits;
}

// Decodes units of one row whose columns share a scale and a zero point. kScaled: to the weights themselves; else to
// u - zero, for integer zeros only.
template <int kBits, bool kScaled>
struct Decoder;

#if defined(__AVX512F__)

// Tables have 16 entries; narrower codes repeat in it, so that the bits of the next code need no masking.
template <bool kScaled>
inline Vec make_table(int mask, float scale, float zero_point) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const Vec table = sub(_mm512_cvtepi32_ps(_mm512_and_si512(index, _mm512_set1_epi32(mask))), set1(zero_point));
  return kScaled ? mul(table, set1(scale)) : table;
}

template <bool kScaled>
struct Decoder<2, kScaled> {
  Vec table;
  void set(float scale, float zero_point) { table = make_table<kScaled>(3, scale, zero_point); }
  Unit decode(const uint8_t* p) const {
    const __m512i shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return {{_mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi32(load_32(p)), shifts), table)}};
  }
};

template <bool kScaled>
struct Decoder<3, kScaled> {
  Vec table;
  void set(float scale, float zero_point) { table = make_table<kScaled>(7, scale, zero_point); }
  Unit decode(const uint8_t* p) const {
    // Columns 0 to 7 are bits 0 to 23 of the dword at 0, columns 8 to 15 are bits 8 to 31 of the dword at 2.
    const __m512i shifts = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 8, 11, 14, 17, 20, 23, 26, 29);
    const __m512i bits = _mm512_mask_set1_epi32(_mm512_set1_epi32(load_32(p)), 0xff00, load_32(p + 2));
    return {{_mm512_permutexvar_ps(_mm512_srlv_epi32(bits, shifts), table)}};
  }
};

template <bool kScaled>
struct Decoder<4, kScaled> {
  Vec table;
  void set(float scale, float zero_point) { table = make_table<kScaled>(15, scale, zero_point); }
  Unit decode(const uint8_t* p) const {
    // Even lanes hold the dword of columns 0 to 7, odd lanes that of columns 8 to 15.
    const __m512i shifts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    return {{_mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi64(load_64(p)), shifts), table)}};
  }
};

template <>
struct Decoder<8, true> {
  Vec zeros, scales;
  void set(float scale, float zero_point) {
    zeros = set1(zero_point);
    scales = set1(scale);
  }
  Unit decode(const uint8_t* p) const {
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {{mul(sub(_mm512_cvtepi32_ps(codes), zeros), scales)}};
  }
};

template <>
struct Decoder<8, false> {
  Vec zeros;
  // The zero point is an integer, so that its sum with 2^23 is exact.
  void set(float, float zero_point) { zeros = set1(0x1p23f + zero_point); }
  Unit decode(const uint8_t* p) const {
    // A code in the lowest byte of the bits of 2^23 makes 2^23 + code: one shuffle widens and converts.
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i widened = _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x4b000000), 0x1111111111111111u, bytes, index);
    return {{sub(_mm512_castsi512_ps(widened), zeros)}};
  }
};

// The order of a decoded 4-bit unit.
inline void interleave_halves(const float* in, float* out) {
  const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
  store(out, _mm512_permutexvar_ps(order, load(in)));
}

// Sums of the lanes of four vectors. Each sum is a tree that does not depend on the position of the vector, so a row's
// result does not depend on the rows beside it.
inline __m128 reduce_4(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  const Vec cd = add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  const Vec abcd = add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const Vec pairs = add(abcd, _mm512_permute_ps(abcd, 0xb1));
  const Vec sums = add(pairs, _mm512_permute_ps(pairs, 0x4e));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(order, sums));
}

constexpr int kPanelRows = 8;
constexpr int kGemvTokens = 4;

inline void reduce_panel(const Vec* sums, float* out) {
  _mm_storeu_ps(out, reduce_4(sums[0], sums[1], sums[2], sums[3]));
  _mm_storeu_ps(out + 4, reduce_4(sums[4], sums[5], sums[6], sums[7]));
}

#else  // AVX2

// Tables have 8 entries; 2-bit codes repeat in it, so that the bits of the next code need no masking.
template <bool kScaled>
inline Vec make_table(int mask, float scale, float zero_point) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const Vec table = sub(_mm256_cvtepi32_ps(_mm256_and_si256(index, _mm256_set1_epi32(mask))), set1(zero_point));
  return kScaled ? mul(table, set1(scale)) : table;
}

template <bool kScaled>
struct Decoder<2, kScaled> {
  Vec table;
  void set(float scale, float zero_point) { table = make_table<kScaled>(3, scale, zero_point); }
  Unit decode(const uint8_t* p) const {
    const __m256i bits = _mm256_set1_epi32(load_32(p));
    const __m256i low = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i high = _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30);
    return {{_mm256_permutevar8x32_ps(table, _mm256_srlv_epi32(bits, low)),
             _mm256_permutevar8x32_ps(table, _mm256_srlv_epi32(bits, high))}};
  }
};

template <bool kScaled>
struct Decoder<3, kScaled> {
  Vec table;
  void set(float scale, float zero_point) { table = make_table<kScaled>(7, scale, zero_point); }
  Unit decode(const uint8_t* p) const {
    // Columns 0 to 7 are bits 0 to 23 of the dword at 0, columns 8 to 15 are bits 8 to 31 of the dword at 2.
    const __m256i low = _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21);
    const __m256i high = _mm256_setr_epi32(8, 11, 14, 17, 20, 23, 26, 29);
    return {{_mm256_permutevar8x32_ps(table, _mm256_srlv_epi32(_mm256_set1_epi32(load_32(p)), low)),
             _mm256_permutevar8x32_ps(table, _mm256_srlv_epi32(_mm256_set1_epi32(load_32(p + 2)), high))}};
  }
};

// Sixteen weights do not fit an 8-entry table: codes are converted instead.
template <bool kScaled>
struct Converter;

template <>
struct Converter<true> {
  Vec zeros, scales;
  void set(float scale, float zero_point) {
    zeros = set1(zero_point);
    scales = set1(scale);
  }
  Vec weights(__m256i codes) const { return mul(sub(_mm256_cvtepi32_ps(codes), zeros), scales); }
};

template <>
struct Converter<false> {
  __m256i zeros;
  // The zero point is an integer; integer subtraction leaves the ports of the multiplications free.
  void set(float, float zero_point) { zeros = _mm256_set1_epi32(static_cast<int>(zero_point)); }
  Vec weights(__m256i codes) const { return _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zeros)); }
};

template <bool kScaled>
struct Decoder<4, kScaled> : Converter<kScaled> {
  Unit decode(const uint8_t* p) const {
    // Even lanes hold the dword of columns 0 to 7, odd lanes that of columns 8 to 15.
    const __m256i bits = _mm256_set1_epi64x(load_64(p));
    const __m256i low = _mm256_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12);
    const __m256i high = _mm256_setr_epi32(16, 16, 20, 20, 24, 24, 28, 28);
    const __m256i mask = _mm256_set1_epi32(15);
    return {{this->weights(_mm256_and_si256(_mm256_srlv_epi32(bits, low), mask)),
             this->weights(_mm256_and_si256(_mm256_srlv_epi32(bits, high), mask))}};
  }
};

template <bool kScaled>
struct Decoder<8, kScaled> : Converter<kScaled> {
  Unit decode(const uint8_t* p) const {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8));
    return {{this->weights(_mm256_cvtepu8_epi32(low)), this->weights(_mm256_cvtepu8_epi32(high))}};
  }
};

// The order of a decoded 4-bit unit.
inline void interleave_halves(const float* in, float* out) {
  const Vec low = load(in), high = load(in + 8);
  const Vec even = _mm256_unpacklo_ps(low, high), odd = _mm256_unpackhi_ps(low, high);
  store(out, _mm256_permute2f128_ps(even, odd, 0x20));
  store(out + 8, _mm256_permute2f128_ps(even, odd, 0x31));
}

// Sums of the lanes of four vectors. Each sum is a tree that does not depend on the position of the vector, so a row's
// result does not depend on the rows beside it.
inline __m128 reduce_4(Vec a, Vec b, Vec c, Vec d) {
  const Vec sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

constexpr int kPanelRows = 4;
constexpr int kGemvTokens = 2;

inline void reduce_panel(const Vec* sums, float* out) {
  _mm_storeu_ps(out, reduce_4(sums[0], sums[1], sums[2], sums[3]));
}

#endif

static_assert(kPanelRows <= kGroupIntPanelRows);
constexpr int kGemvRows = 4;
constexpr int kTileTokens = 3;
// Ahead of the rows in work; far enough for memory, near enough to stay in the first-level cache until used.
constexpr int64_t kPrefetchBytes = 4096;

// A load that the compiler does not repeat as the memory operand of every use: the tile below would be bound by loads.
inline Vec load_once(const float* p) {
  Vec v = load(p);
  asm("" : "+v"(v));
  return v;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline float scale_at(const GroupIntLayout& layout, int64_t row, int64_t group) {
  const int64_t at = row * layout.groups + group;
  return layout.scales_f16 != nullptr ? _cvtsh_ss(layout.scales_f16[at]) : layout.scales_f32[at];
}

inline float zero_at(const GroupIntLayout& layout, int64_t row, int64_t group) {
  const int64_t at = row * layout.groups + group;
  if (layout.zeros_u8 != nullptr) return static_cast<float>(layout.zeros_u8[at]);
  return layout.zeros_f32 != nullptr ? layout.zeros_f32[at] : layout.symmetric_zero;
}

// The last unit of a row may be shorter than 16 columns; its bytes are copied so that nothing beyond the row is read.
// Columns beyond k decode to finite weights and meet activations of zero.
inline const uint8_t* tail_unit(const uint8_t* p, int64_t bytes, uint8_t* buffer) {
  for (int i = 0; i < 16; ++i) buffer[i] = i < bytes ? p[i] : 0;
  return buffer;
}

template <int kBits, bool kScaled, int kTokens>
void gemv_rows(const GroupIntLayout& layout, int64_t first, int64_t rows, const float* x, int64_t x_stride, float* y,
               int64_t y_stride) {
  constexpr int64_t kUnitBytes = 2 * kBits;
  int64_t row[kGemvRows];
  const uint8_t* codes[kGemvRows];
#pragma GCC unroll 4
  for (int r = 0; r < kGemvRows; ++r) {
    row[r] = first + smaller(r, rows - 1);  // rows that are missing repeat the last one
    codes[r] = layout.codes + row[r] * layout.row_bytes;
  }
  const uint8_t* ahead = codes[0] + kGemvRows * layout.row_bytes + kPrefetchBytes;

  Vec sums[kTokens][kGemvRows];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kGemvRows; ++r) sums[t][r] = zero();
  }
  Decoder<kBits, kScaled> decoder[kGemvRows];
  const auto add_unit = [&](const uint8_t* const* p, const float* at)
                            __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < kGemvRows; ++r) {
      const Unit weights = decoder[r].decode(p[r]);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
        for (int v = 0; v < kUnitVectors; ++v) {
          sums[t][r] = fma(weights.v[v], load(at + t * x_stride + v * kLanes), sums[t][r]);
        }
      }
    }
  };

  int64_t at = 0;  // bytes of each row that are done; groups start at whole units
  for (int64_t group = 0; group < layout.groups; ++group) {
#pragma GCC unroll 4
    for (int r = 0; r < kGemvRows; ++r) {
      decoder[r].set(kScaled ? scale_at(layout, row[r], group) : 1.0f, zero_at(layout, row[r], group));
    }
    const int64_t columns = smaller(layout.group_size, layout.in_features - group * layout.group_size);
    for (int64_t unit = columns / kGroupIntUnit; unit > 0; --unit) {
      prefetch(ahead);
      ahead += kGemvRows * kUnitBytes;
      const uint8_t* const p[kGemvRows] = {codes[0] + at, codes[1] + at, codes[2] + at, codes[3] + at};
      add_unit(p, x);
      at += kUnitBytes;
      x += kGroupIntUnit;
    }
    if (columns % kGroupIntUnit != 0) {
      alignas(16) uint8_t buffers[kGemvRows][16];
      const uint8_t* p[kGemvRows];
      for (int r = 0; r < kGemvRows; ++r) p[r] = tail_unit(codes[r] + at, layout.row_bytes - at, buffers[r]);
      add_unit(p, x);
    }
  }

#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    alignas(16) float result[kGemvRows];
    _mm_store_ps(result, reduce_4(sums[t][0], sums[t][1], sums[t][2], sums[t][3]));
    for (int64_t r = 0; r < rows; ++r) {
      if (!kScaled) result[r] *= scale_at(layout, first + r, 0);
      if (layout.bias != nullptr) result[r] += layout.bias[first + r];
      y[t * y_stride + first + r] = result[r];
    }
  }
}

template <int kBits, bool kScaled>
void gemv_bits(const GroupIntLayout& layout, int64_t first, int64_t rows, const float* x, int64_t tokens, float* y,
               int64_t y_stride) {
  const int64_t x_stride = (layout.in_features + kGroupIntUnit - 1) / kGroupIntUnit * kGroupIntUnit;
  for (int64_t r = 0; r < rows; r += kGemvRows) {
    const int64_t here = smaller(kGemvRows, rows - r);
    for (int64_t t = 0; t < tokens; t += kGemvTokens) {
      const float* xt = x + t * x_stride;
      float* yt = y + t * y_stride;
      switch (smaller(kGemvTokens, tokens - t)) {
        case 1: gemv_rows<kBits, kScaled, 1>(layout, first + r, here, xt, x_stride, yt, y_stride); break;
        case 2: gemv_rows<kBits, kScaled, 2>(layout, first + r, here, xt, x_stride, yt, y_stride); break;
#if defined(__AVX512F__)
        case 3: gemv_rows<kBits, kScaled, 3>(layout, first + r, here, xt, x_stride, yt, y_stride); break;
        default: gemv_rows<kBits, kScaled, 4>(layout, first + r, here, xt, x_stride, yt, y_stride); break;
#endif
      }
    }
  }
}

void gemv(const GroupIntLayout& layout, int64_t first, int64_t rows, const float* x, int64_t tokens, float* y,
          int64_t y_stride) {
  // One scale per row multiplies the sum; group scales are folded into the decoded weights.
  const bool scaled = layout.groups > 1 || layout.zeros_f32 != nullptr;
  switch (layout.bits * 2 + scaled) {
    case 4: return gemv_bits<2, false>(layout, first, rows, x, tokens, y, y_stride);
    case 5: return gemv_bits<2, true>(layout, first, rows, x, tokens, y, y_stride);
    case 6: return gemv_bits<3, false>(layout, first, rows, x, tokens, y, y_stride);
    case 7: return gemv_bits<3, true>(layout, first, rows, x, tokens, y, y_stride);
    case 8: return gemv_bits<4, false>(layout, first, rows, x, tokens, y, y_stride);
    case 9: return gemv_bits<4, true>(layout, first, rows, x, tokens, y, y_stride);
    case 16: return gemv_bits<8, false>(layout, first, rows, x, tokens, y, y_stride);
    case 17: return gemv_bits<8, true>(layout, first, rows, x, tokens, y, y_stride);
    default: __builtin_trap();
  }
}

// Columns [begin, end) of one row as weights in arranged order; begin is a multiple of the unit.
template <int kBits>
void decode_row(const GroupIntLayout& layout, int64_t row, int64_t begin, int64_t end, float* out) {
  constexpr int64_t kUnitBytes = 2 * kBits;
  const uint8_t* codes = layout.codes + row * layout.row_bytes;
  Decoder<kBits, true> decoder;
  int64_t j = begin;
  while (j < end) {
    const int64_t group = j / layout.group_size;
    decoder.set(scale_at(layout, row, group), zero_at(layout, row, group));
    const int64_t group_end = smaller(end, (group + 1) * layout.group_size);
    for (; j < group_end; j += kGroupIntUnit) {
      const uint8_t* p = codes + j / kGroupIntUnit * kUnitBytes;
      alignas(16) uint8_t buffer[16];
      if (j + kGroupIntUnit > layout.in_features) p = tail_unit(p, codes + layout.row_bytes - p, buffer);
      const Unit weights = decoder.decode(p);
#pragma GCC unroll 2
      for (int v = 0; v < kUnitVectors; ++v) store(out + (j - begin) + v * kLanes, weights.v[v]);
    }
  }
}

// kPanelRows rows of the panel times kTokens tokens.
template <int kTokens>
void multiply_tile(const float* panel, int64_t depth, const float* x, int64_t x_stride, float* out) {
  Vec sums[kTokens][kPanelRows];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) sums[t][r] = zero();
  }
  for (int64_t j = 0; j < depth; j += kLanes) {
    Vec token[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) token[t] = load(x + t * x_stride + j);
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) {
      const Vec weight = load_once(panel + r * kGroupIntDepth + j);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) sums[t][r] = fma(weight, token[t], sums[t][r]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) reduce_panel(sums[t], out + t * kPanelRows);
}

template <int kBits>
void gemm_bits(const GroupIntLayout& layout, int64_t first, int64_t rows, const float* x, int64_t tokens, float* panel,
               float* y, int64_t y_stride) {
  const int64_t x_stride = (layout.in_features + kGroupIntUnit - 1) / kGroupIntUnit * kGroupIntUnit;
  for (int64_t begin = 0; begin < layout.in_features; begin += kGroupIntDepth) {
    const int64_t end = smaller(layout.in_features, begin + kGroupIntDepth);
    const int64_t depth = smaller(x_stride - begin, kGroupIntDepth);
    for (int64_t row = 0; row < rows; row += kPanelRows) {
      const int64_t here = smaller(kPanelRows, rows - row);
      for (int64_t r = 0; r < kPanelRows; ++r) {
        // Rows that are missing repeat the last one, so that the tile meets only defined numbers.
        decode_row<kBits>(layout, first + row + smaller(r, here - 1), begin, end, panel + r * kGroupIntDepth);
      }
      for (int64_t t = 0; t < tokens; t += kTileTokens) {
        const int64_t now = smaller(kTileTokens, tokens - t);
        const float* xt = x + t * x_stride + begin;
        float tile[kTileTokens * kPanelRows];
        switch (now) {
          case 1: multiply_tile<1>(panel, depth, xt, x_stride, tile); break;
          case 2: multiply_tile<2>(panel, depth, xt, x_stride, tile); break;
          default: multiply_tile<3>(panel, depth, xt, x_stride, tile); break;
        }
        for (int64_t i = 0; i < now; ++i) {
          float* out = y + (t + i) * y_stride + first + row;
          for (int64_t r = 0; r < here; ++r) {
            const float before = begin > 0 ? out[r] : layout.bias != nullptr ? layout.bias[first + row + r] : 0.0f;
            out[r] = before + tile[i * kPanelRows + r];
          }
        }
      }
    }
  }
}

void gemm(const GroupIntLayout& layout, int64_t first, int64_t rows, const float* x, int64_t tokens, float* panel,
          float* y, int64_t y_stride) {
  switch (layout.bits) {
    case 2: return gemm_bits<2>(layout, first, rows, x, tokens, panel, y, y_stride);
    case 3: return gemm_bits<3>(layout, first, rows, x, tokens, panel, y, y_stride);
    case 4: return gemm_bits<4>(layout, first, rows, x, tokens, panel, y, y_stride);
    case 8: return gemm_bits<8>(layout, first, rows, x, tokens, panel, y, y_stride);
    default: __builtin_trap();
  }
}

void arrange(int bits, const float* x, int64_t k, float* out) {
  const int64_t whole = k / kGroupIntUnit * kGroupIntUnit;
  float last[kGroupIntUnit] = {};
  for (int64_t j = whole; j < k; ++j) last[j - whole] = x[j];
  for (int64_t j = 0; j < k; j += kGroupIntUnit) {
    const float* in = j < whole ? x + j : last;
    if (bits == 4) {
      interleave_halves(in, out + j);
    } else {
      for (int v = 0; v < kUnitVectors; ++v) store(out + j + v * kLanes, load(in + v * kLanes));
    }
  }
}

}  // namespace

extern const GroupIntKernels kGroupIntKernels;
const GroupIntKernels kGroupIntKernels = {.arrange = arrange, .gemv = gemv, .gemm = gemm};

}  // namespace nibble::NIBBLE_ISA
