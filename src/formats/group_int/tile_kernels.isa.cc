// group_int on AMX: bf16 tiles of integer weights times three-part activations; see tile_kernels.h for why
// that is exact.
//
// Rows of weights are rows of the first operand, tokens are columns of the second, so decoded rows need no
// transposition; results come as [row][token] and are turned once, when they are complete.
#include "formats/group_int/tile_kernels.h"

#include "formats/group_int/decode.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr int64_t kStep = kGroupIntStep;
constexpr int64_t kTile = kGroupIntTileTokens;
constexpr int64_t kParts = 3;
constexpr int64_t kStepBytes = kParts * kGroupIntTileBytes;  // of one packed tile of tokens
constexpr int64_t kPairTokens = 2 * kTile;                   // multiplied at once
constexpr int64_t kBlockRows = 2 * kTile;                    // multiplied at once
// Columns between two additions of results to the sums: the tokens' part of a span (24 KiB) stays in the
// first-level cache while the rows pass by.
constexpr int64_t kSpan = 128;

// g++ 12's tile intrinsics do not tell the compiler that they read and write memory (GCC bug 114098).
inline void memory_is_visible() { asm volatile("" ::: "memory"); }

void configure_tiles() {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Transposes 16 x 16 dwords in place.
inline void transpose(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// The upper halves of 32 floats, which are exact bf16 numbers here.
inline __m512i upper_halves(Vec first, Vec second) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                    23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                    45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(_mm512_castps_si512(first), _mm512_load_si512(kOdd),
                                   _mm512_castps_si512(second));
}

// The upper 8 bits of the significand; what remains is exact, and after three times nothing remains of FP32's
// 24 bits.
inline Vec truncate_to_bf16(Vec v) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// 2^e with max |x| in [2^e, 2^(e + 1)), so that x / 2^e is far from the range that tiles flush to zero; 1 for
// tokens that are zero or not finite.
float power_of_largest(const float* x, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t j = 0; j < count; j += kLanes) {
    largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(load(x + j)), magnitude));
  }
  const int bits = _mm512_reduce_max_epi32(largest);
  int exponent = bits >> 23;
  if (bits == 0 || exponent == 255) return 1.0f;
  // Both the power and its inverse must be normal numbers.
  if (exponent < 1) exponent = 1;
  if (exponent > 253) exponent = 253;
  return bits_float(static_cast<uint32_t>(exponent) << 23);
}

void pack_tokens(int bits, const float* x, int64_t tokens, int64_t k, uint8_t* packed, float* scales,
                 float* buffer) {
  const int64_t width = (k + kStep - 1) / kStep * kStep;
  Vec inverse[kTile];
  for (int64_t t = 0; t < kTile; ++t) {
    float* row = buffer + t * width;
    store(row + width - kLanes, zero());  // arrange() fills whole units only
    if (t < tokens) {
      arrange(bits, x + t * k, k, row);
    } else {
      for (int64_t j = 0; j < width; j += kLanes) store(row + j, zero());
    }
    scales[t] = power_of_largest(row, width);
    inverse[t] = set1(1.0f / scales[t]);
  }
  for (int64_t j = 0; j < width; j += kStep) {
    __m512i part[kParts][kTile];
    for (int64_t t = 0; t < kTile; ++t) {
      Vec first = mul(load(buffer + t * width + j), inverse[t]);
      Vec second = mul(load(buffer + t * width + j + kLanes), inverse[t]);
#pragma GCC unroll 3
      for (int p = 0; p < kParts; ++p) {
        const Vec a = truncate_to_bf16(first), b = truncate_to_bf16(second);
        part[p][t] = upper_halves(a, b);
        first = sub(first, a);
        second = sub(second, b);
      }
    }
    for (int p = 0; p < kParts; ++p) {
      transpose(part[p]);
      for (int64_t row = 0; row < kTile; ++row) _mm512_storeu_si512(packed + row * 64, part[p][row]);
      packed += kGroupIntTileBytes;
    }
  }
}

