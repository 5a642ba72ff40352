// Prompts with an integer multiplier per group and a scale per row.
#include "formats/group_int_a8/cuda/group_product_kernel.cuh"

namespace nibble::group_int_a8_cuda {

const void* multiplier_group_kernel(const GroupConfiguration& c, int group_steps) {
  return find_group_kernel<GroupScale::kMultiplier>(c, group_steps);
}

}  // namespace nibble::group_int_a8_cuda
