#include "formats/quik/cuda/product_kernel.cuh"

namespace nibble::quik_cuda {

const void* int4_product_kernel(const Configuration& configuration) {
  return find_product_kernel<4>(configuration);
}

}  // namespace nibble::quik_cuda