// Columns [begin, end) of one row as integers in bf16, one 64-byte row of consecutive tiles that are `stride`
// bytes apart.
template <int kBits>
void decode_row(const GroupIntLayout& layout, int64_t row, int64_t begin, int64_t end, uint8_t* out,
                int64_t stride) {
  constexpr int64_t kUnitBytes = 2 * kBits;
  const uint8_t* codes = layout.codes + row * layout.row_bytes;
  Decoder<kBits, false> decoder;
  for (int64_t j = begin; j < end;) {
    const int64_t group = j / layout.group_size;
    decoder.set_zero(zero_at(layout, row, group));
    const int64_t group_end = smaller(end, (group + 1) * layout.group_size);
    for (; j < group_end; j += kStep, out += stride) {
      Vec half[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const int64_t column = j + h * kGroupIntUnit;
        const uint8_t* p = codes + column / kGroupIntUnit * kUnitBytes;
        alignas(16) uint8_t buffer[16];
        if (column + kGroupIntUnit > layout.in_features) {
          p = tail_unit(p, column < layout.in_features ? codes + layout.row_bytes - p : 0, buffer);
        }
        half[h] = decoder.decode(p).v[0];
      }
      _mm512_storeu_si512(out, upper_halves(half[0], half[1]));
    }
  }
}

void decode_panel(const GroupIntLayout& layout, int64_t first, int64_t rows, int64_t begin, int64_t end,
                  uint8_t* panel) {
  // [block of 32 rows][step][half][16 rows][64 bytes]; rows that are missing repeat the last one.
  const int64_t steps = (end - begin + kStep - 1) / kStep;
  for (int64_t r = 0; r < (rows + kBlockRows - 1) / kBlockRows * kBlockRows; ++r) {
    uint8_t* out = panel + r / kBlockRows * steps * 2 * kGroupIntTileBytes +
                   r % kBlockRows / kTile * kGroupIntTileBytes + r % kTile * 64;
    const int64_t row = first + smaller(r, rows - 1);
    switch (layout.bits) {
      case 2:
        decode_row<2>(layout, row, begin, end, out, 2 * kGroupIntTileBytes);
        break;
      case 3:
        decode_row<3>(layout, row, begin, end, out, 2 * kGroupIntTileBytes);
        break;
      case 4:
        decode_row<4>(layout, row, begin, end, out, 2 * kGroupIntTileBytes);
        break;
      default:
        decode_row<8>(layout, row, begin, end, out, 2 * kGroupIntTileBytes);
        break;
    }
  }
}

// result [32 rows][32 tokens] = 32 rows times one or two tiles of tokens over `steps` steps.
template <bool kTwo>
void multiply_tiles(const uint8_t* panel, const uint8_t* tokens0, const uint8_t* tokens1, int64_t steps,
                    float* result) {
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, panel, 64);
    _tile_loadd(7, panel + kGroupIntTileBytes, 64);
#pragma GCC unroll 3
    for (int p = 0; p < kParts; ++p) {
      _tile_loadd(4, tokens0 + p * kGroupIntTileBytes, 64);
      _tile_dpbf16ps(0, 6, 4);
      _tile_dpbf16ps(1, 7, 4);
      if (kTwo) {
        _tile_loadd(5, tokens1 + p * kGroupIntTileBytes, 64);
        _tile_dpbf16ps(2, 6, 5);
        _tile_dpbf16ps(3, 7, 5);
      }
    }
    panel += 2 * kGroupIntTileBytes;
    tokens0 += kStepBytes;
    tokens1 += kStepBytes;
  }
  constexpr int64_t kStride = kPairTokens * sizeof(float);
  _tile_stored(0, result, kStride);
  _tile_stored(1, result + kTile * kPairTokens, kStride);
  if (kTwo) {
    _tile_stored(2, result + kTile, kStride);
    _tile_stored(3, result + kTile * kPairTokens + kTile, kStride);
  }
  memory_is_visible();
}

// sums [32][32] += scales of the 32 rows times result.
template <bool kTwo>
void add_scaled(const float* result, const float* scales, float* sums) {
#pragma GCC unroll 4
  for (int64_t r = 0; r < kBlockRows; ++r) {
    const Vec scale = set1(scales[r]);
    float* sum = sums + r * kPairTokens;
    store(sum, fma(scale, load(result + r * kPairTokens), load(sum)));
    if (kTwo) store(sum + kTile, fma(scale, load(result + r * kPairTokens + kTile), load(sum + kTile)));
  }
}

// One 16 x 16 part of the sums, [row][token], to y.
void write_results(const float* sums, const float* token_scales, int64_t rows, int64_t tokens,
                   const float* bias, bool add_to, float* y, int64_t y_stride) {
  __m512i block[kTile];
  const Vec scale = load(token_scales);
  for (int64_t r = 0; r < kTile; ++r)
    block[r] = _mm512_castps_si512(mul(load(sums + r * kPairTokens), scale));
  transpose(block);
  const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1u);
  const Vec start = bias != nullptr ? _mm512_maskz_loadu_ps(mask, bias) : zero();
  for (int64_t t = 0; t < tokens; ++t) {
    float* out = y + t * y_stride;
    const Vec before = add_to ? _mm512_maskz_loadu_ps(mask, out) : start;
    _mm512_mask_storeu_ps(out, mask, add(before, _mm512_castsi512_ps(block[t])));
  }
}

