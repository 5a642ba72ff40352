// Few tokens, an integer multiplier per group and a float scale per row.
#include "formats/group_int_a8/cuda/few_tokens_kernel.cuh"

namespace nibble::group_int_a8_cuda {

const void* integer_groups_kernel(int token_tiles, int slots) {
  return few_tokens_instance<FewTokensForm::kIntegerGroups, 4>(token_tiles, slots);
}

}  // namespace nibble::group_int_a8_cuda
