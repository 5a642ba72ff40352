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

}  // namespace

const LinearKernel kSqueezellmAvx512 = {"squeezellm-avx512", cpu_refusal<CpuPath::kAvx512Vnni>,
                                        prepare<avx512vnni::kSqueezellmKernels>};
const LinearKernel kSqueezellmAvx2 = {"squeezellm-avx2", cpu_refusal<CpuPath::kAvx2>,
                                      prepare<avx2::kSqueezellmKernels>};

}  // namespace nibble
