#include "formats/quik/cuda/product_kernel.cuh"

namespace nibble::quik_cuda {

const void* folded_product_kernel(const Configuration& configuration) {
  return find_product_kernel<4, true>(configuration);
}

}  // namespace nibble::quik_cuda