struct Panel {
  const GroupIntLayout* layout;
  int64_t first, rows;  // of the panel
  int64_t begin, end;   // columns
  const uint8_t* weights;
  const float* scales;  // [span][64 rows]
  int64_t span;         // columns
  float *sums, *result;
};

// The panel times one or two tiles of tokens.
template <bool kTwo>
void multiply_panel(const Panel& panel, const uint8_t* tokens0, const uint8_t* tokens1,
                    const float* token_scales, int64_t tokens, float* y, int64_t y_stride) {
  const int64_t steps = (panel.end - panel.begin + kStep - 1) / kStep, span_steps = panel.span / kStep;
  const int64_t first_step = panel.begin / kStep;
  for (int64_t i = 0; i < kGroupIntTileRows * kPairTokens; i += kLanes) store(panel.sums + i, zero());
  for (int64_t step = 0; step < steps; step += span_steps) {
    const int64_t offset = (first_step + step) * kStepBytes;
    for (int64_t r = 0; r < panel.rows; r += kBlockRows) {
      const uint8_t* weights = panel.weights + (r / kBlockRows * steps + step) * 2 * kGroupIntTileBytes;
      multiply_tiles<kTwo>(weights, tokens0 + offset, tokens1 + offset, smaller(span_steps, steps - step),
                           panel.result);
      add_scaled<kTwo>(panel.result, panel.scales + step / span_steps * kGroupIntTileRows + r,
                       panel.sums + r * kPairTokens);
    }
  }
  for (int64_t r = 0; r < panel.rows; r += kTile) {
    const float* bias = panel.layout->bias == nullptr ? nullptr : panel.layout->bias + panel.first + r;
    for (int64_t t = 0; t < tokens; t += kTile) {
      write_results(panel.sums + r * kPairTokens + t, token_scales + t, smaller(kTile, panel.rows - r),
                    smaller(kTile, tokens - t), bias, panel.begin > 0, y + t * y_stride + panel.first + r,
                    y_stride);
    }
  }
}

void multiply(const GroupIntLayout& layout, int64_t first, int64_t rows, const uint8_t* packed,
              const float* scales, int64_t tokens, uint8_t* scratch, float* y, int64_t y_stride) {
  const int64_t tile_stride = (layout.in_features + kStep - 1) / kStep * kStepBytes;
  uint8_t* weights = scratch;
  float* row_scales = reinterpret_cast<float*>(weights + kGroupIntTileRows * kGroupIntTileDepth * 2);
  float* sums = row_scales + kGroupIntTileRows * (kGroupIntTileDepth / kStep);
  float* result = sums + kGroupIntTileRows * kPairTokens;
  // Each span has one scale per row: the greatest part of a group that is a divisor of it, so that groups
  // hold whole spans.
  int64_t span = kSpan;
  if (layout.groups > 1) {
    while (layout.group_size % span != 0) span -= kStep;
  }
  const int64_t depth = kGroupIntTileDepth / span * span;

  configure_tiles();
  for (int64_t begin = 0; begin < layout.in_features; begin += depth) {
    const int64_t end = smaller(layout.in_features, begin + depth);
    decode_panel(layout, first, rows, begin, end, weights);
    for (int64_t j = begin; j < end; j += span) {
      for (int64_t r = 0; r < kGroupIntTileRows; ++r) {
        row_scales[(j - begin) / span * kGroupIntTileRows + r] =
            scale_at(layout, first + smaller(r, rows - 1), j / layout.group_size);
      }
    }
    memory_is_visible();
    const Panel panel = {&layout, first, rows, begin, end, weights, row_scales, span, sums, result};
    for (int64_t t = 0; t < tokens; t += kPairTokens) {
      const uint8_t* tile = packed + t / kTile * tile_stride;
      if (tokens - t > kTile) {
        multiply_panel<true>(panel, tile, tile + tile_stride, scales + t, smaller(kPairTokens, tokens - t),
                             y + t * y_stride, y_stride);
      } else {
        multiply_panel<false>(panel, tile, tile, scales + t, tokens - t, y + t * y_stride, y_stride);
      }
    }
  }
  _tile_release();
}

}  // namespace

extern const GroupIntTileKernels kGroupIntTileKernels;
const GroupIntTileKernels kGroupIntTileKernels = {.pack_tokens = pack_tokens, .multiply = multiply};

}  // namespace nibble::NIBBLE_ISA
