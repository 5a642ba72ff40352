// The quik kernels of one instruction set; see nibble_isa_objects() in cmake/nibble_targets.cmake.
#include "formats/quik/kernels.h"

#if defined(__AMX_INT8__)
#include "formats/quik/isa/amx.h"
#endif
#if defined(__AVX512F__)
#include "formats/quik/isa/dot_512.h"
#else
#include "formats/quik/isa/dot_256.h"
#endif
#include "formats/quik/isa/finish.h"
#include "formats/quik/isa/quantize.h"

namespace nibble::quik::NIBBLE_ISA {
namespace {

// From this many tokens on, unpacking a strip of 4-bit codes once costs less than unpacking it for every few
// tokens.
constexpr int64_t kWidenFromTokens = 24;

void multiply_vectors(const Weights& w, const Activations& a, int64_t first_strip, int64_t last_strip,
                      int64_t first, int64_t last, const Output& output, uint8_t* scratch) {
  int32_t* c = reinterpret_cast<int32_t*>(scratch);
  float* f = reinterpret_cast<float*>(scratch) + kDotTokens * kStripRows;
  static_assert(2 * kDotTokens * kStripRows * 4 <= 2 * kStripRows * kStripRows * 4);
  for (int64_t strip = first_strip; strip < last_strip; ++strip) {
    const uint8_t* codes = w.codes + strip * strip_bytes(w);
    const StripRows rows = strip_rows(w, strip);
    bool wide = false;
#if defined(__AVX512F__)
    if (w.weight_bits == 4 && last - first >= kWidenFromTokens) {
      uint8_t* panel = scratch + 2 * kStripRows * kStripRows * 4;
      widen_strip(codes, w.blocks, panel);
      codes = panel;
      wide = true;
    }
#endif
    for (int64_t token = first; token < last;) {
      const int64_t tile = tile_rows(a.tokens, token);
      int64_t count = tile - token % kTileTokens;
      if (count > kDotTokens) count = kDotTokens;
      if (count > last - token) count = last - token;
      const Dot dot_tokens = find_dot(wide ? 8 : w.weight_bits, w.activation_bits, count);
      dot_tokens(codes, token_codes(a, w.blocks, token), tile * kBlockColumns, w.blocks, c);
      if (w.outliers > 0) {
        kOutlierSums[count - 1](w, strip, a.outliers + token * w.outliers, f);
      }
      finish(rows, a, token, count, c, w.outliers > 0 ? f : nullptr, output, w.n);
      token += count;
    }
  }
}

#if defined(__AMX_INT8__)
// Fewer tokens than this are faster with vectors, eight at a time.
constexpr int64_t kTilesFromTokens = 9;

void multiply(const Weights& w, const Activations& a, int64_t first_strip, int64_t last_strip, int64_t first,
              int64_t last, const Output& output, uint8_t* scratch) {
  const auto run = a.tokens >= kTilesFromTokens ? multiply_strips : multiply_vectors;
  run(w, a, first_strip, last_strip, first, last, output, scratch);
}
#else
constexpr int64_t kTilesFromTokens = 0;
constexpr auto multiply = multiply_vectors;
#endif

}  // namespace

extern const IsaKernels kKernels;

const IsaKernels kKernels = {
    .tiles_from_tokens = kTilesFromTokens,
    .quantize = quantize,
    .multiply = multiply,
};

}  // namespace nibble::quik::NIBBLE_ISA
