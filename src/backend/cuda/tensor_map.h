// Descriptions of matrices for the copy engine (the driver's cuTensorMapEncodeTiled, found at run time).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace nibble::cuda {

enum class TileType { kBytes, kHalf };

// Tiles of `box_rows` rows by `box_bytes` (128 or 64), swizzled by as many, of a row-major matrix [rows,
// columns] whose rows start every `row_bytes` (a multiple of 16) from `data` (16-byte aligned). What lies
// beyond the matrix reads as zero. Throws Error when the driver refuses.
CUtensorMap make_tile_map(TileType type, const void* data, int64_t rows, int64_t columns, int64_t row_bytes,
                          int box_rows, int box_bytes = 128);

// Boxes of `box_rows` rows by `box_bytes` (a multiple of 16, at most 2048), as they are, of a matrix of bytes
// [rows, row_bytes], row_bytes a multiple of 16; beyond it zeros. Columns count in units of 8 bytes.
CUtensorMap make_byte_map(const void* data, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes);

// Boxes of `box_rows` rows by `box_bytes` (a multiple of 16, at most 2048), as they are, of a matrix of bytes
// [rows, row_bytes], row_bytes a multiple of 16; beyond it zeros. Columns count in units of 8 bytes.
CUtensorMap make_byte_map(const void* data, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes);

}  // namespace nibble::cuda
