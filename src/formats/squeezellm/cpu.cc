// The vector kernels of squeezellm: group_int's division of the work over its own rows.
#include "formats/cpu_refusal.h"
#include "formats/group_int/row_op.h"
#include "formats/squeezellm/cpu_kernels.h"
#include "formats/squeezellm/kernels.h"

namespace nibble {
namespace {

template <const SqueezellmKernels& kKernels>
std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowOp<SqueezellmLayout>>(linears, kKernels, squeezellm_layout);
}

// Integers for few tokens, vectors of floats for prompts.
std::string refusal_vbmi(const Problem& problem) {
  std::string reason = cpu_path_refusal(CpuPath::kAvx512Vbmi);
  if (reason.empty() &&
      avx512vbmi::kSqueezellmIntegerKernels.segment(squeezellm_layout(*problem.linear)) == 0)
    reason = format_text("in-features {} are no multiple of the {} that one load of codes covers",
                         problem.linear->in_features,
                         problem.linear->parameter("weight_bits", 0) == 4 ? 128 : 256);
  return reason;
}

std::unique_ptr<LinearOp> prepare_vbmi(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowOp<SqueezellmLayout>>(linears, avx512vnni::kSqueezellmKernels, squeezellm_layout,
                                                   &avx512vbmi::kSqueezellmIntegerKernels);
}

}  // namespace

const LinearKernel kSqueezellmAvx512Vbmi = {"squeezellm-avx512vbmi", refusal_vbmi, prepare_vbmi};
const LinearKernel kSqueezellmAvx512 = {"squeezellm-avx512", cpu_refusal<CpuPath::kAvx512Vnni>,
                                        prepare<avx512vnni::kSqueezellmKernels>};
const LinearKernel kSqueezellmAvx2 = {"squeezellm-avx2", cpu_refusal<CpuPath::kAvx2>,
                                      prepare<avx2::kSqueezellmKernels>};

}  // namespace nibble
