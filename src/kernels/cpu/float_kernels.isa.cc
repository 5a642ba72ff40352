// The float kernels of one instruction set; see nibble_isa_objects() in cmake/nibble_targets.cmake.
#include "kernels/float_kernels.h"

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm_tile.h"
#include "kernels/cpu/hadamard_tile.h"

namespace nibble::NIBBLE_ISA {

extern const FloatKernels kFloatKernels;

const FloatKernels kFloatKernels = {
    .name = NIBBLE_ISA_NAME,
#if defined(__AVX512F__)
    .path = CpuPath::kAvx512Vnni,
#elif defined(__AVX2__)
    .path = CpuPath::kAvx2,
#else
    .path = CpuPath::kScalar,
#endif
    .f16_to_f32 = f16_to_f32,
    .bf16_to_f32 = bf16_to_f32,
    .f32_to_f16 = f32_to_f16,
    .f32_to_bf16 = f32_to_bf16,
    .all_finite = all_finite,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .add = add_to,
    .exp = exp_all,
    .softmax = softmax,
    .gemm_rows = kTileRows,
    .gemm_columns = kTileColumns,
    .gemm_pack_rows = gemm_pack_rows,
    .gemm_panel = gemm_panel,
    .gemv = gemv,
    .sylvester = sylvester,
    .mix_rows = mix_rows,
    .store_cache_row = store_cache_row,
    .attention_scratch = attention_scratch,
    .attention_block = attention_block,
    .attention_part = attention_part,
};

}  // namespace nibble::NIBBLE_ISA
