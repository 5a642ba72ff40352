// Few tokens, one INT32 sum per row: quik, and group_int_a8 with whole rows as groups.
#include "formats/group_int_a8/cuda/few_tokens_kernel.cuh"

namespace nibble::group_int_a8_cuda {

const void* rows_kernel(int weight_bits, int token_tiles, int slots) {
  return weight_bits == 4 ? few_tokens_instance<FewTokensForm::kRows, 4>(token_tiles, slots)
                          : few_tokens_instance<FewTokensForm::kRows, 8>(token_tiles, slots);
}

}  // namespace nibble::group_int_a8_cuda
