#include "backend/cuda/tensor_map.h"

#include "backend/cuda/device.h"
#include "base/error.h"

namespace nibble::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encode_function() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status = {};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                           &status),
          "looking for cuTensorMapEncodeTiled");
    if (status != cudaDriverEntryPointSuccess || function == nullptr) {
      fail("the NVIDIA driver has no cuTensorMapEncodeTiled; a driver of CUDA 12 or newer is needed");
    }
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

}  // namespace

CUtensorMap make_tile_map(TileType type, const void* data, int64_t rows, int64_t columns, int64_t row_bytes,
                          int box_rows, int box_bytes) {
  const bool bytes = type == TileType::kBytes;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(bytes ? box_bytes : box_bytes / 2),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map = {};
  const CUresult code =
      encode_function()(&map, bytes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
                        const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                        box_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS) {
    fail("describing a matrix [{}, {}] with rows of {} bytes to the copy engine fails with code {}", rows,
         columns, row_bytes, static_cast<int>(code));
  }
  return map;
}

CUtensorMap make_byte_map(const void* data, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(row_bytes / 8), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_bytes / 8), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map = {};
  const CUresult code =
      encode_function()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT64, 2, const_cast<void*>(data), sizes, strides,
                        box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS) {
    fail("describing a matrix of bytes [{}, {}] to the copy engine fails with code {}", rows, row_bytes,
         static_cast<int>(code));
  }
  return map;
}

}  // namespace nibble::cuda
