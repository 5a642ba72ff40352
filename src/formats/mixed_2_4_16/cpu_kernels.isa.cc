// mixed_2_4_16 on AVX2, AVX-VNNI and AVX-512. Rows of a tile are in the lanes of vectors, so a group's scales
// and zero points are vectors too and nothing is summed across lanes.
//
// Few tokens: an activation is held as two 16-bit integers (cpu_kernels.h). A shift and an "and" bring two
// columns' codes into the halves of each lane's dword, and 16-bit dot products add them up without any
// rounding: neither the codes nor the zero points, which are subtracted from the exact sums, are ever
// converted to weights. Many tokens: weights are decoded to a panel and multiplied by the tile of the float
// GEMM.
#include "formats/mixed_2_4_16/cpu_kernels.h"

#include "formats/mixed_2_4_16/rows_in_lanes.h"
#include "kernels/cpu/register_tile.h"

namespace nibble::NIBBLE_ISA {
namespace {

// How far ahead of the products their codes are fetched (8 KiB of main words), and the first-order words
// ahead of those.
constexpr int64_t kUnitsAhead = 32;
constexpr int64_t kFirstOrderAhead = 48;

// Tokens of one pass over the codes, as many as registers hold, and up to which passes are faster than
// decoding weights, as measured on [1024, 2048].
#if defined(__AVX512F__)
constexpr int64_t kPassTokens = 4, kFewTokens = 8;
#elif defined(__AVXVNNI__)
constexpr int64_t kPassTokens = 2, kFewTokens = 6;
#else
constexpr int64_t kPassTokens = 2, kFewTokens = 4;
#endif

static_assert(kTileColumns == kMixedTile || kTileColumns == 2 * kMixedTile);

// --- activations as integers

void to_integers(const float* x, int64_t k, int64_t groups, MixedLine* lines) {
  for (int64_t group = 0; group < groups; ++group) {
    const float* in = x + group * kMixedGroup;
    alignas(16) float last[kMixedGroup] = {};
    if (const int64_t count = k - group * kMixedGroup; count < kMixedGroup) {
      for (int64_t i = 0; i < count; ++i) last[i] = in[i];
      in = last;
    }
    __m128 values[4];
    __m128i most = _mm_setzero_si128();
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      values[m] = _mm_loadu_ps(in + 4 * m);
      most = _mm_max_epi32(most, _mm_and_si128(_mm_castps_si128(values[m]), _mm_set1_epi32(0x7fffffff)));
    }
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
    // 2^e, e = biased - 126, is a power of two that |X| = |x| 2^(23 - e) <= 127 * (65536 + 256 + 1) follows
    // from: the next one above the largest magnitude, or the one after where that is just below it.
    const int biased = (_mm_cvtsi128_si32(most) + 0x10101) >> 23;
    const bool finite = _mm_cvtsi128_si32(most) < 0x7f800000;
    // The factor in two parts, which are normal numbers.
    const int shift = finite ? 149 - biased : 0, half = shift >> 1;
    const __m128 factor0 = _mm_set1_ps(bits_float(static_cast<uint32_t>(half + 127) << 23));
    const __m128 factor1 = _mm_set1_ps(bits_float(static_cast<uint32_t>(shift - half + 127) << 23));
    __m128i high_sum = _mm_setzero_si128(), sum = high_sum, high = high_sum, middle = high_sum,
            low = high_sum;
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      const __m128i integers = _mm_cvtps_epi32(_mm_mul_ps(_mm_mul_ps(values[m], factor0), factor1));
      const auto low_byte = [](__m128i v) { return _mm_srai_epi32(_mm_slli_epi32(v, 24), 24); };
      const __m128i byte0 = low_byte(integers), rest = _mm_srai_epi32(_mm_sub_epi32(integers, byte0), 8);
      const __m128i byte1 = low_byte(rest), byte2 = _mm_srai_epi32(_mm_sub_epi32(rest, byte1), 8);
      sum = _mm_add_epi32(sum, _mm_sub_epi32(integers, _mm_slli_epi32(byte2, 16)));
      high_sum = _mm_add_epi32(high_sum, byte2);
      const auto place = [&](__m128i into, __m128i byte) {
        return _mm_or_si128(into, _mm_slli_epi32(_mm_and_si128(byte, _mm_set1_epi32(255)), 8 * m));
      };
      high = place(high, byte2), middle = place(middle, byte1), low = place(low, byte0);
    }
    MixedLine& line = lines[group];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(line.bytes[0]), high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(line.bytes[1]), middle);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(line.bytes[2]), low);
    __m128i totals = _mm_hadd_epi32(high_sum, sum);
    totals = _mm_hadd_epi32(totals, totals);
    _mm_storeu_ps(&line.high_sum, _mm_cvtepi32_ps(totals));
    // 2^(e - 2), subnormal for the smallest numbers; e - 1 may be beyond the range of floats.
    line.exponent = !finite      ? bits_float(0x7fc00000u)
                    : biased < 2 ? bits_float(0x00200000u << biased)
                                 : bits_float(static_cast<uint32_t>(biased - 1) << 23);
  }
}

