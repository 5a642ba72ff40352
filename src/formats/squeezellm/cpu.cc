// The vector kernels of squeezellm: group_int's division of the work over its own rows.
#include "formats/group_int/row_op.h"
#include "formats/squeezellm/cpu_kernels.h"
#include "formats/squeezellm/kernels.h"

namespace nibble {
namespace {

template <CpuPath kPath>
std::string refusal(const Problem&) {
  if (cpu_path_enabled(kPath)) return "";
  return format_text("needs {}", cpu_path_name(kPath));
}

template <const SqueezellmKernels& kKernels>
std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowOp<SqueezellmLayout>>(linears, kKernels, squeezellm_layout);
}

}  // namespace

const LinearKernel kSqueezellmAvx512 = {"squeezellm-avx512", refusal<CpuPath::kAvx512Vnni>,
                                        prepare<avx512vnni::kSqueezellmKernels>};
const LinearKernel kSqueezellmAvx2 = {"squeezellm-avx2", refusal<CpuPath::kAvx2>,
                                      prepare<avx2::kSqueezellmKernels>};

}  // namespace nibble
