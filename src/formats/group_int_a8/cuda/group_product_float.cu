// Prompts with F32 scales per group.
#include "formats/group_int_a8/cuda/group_product_kernel.cuh"

namespace nibble::group_int_a8_cuda {

const void* float_group_kernel(const GroupConfiguration& c, int group_steps) {
  return find_group_kernel<GroupScale::kFloat>(c, group_steps);
}

}  // namespace nibble::group_int_a8_cuda
