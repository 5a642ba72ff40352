// The kernel that runs everywhere.
#include "formats/group_int/kernels.h"
#include "formats/group_int/layout.h"
#include "formats/group_int/row_reference.h"

namespace nibble {
namespace {

std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool&) {
  return std::make_unique<RowReferenceOp<GroupIntLayout>>(linears, group_int_layout,
                                                          group_int_dequantize_row);
}

}  // namespace

const LinearKernel kGroupIntReference = {
    .name = "group_int-reference",
    .refusal = [](const Problem&) { return std::string(); },
    .prepare = prepare,
};

}  // namespace nibble
