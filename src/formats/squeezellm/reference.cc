// The kernel that runs everywhere.
#include "formats/group_int/row_reference.h"
#include "formats/squeezellm/kernels.h"
#include "formats/squeezellm/layout.h"

namespace nibble {
namespace {

std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowReferenceOp<SqueezellmLayout>>(linears, squeezellm_layout,
                                                            squeezellm_dequantize_row);
}

}  // namespace

const LinearKernel kSqueezellmReference = {
    .name = "squeezellm-reference",
    .refusal = [](const Problem&) { return std::string(); },
    .prepare = prepare,
};

}  // namespace nibble
