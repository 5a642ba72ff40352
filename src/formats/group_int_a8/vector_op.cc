// group_int_a8's vector kernels.
#include "formats/cpu_refusal.h"
#include "formats/group_int_a8/strips.h"
#include "formats/strip_op.h"

namespace nibble::group_int_a8 {

extern const LinearKernel kAvx2Kernel, kAvxVnniKernel, kAvx512VnniKernel;

namespace {

struct Kind {
  using IsaKernels = group_int_a8::IsaKernels;
  using Strips = group_int_a8::Strips;
  using Activations = group_int_a8::Activations;
  using Output = group_int_a8::Output;
  static constexpr int64_t kColumns = kStep;

  static int64_t code_columns(const Weights& w) { return w.k; }
  static int64_t pieces(const Weights& w) { return w.steps; }
  static int64_t accumulators(const Weights& w) { return w.n * (w.multipliers == nullptr ? w.groups : 1); }
  static const int8_t* token_codes(const Activations& a, const Weights& w, int64_t token) {
    return group_int_a8::token_codes(a, w.steps, token);
  }
  static int64_t tile_rows(int64_t tokens, int64_t token) { return group_int_a8::tile_rows(tokens, token); }
  static int64_t scratch_bytes(const Weights& w, bool accumulators) {
    return multiply_scratch_bytes(w, accumulators);
  }

  static Activations quantize(const IsaKernels& isa, const Weights& w, const float* x, int64_t tokens,
                              Scratch& scratch, ThreadPool& pool) {
    const auto count = static_cast<size_t>(tokens);
    Activations a{};
    a.tokens = tokens;
    a.codes = scratch.take<int8_t>(count * static_cast<size_t>(w.steps * kStep));
    a.scales = scratch.take<float>(count);
    a.starts = scratch.take<int32_t>(count * static_cast<size_t>(w.groups));
    for_quantize_tasks(tokens, w.k, pool,
                       [&](int64_t first, int64_t last, int) { isa.quantize(w, x, a, first, last); });
    return a;
  }
};

template <const IsaKernels& kIsa>
constexpr auto kPrepare = StripOp<Kind>::prepare<kIsa>;

}  // namespace

const LinearKernel kAvx2Kernel = {"group_int_a8-avx2", cpu_refusal<CpuPath::kAvx2>, kPrepare<avx2::kKernels>};
const LinearKernel kAvxVnniKernel = {"group_int_a8-avxvnni", cpu_refusal<CpuPath::kAvxVnni>,
                                     kPrepare<avxvnni::kKernels>};
const LinearKernel kAvx512VnniKernel = {"group_int_a8-avx512vnni", cpu_refusal<CpuPath::kAvx512Vnni>,
                                        kPrepare<avx512vnni::kKernels>};

}  // namespace nibble::group_int_a8
