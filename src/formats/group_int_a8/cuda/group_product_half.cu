// Prompts with F16 scales per group.
#include "formats/group_int_a8/cuda/group_product_kernel.cuh"

namespace nibble::group_int_a8_cuda {

const void* half_group_kernel(const GroupConfiguration& c, int group_steps) {
  return find_group_kernel<GroupScale::kHalf>(c, group_steps);
}

}  // namespace nibble::group_int_a8_cuda
