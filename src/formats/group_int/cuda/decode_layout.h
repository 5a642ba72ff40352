// How 4-bit group_int weights lie in GPU memory: in the order in which a warp's lanes need them as the first
// operand of matrix products of 16 rows by 16 columns (mma.m16n8k16; a quarter of wgmma.m64nNk16), so that
// every kernel copies runs of bytes and never shuffles. One packing serves all numbers of tokens. Host code,
// tested without a GPU by emulating the operand maps.
//
// The weight is cut into tiles of 16 rows, and a tile into blocks of 128 columns (rows and columns beyond the
// weight are zeros). A tile is its blocks one after another, and
//
//   block = codes, 1024 bytes, then scales: 16 F16 (one per row) for all columns, or, with groups of 64
//           columns, 16 F16 for the first 64 and 16 for the others
//
// Lane l = 4 g + q of a warp finds its codes of a block as two vectors of 16 bytes, at 16 l and 512 + 16 l.
// Word m of the eight words belongs to the m-th product, of columns 16 m to 16 m + 15. Its nibbles 0 to 7
// are, with c = 16 m + 2 q, as (row, column), u = code + 8:
//
//   (g, c) (g+8, c) (g, c+8) (g+8, c+8) (g, c+1) (g+8, c+1) (g, c+9) (g+8, c+9)
//
// so that (word >> 4 i) & 0x000F000F is operand register i, and even i are of row g, odd i of row g + 8.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/format.h"
#include "formats/group_int/cuda/decode_shape.h"

namespace nibble::group_int_cuda {

// Why the linear cannot be packed so ("groups of 32 columns, ..."), or nothing.
std::string decode_refusal(const PackedLinear& linear);
// Of a linear that is not refused.
DecodeShape decode_shape(const PackedLinear& linear);
std::vector<uint8_t> pack_for_decode(const PackedLinear& linear);
// The same into `packed`, decode_shape().bytes() long.
void pack_for_decode(const PackedLinear& linear, uint8_t* packed);

// Where code (row, column) lies in the packed bytes: byte offset, and the shift within the byte.
struct CodePlace {
  int64_t byte;
  int shift;
};
CodePlace code_place(const DecodeShape& shape, int64_t row, int64_t column);
// Byte offset of the scale of (row, column).
int64_t scale_place(const DecodeShape& shape, int64_t row, int64_t column);

}  // namespace nibble::group_int_cuda