// --- few tokens

// Second-order scales of all units of a tile, times 2^-21, and the same times their zeros: [units][2][4].
inline void rebuild_second_order(const uint16_t* second, int64_t units, float* out) {
  const __m128i shifts = _mm_setr_epi32(0, 4, 8, 12), limits = _mm_setr_epi32(7, 7, 15, 0);
  for (int64_t unit = 0; unit < units; ++unit) {
    const __m128i words = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(second + unit * 4));
    const __m128i zeros_word = _mm_shuffle_epi32(_mm_cvtepu16_epi32(words), 0xff);
    const __m128i zeros = _mm_and_si128(_mm_srlv_epi32(zeros_word, shifts), limits);
    const __m128 scales = _mm_mul_ps(_mm_cvtph_ps(words), _mm_set1_ps(0x1p-21f));
    _mm_storeu_ps(out + unit * 8, scales);
    _mm_storeu_ps(out + unit * 8 + 4, _mm_mul_ps(scales, _mm_cvtepi32_ps(zeros)));
  }
}

struct FirstOrder {
  Vec scale[4], zero[4];  // the last one is the 4-bit group's
};

// Scales (code + z2) * s2, which are exact, and zero points of the 2-bit groups of a unit.
inline FirstOrder rebuild_first_order(IntVec word, const float* second) {
  FirstOrder out;
  const auto scale = [&](IntVec code, int slot) {
    return fma(to_float(code), set1(second[slot]), set1(second[4 + slot]));
  };
  out.scale[0] = scale(int_and(shift_right(word, 6), int_set1(7)), 0);
  out.scale[1] = scale(int_and(shift_right(word, 9), int_set1(7)), 1);
  out.scale[2] = scale(shift_right(word, 12), 2);
  out.zero[0] = to_float(int_and(word, int_set1(3)));
  out.zero[1] = to_float(int_and(shift_right(word, 2), int_set1(3)));
  out.zero[2] = to_float(int_and(shift_right(word, 4), int_set1(3)));
  return out;
}

// y += scale * 2^21 * exponent * (sum of (code - zero) X): the sums and the correction by the zero point are
// integers below 2^24, so that codes at their zero give exactly zero.
__attribute__((always_inline)) inline Vec take_up(IntVec high_sums, IntVec middle_sums, IntVec low_sums,
                                                  Vec scale, Vec zero_point, const MixedLine& line, Vec y) {
  const IntVec lower = int_add(shift_left_8(in_dwords(middle_sums)), in_dwords(low_sums));
  const Vec high = fnma(zero_point, set1(line.high_sum), to_float(in_dwords(high_sums)));
  const Vec low = fnma(zero_point, set1(line.low_sum), to_float(lower));
  return fma(mul(fma(high, set1(0x1p16f), low), scale), set1(line.exponent), y);
}

