// quik's vector kernels.
#include "formats/cpu_refusal.h"
#include "formats/quik/strips.h"
#include "formats/strip_op.h"

namespace nibble::quik {

extern const LinearKernel kAvx2Kernel, kAvxVnniKernel, kAvx512VnniKernel, kAmxKernel;

namespace {

// Splitting x of outlier columns in two bf16 numbers costs 2^-17 of a product; the format allows 4 k 2^-24.
constexpr int64_t kTileMinColumns = 64;

struct Kind {
  using IsaKernels = quik::IsaKernels;
  using Strips = quik::Strips;
  using Activations = quik::Activations;
  using Output = quik::Output;
  static constexpr int64_t kColumns = kBlockColumns;

  static int64_t code_columns(const Weights& w) { return w.k_int; }
  static int64_t pieces(const Weights& w) { return w.blocks; }
  static int64_t accumulators(const Weights& w) { return w.n; }
  static const uint8_t* token_codes(const Activations& a, const Weights& w, int64_t token) {
    return quik::token_codes(a, w.blocks, token);
  }
  static int64_t tile_rows(int64_t tokens, int64_t token) { return quik::tile_rows(tokens, token); }
  static int64_t scratch_bytes(const Weights& w, bool) { return multiply_scratch_bytes(w); }

  static Activations quantize(const IsaKernels& isa, const Weights& w, const float* x, int64_t tokens,
                              Scratch& scratch, ThreadPool& pool) {
    const auto count = static_cast<size_t>(tokens);
    Activations a{};
    a.tokens = tokens;
    a.codes = scratch.take<uint8_t>(count * static_cast<size_t>(w.blocks * kBlockColumns));
    a.scales = scratch.take<float>(count);
    a.zeros = scratch.take<int32_t>(count);
    a.offsets = scratch.take<int32_t>(count);
    a.outliers = scratch.take<float>(count * static_cast<size_t>(w.outliers));
    if (isa.tiles_from_tokens > 0 && tokens >= isa.tiles_from_tokens && w.outliers > 0 &&
        w.k >= kTileMinColumns) {
      a.outlier_tiles =
          scratch.take<uint16_t>(count * static_cast<size_t>(w.outlier_blocks * kOutlierBlock * 2));
    }
    const int64_t row_floats = quantize_scratch_floats(w);
    float* rows = scratch.take<float>(static_cast<size_t>(pool.size() * row_floats));
    for_quantize_tasks(tokens, w.k, pool, [&](int64_t first, int64_t last, int thread) {
      isa.quantize(w, x, a, first, last, rows + thread * row_floats);
    });
    return a;
  }
};

template <const IsaKernels& kIsa>
constexpr auto kPrepare = StripOp<Kind>::prepare<kIsa>;

}  // namespace

const LinearKernel kAvx2Kernel = {"quik-avx2", cpu_refusal<CpuPath::kAvx2>, kPrepare<avx2::kKernels>};
const LinearKernel kAvxVnniKernel = {"quik-avxvnni", cpu_refusal<CpuPath::kAvxVnni>,
                                     kPrepare<avxvnni::kKernels>};
const LinearKernel kAvx512VnniKernel = {"quik-avx512vnni", cpu_refusal<CpuPath::kAvx512Vnni>,
                                        kPrepare<avx512vnni::kKernels>};
const LinearKernel kAmxKernel = {"quik-amx", cpu_refusal<CpuPath::kAmx>, kPrepare<amx::kKernels>};

}  // namespace nibble::quik
