// The vector kernels of squeezellm: group_int's division of the work over its own rows.
#include "formats/cpu_refusal.h"
#include "formats/group_int/row_op.h"
#include "formats/squeezellm/cpu_kernels.h"
#include "formats/squeezellm/kernels.h"

namespace nibble {
namespace {

// Of the vectors of floats, whose few tokens `integers`, if any, take over where they suit.
template <const SqueezellmKernels& kKernels, const IntegerKernels<SqueezellmLayout>* kIntegers = nullptr>
std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowOp<SqueezellmLayout>>(linears, kKernels, squeezellm_layout, kIntegers);
}

std::string refusal_vbmi(const Problem& problem) {
  std::string reason = cpu_path_refusal(CpuPath::kAvx512Vbmi);
  if (reason.empty() &&
      avx512vbmi::kSqueezellmIntegerKernels.segment(squeezellm_layout(*problem.linear)) == 0)
    reason = format_text("in-features {} are no multiple of the {} that one load of codes covers",
                         problem.linear->in_features,
                         problem.linear->parameter("weight_bits", 0) == 4 ? 128 : 256);
  return reason;
}

}  // namespace

const LinearKernel kSqueezellmAvx512Vbmi = {
    "squeezellm-avx512vbmi", refusal_vbmi,
    prepare<avx512vnni::kSqueezellmKernels, &avx512vbmi::kSqueezellmIntegerKernels>};
const LinearKernel kSqueezellmAvx512 = {"squeezellm-avx512", cpu_refusal<CpuPath::kAvx512Vnni>,
                                        prepare<avx512vnni::kSqueezellmKernels>};
const LinearKernel kSqueezellmAvx2 = {"squeezellm-avx2", cpu_refusal<CpuPath::kAvx2>,
                                      prepare<avx2::kSqueezellmKernels, &avx2::kSqueezellmIntegerKernels>};

}  // namespace nibble