// One unit's products with all tokens.
template <int kTokens>
__attribute__((always_inline)) inline void add_unit(const Words& words, IntVec split, const FirstOrder& order,
                                                    const MixedLine* const (*lines)[kTokens], Vec* y) {
  const IntVec narrow = int_set1(0x03030303), wide = int_set1(0x0f0f0f0f);
#pragma GCC unroll 4
  for (int slot = 0; slot < 4; ++slot) {
    IntVec sums[kTokens][3];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sums[t][0] = sums[t][1] = sums[t][2] = int_zero();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const IntVec codes = slot < 3 ? int_and(shift_right(words.slot[slot], 2 * i), narrow)
                                    : int_and(shift_right(i < 2 ? words.slot[3] : split, 4 * (i & 1)), wide);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 3
        for (int b = 0; b < 3; ++b) sums[t][b] = add_bytes(sums[t][b], codes, &lines[slot][t]->bytes[b][i]);
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      y[t] = take_up(sums[t][0], sums[t][1], sums[t][2], order.scale[slot], order.zero[slot], *lines[slot][t],
                     y[t]);
    }
  }
}

struct Tile {
  const uint32_t *main, *split;
  const uint16_t *first, *second, *scales;
  const uint8_t* zeros;
};

inline Tile tile_of(const MixedLayout& layout, int64_t tile) {
  const int64_t unit = tile * layout.units, share = tile * layout.shares;
  return {layout.main + unit * 64,  layout.split + unit * 16,   layout.first + unit * 16,
          layout.second + unit * 4, layout.scales + share * 16, layout.zeros + share * 8};
}

// The dense part of one tile's rows. With kAhead, memory is fetched ahead of its use and the first-order
// scales of the next unit are rebuilt before the products of this one; without, everything happens where it
// is needed.
template <int kTokens, bool kAhead>
void gemv_tile(const MixedLayout& layout, int64_t tile_index, const MixedLine* lines, float* second,
               float* result) {
  constexpr bool kRebuildAhead = kAhead && kParts == 1;
  const Tile tile = tile_of(layout, tile_index);
  // Tiles follow each other without a gap: what lies ahead at the end of this one is the next one's.
  if (kAhead) {
    for (int64_t i = 0; i < 8; ++i) prefetch_to_l2(tile.main + i * 16);
  }
  rebuild_second_order(tile.second, layout.units, second);

  Vec y[kParts][kTokens];
  FirstOrder next[kParts];
  Vec wide_scale[kParts], wide_zero[kParts];
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) y[part][t] = zero();
    if (kRebuildAhead) next[part] = rebuild_first_order(load_words16(tile.first, part), second);
  }
  for (int64_t unit = 0; unit < layout.units; ++unit) {
    if (kAhead) {
      const uint32_t* ahead = tile.main + (unit + kUnitsAhead) * 64;
      prefetch_to_l2(ahead), prefetch_to_l2(ahead + 16), prefetch_to_l2(ahead + 32),
          prefetch_to_l2(ahead + 48);
      prefetch_to_l2(tile.split + (unit + kUnitsAhead) * 16);
      prefetch_to_l2(tile.first + (unit + kFirstOrderAhead) * 16);
      if (unit % 8 == 0) prefetch_to_l2(tile.second + (unit + layout.units) * 4);
    }
    const MixedLine* at[4][kTokens];
#pragma GCC unroll 4
    for (int slot = 0; slot < 4; ++slot) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t)
        at[slot][t] = lines + (t * layout.units * 4 + layout.order[unit * 4 + slot]);
    }
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      FirstOrder now;
      if (kRebuildAhead) {
        now = next[part];
        // The last unit rebuilds itself once more, so that nothing beyond the arrays is read.
        const int64_t following = unit + 1 < layout.units ? unit + 1 : unit;
        next[part] =
            rebuild_first_order(load_words16(tile.first + following * 16, part), second + following * 8);
      } else {
        now = rebuild_first_order(load_words16(tile.first + unit * 16, part), second + unit * 8);
      }
      if (unit % kMixedWideShare == 0) {
        const int64_t share = unit / kMixedWideShare;
        wide_scale[part] = mul(load_scales(tile.scales + share * 16, part), set1(0x1p-21f));
        wide_zero[part] = to_float(load_nibbles(tile.zeros + share * 8, part));
      }
      now.scale[3] = wide_scale[part], now.zero[3] = wide_zero[part];
      add_unit<kTokens>(load_main(tile.main + unit * 64, part), load_dwords(tile.split + unit * 16, part),
                        now, at, y[part]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) store_rows(result + t * kMixedTile, y[part][t], part);
  }
}

