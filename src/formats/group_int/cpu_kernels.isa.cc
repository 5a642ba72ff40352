// group_int on AVX2 and AVX-512: how its rows decode; the products are in row_products.h.
#include "formats/group_int/cpu_kernels.h"

#include "formats/group_int/row_products.h"

namespace nibble::NIBBLE_ISA {
namespace {

// kScaled: group scales are folded into the decoded weights; else the one scale of a row multiplies the sum.
template <int kBitsOfCode, bool kScaled>
struct GroupIntRows {
  static constexpr int kBits = kBitsOfCode;
  static constexpr int64_t kDepth = kGroupIntDepth;
  static constexpr bool kBlocks = false;
  using Decoder = NIBBLE_ISA::Decoder<kBits, kScaled>;
  struct State {
    bool symmetric;
    alignas(64) float scales[kGemvRows][kGroupChunk];
  };
  const GroupIntLayout& layout;
  const int64_t groups, group_size;

  explicit GroupIntRows(const GroupIntLayout& l) : layout(l), groups(l.groups), group_size(l.group_size) {}

  void start(const int64_t* row, Decoder* decoder, State& state) const {
    state.symmetric = is_symmetric(layout);
#pragma GCC unroll 4
    for (int r = 0; r < kGemvRows; ++r) decoder[r].set_zero(zero_at(layout, row[r], 0));
  }

  void enter_group(int64_t group, const int64_t* row, Decoder* decoder, State& state) const {
    if constexpr (kScaled) {
      const int64_t in_chunk = group % kGroupChunk;
      if (in_chunk == 0) {
        const int64_t count = smaller(kGroupChunk, layout.groups - group);
        for (int r = 0; r < kGemvRows; ++r) load_scales(layout, row[r], group, count, state.scales[r]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kGemvRows; ++r) {
        if (!state.symmetric) decoder[r].set_zero(zero_at(layout, row[r], group));
        decoder[r].set_scale(state.scales[r][in_chunk]);
      }
    }
  }

  float finish(int64_t row, float sum, const float*) const {
    if (!kScaled) sum *= scale_at(layout, row, 0);
    return layout.bias != nullptr ? sum + layout.bias[row] : sum;
  }

  void decode_row(int64_t row, int64_t begin, int64_t end, float* out) const {
    constexpr int64_t kUnitBytes = 2 * kBits;
    const uint8_t* codes = layout.codes + row * layout.row_bytes;
    NIBBLE_ISA::Decoder<kBits, true> decoder;
    int64_t j = begin;
    while (j < end) {
      const int64_t group = j / layout.group_size;
      decoder.set_zero(zero_at(layout, row, group));
      decoder.set_scale(scale_at(layout, row, group));
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
};

void gemv(const GroupIntLayout& layout, int64_t first, int64_t rows, const float* x, const float* plain,
          int64_t tokens, float* y, int64_t y_stride) {
  const bool scaled = layout.groups > 1 || layout.zeros_f32 != nullptr;
  switch (layout.bits * 2 + scaled) {
    case 4:
      return multiply_few(GroupIntRows<2, false>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 5:
      return multiply_few(GroupIntRows<2, true>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 6:
      return multiply_few(GroupIntRows<3, false>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 7:
      return multiply_few(GroupIntRows<3, true>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 8:
      return multiply_few(GroupIntRows<4, false>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 9:
      return multiply_few(GroupIntRows<4, true>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 16:
      return multiply_few(GroupIntRows<8, false>(layout), first, rows, x, plain, tokens, y, y_stride);
    case 17:
      return multiply_few(GroupIntRows<8, true>(layout), first, rows, x, plain, tokens, y, y_stride);
    default:
      __builtin_trap();
  }
}

void gemm(const GroupIntLayout& layout, int64_t first, int64_t rows, const float* x, int64_t tokens,
          float* panel, float* y, int64_t y_stride) {
  switch (layout.bits) {
    case 2:
      return multiply_many(GroupIntRows<2, true>(layout), first, rows, x, tokens, panel, y, y_stride);
    case 3:
      return multiply_many(GroupIntRows<3, true>(layout), first, rows, x, tokens, panel, y, y_stride);
    case 4:
      return multiply_many(GroupIntRows<4, true>(layout), first, rows, x, tokens, panel, y, y_stride);
    case 8:
      return multiply_many(GroupIntRows<8, true>(layout), first, rows, x, tokens, panel, y, y_stride);
    default:
      __builtin_trap();
  }
}

}  // namespace

extern const GroupIntKernels kGroupIntKernels;
const GroupIntKernels kGroupIntKernels = {
    .gemv_tokens = kGemvLimit, .arrange = arrange, .gemv = gemv, .gemm = gemm};

}  // namespace nibble::NIBBLE_ISA
