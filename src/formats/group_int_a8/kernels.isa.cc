// The group_int_a8 kernels of one instruction set; see nibble_isa_objects() in cmake/nibble_targets.cmake.
#include "formats/group_int_a8/kernels.h"

#if defined(__AVX512F__)
#include "formats/group_int_a8/isa/dot_512.h"
#else
#include "formats/group_int_a8/isa/dot_256.h"
#endif
#include "formats/group_int_a8/isa/quantize.h"
#include "formats/group_int_a8/isa/sums.h"

namespace nibble::group_int_a8::NIBBLE_ISA {
namespace {

// From this many tokens on, unpacking a strip of 4-bit codes once costs less than unpacking it for every few
// tokens.
constexpr int64_t kWidenFromTokens = 24;
static_assert(kDotTokens <= kMaxDotTokens && kTileTokens % kDotTokens == 0);

void multiply(const Weights& w, const Activations& a, int64_t first_strip, int64_t last_strip, int64_t first,
              int64_t last, const Output& output, uint8_t* scratch) {
  const bool accumulators = output.accumulators != nullptr;
  uint8_t* group_sums = scratch + kSumBytes;
  uint8_t* panel = group_sums + (accumulators ? w.groups * kSumBytes : 0);
  const bool widen = w.weight_bits == 4 && last - first >= kWidenFromTokens;
  for (int64_t strip = first_strip; strip < last_strip; ++strip) {
    const uint8_t* codes = w.codes + strip * strip_bytes(w);
    if (widen) {
      widen_strip(codes, w.steps, panel);
      codes = panel;
    }
    const int64_t scales = strip * w.groups * kStripRows;
    Product product = {.codes = codes,
                       .steps = w.steps,
                       .groups = w.groups,
                       .group_steps = w.group_steps,
                       .scales = w.scales == nullptr ? nullptr : w.scales + scales,
                       .half_scales = w.half_scales == nullptr ? nullptr : w.half_scales + scales,
                       .multipliers = w.multipliers == nullptr ? nullptr : w.multipliers + scales,
                       .activations = nullptr,
                       .stride = 0,
                       .starts = nullptr,
                       .sums = scratch,
                       .group_sums = accumulators ? reinterpret_cast<int32_t*>(group_sums) : nullptr};
    const StripRows rows = strip_rows(w, strip);
    for (int64_t token = first; token < last;) {
      const int64_t tile = tile_rows(a.tokens, token);
      int64_t count = tile - token % kTileTokens;
      if (count > kDotTokens) count = kDotTokens;
      if (count > last - token) count = last - token;
      product.activations = token_codes(a, w.steps, token);
      product.stride = tile * kStep;
      product.starts = a.starts + token * w.groups;
      find_dot(w.weight_bits, widen, count)(product);
      if (__builtin_expect(accumulators, 0)) {
        copy_sums(rows, product, w.n, token, count, output.accumulators);
      } else {
        finish(rows, a, token, count, scratch, output);
      }
      token += count;
    }
  }
}

}  // namespace

extern const IsaKernels kKernels;

const IsaKernels kKernels = {.quantize = quantize, .multiply = multiply};

}  // namespace nibble::group_int_a8::NIBBLE_ISA