template <bool kAhead>
void gemv(const MixedLayout& layout, int64_t tile, const MixedLine* lines, int64_t count, const float* x,
          const int64_t* starts, float* second, float* y, int64_t y_stride) {
  alignas(64) float result[kMixedMostPass * kMixedTile];
  switch (count) {
    case 1:
      gemv_tile<1, kAhead>(layout, tile, lines, second, result);
      break;
#if defined(__AVX512F__)
    case 2:
      gemv_tile<2, kAhead>(layout, tile, lines, second, result);
      break;
    case 3:
      gemv_tile<3, kAhead>(layout, tile, lines, second, result);
      break;
#endif
    default:
      gemv_tile<kPassTokens, kAhead>(layout, tile, lines, second, result);
      break;
  }
  const int64_t first = tile * kMixedTile;
  const int64_t rows = layout.out_features - first < kMixedTile ? layout.out_features - first : kMixedTile;
  for (int64_t r = 0; r < rows; ++r) {
    const float bias = layout.bias != nullptr ? layout.bias[first + r] : 0.0f;
    float sparse[kMixedMostPass] = {};
    if (starts != nullptr) {
      for (int64_t i = starts[first + r]; i < starts[first + r + 1]; ++i) {
        const float value = _cvtsh_ss(layout.sparse_values[i]);
        const float* at = x + layout.sparse_columns[i];
        for (int64_t t = 0; t < count; ++t) sparse[t] += value * at[t * layout.in_features];
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      y[t * y_stride + first + r] = (result[t * kMixedTile + r] + sparse[t]) + bias;
    }
  }
}

// --- many tokens

void pack(const MixedLayout& layout, const float* x, int64_t tokens, int64_t unit, int64_t count,
          float* packed) {
  for (int64_t t = 0; t < kTileRows; ++t) {
    float* out = packed + t * kMixedRowStride;
    for (int64_t place = 0; place < count * kMixedSlots; ++place, out += kMixedGroup) {
      const int64_t first = layout.order[unit * kMixedSlots + place] * kMixedGroup;
      const float* in = x + t * layout.in_features + first;
      const int64_t left = t < tokens ? layout.in_features - first : 0;
      if (left >= kMixedGroup) {
        for (int64_t i = 0; i < kMixedGroup; i += kLanes) store(out + i, load(in + i));
      } else {
        for (int64_t i = 0; i < kMixedGroup; ++i) out[i] = i < left ? in[i] : 0.0f;
      }
    }
  }
}

// The codes in the lowest bits as weights, at one column of the panel.
inline void store_weights(IntVec word, int mask, Vec scale, Vec zero_point, float* out, int part) {
  const Vec code = to_float(int_and(word, int_set1(mask)));
  store(out + part * kLanes, in_row_order(mul(sub(code, zero_point), scale)));
}

inline void decode_narrow(IntVec word, Vec scale, Vec zero_point, float* out, int part) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    store_weights(shift_right(word, 2 * i), 3, scale, zero_point, out + i * kTileColumns, part);
  }
}

// Columns 0, 1, 4, 5, ... of a 4-bit group, or with the split dword and two columns on 2, 3, 6, 7, ...
inline void decode_wide(IntVec word, Vec scale, Vec zero_point, float* out, int part) {
  constexpr int64_t kColumn = kTileColumns;
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    store_weights(shift_right(word, 4 * i), 15, scale, zero_point, out + (i / 2 * 4 + i % 2) * kColumn, part);
  }
}

