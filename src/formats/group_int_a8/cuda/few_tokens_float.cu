// Few tokens, a float scale per group.
#include "formats/group_int_a8/cuda/few_tokens_kernel.cuh"

namespace nibble::group_int_a8_cuda {

const void* float_groups_kernel(int token_tiles, int slots, bool write_group_sums) {
  return write_group_sums ? few_tokens_instance<FewTokensForm::kFloatGroups, 4, true>(token_tiles, slots)
                          : few_tokens_instance<FewTokensForm::kFloatGroups, 4>(token_tiles, slots);
}

}  // namespace nibble::group_int_a8_cuda