void decode_tile(const MixedLayout& layout, int64_t tile_index, int64_t unit, int64_t count, float* panel) {
  const Tile tile = tile_of(layout, tile_index);
  alignas(64) float second[kMixedDepth / kMixedUnit * 8];
  rebuild_second_order(tile.second + unit * 4, count, second);
  for (int64_t u = 0; u < count; ++u) {
    const int64_t at = unit + u, share = at / kMixedWideShare;
    float* out = panel + u * kMixedUnit * kTileColumns;
    for (int part = 0; part < kParts; ++part) {
      const FirstOrder order = rebuild_first_order(load_words16(tile.first + at * 16, part), second + u * 8);
      const Words words = load_main(tile.main + at * 64, part);
      for (int slot = 0; slot < 3; ++slot) {
        decode_narrow(words.slot[slot], mul(order.scale[slot], set1(0x1p21f)), order.zero[slot],
                      out + slot * kMixedGroup * kTileColumns, part);
      }
      const Vec scale = load_scales(tile.scales + share * 16, part);
      const Vec zero_point = to_float(load_nibbles(tile.zeros + share * 8, part));
      out += kMixedWideSlot * kMixedGroup * kTileColumns;
      decode_wide(words.slot[3], scale, zero_point, out, part);
      decode_wide(load_dwords(tile.split + at * 16, part), scale, zero_point, out + 2 * kTileColumns, part);
      out -= kMixedWideSlot * kMixedGroup * kTileColumns;
    }
  }
}

void decode(const MixedLayout& layout, int64_t row, int64_t unit, int64_t count, const int64_t* starts,
            const uint16_t* places, float* panel) {
  for (int64_t r = 0; r < kTileColumns; r += kMixedTile) {
    // A tile that is missing repeats the one before, so that the product meets only defined numbers.
    const int64_t tile = (row + r) / kMixedTile < layout.tiles ? (row + r) / kMixedTile : layout.tiles - 1;
    decode_tile(layout, tile, unit, count, panel + r);
  }
  if (starts == nullptr) return;
  const int64_t first = unit * kMixedUnit, end = first + count * kMixedUnit;
  for (int64_t r = 0; r < kTileColumns && row + r < layout.out_features; ++r) {
    for (int64_t i = starts[row + r]; i < starts[row + r + 1]; ++i) {
      const int64_t column = layout.sparse_columns[i];
      const int64_t place = places[column / kMixedGroup] * kMixedGroup + column % kMixedGroup;
      if (place < first || place >= end) continue;
      panel[(place - first) * kTileColumns + r] += _cvtsh_ss(layout.sparse_values[i]);
    }
  }
}

void multiply(const float* packed, int64_t tokens, int64_t depth, const float* panel, int64_t columns,
              bool first, const float* bias, float* y, int64_t y_stride) {
  const TileShape shape = {.depth = depth,
                           .start = !first            ? Start::kContinue
                                    : bias != nullptr ? Start::kRow
                                                      : Start::kZero,
                           .row = bias,
                           .c_stride = y_stride,
                           .rows = tokens,
                           .columns = columns};
  tile_rows<kMixedRowStride>(packed, panel, y, shape, nullptr);
}

}  // namespace

extern const MixedKernels kMixedKernels, kMixedSyncKernels;
const MixedKernels kMixedKernels = {.pass_tokens = kPassTokens,
                                    .few_tokens = kFewTokens,
                                    .panel_rows = kTileColumns,
                                    .pack_rows = kTileRows,
                                    .to_integers = to_integers,
                                    .gemv = gemv<true>,
                                    .pack = pack,
                                    .decode = decode,
                                    .multiply = multiply};
const MixedKernels kMixedSyncKernels = {.pass_tokens = kPassTokens,
                                        .few_tokens = kFewTokens,
                                        .panel_rows = kTileColumns,
                                        .pack_rows = kTileRows,
                                        .to_integers = to_integers,
                                        .gemv = gemv<false>,
                                        .pack = pack,
                                        .decode = decode,
                                        .multiply = multiply};

}  // namespace nibble::NIBBLE_ISA
