// How 4-bit group_int weights lie in GPU memory for the decode kernel: in the order in which a warp's lanes
// need them as operands of mma.m16n8k16, so that the kernel copies runs of bytes and never shuffles. Host
// code, tested without a GPU by emulating the operand maps.
//
// The weight is cut into tiles of 16 rows, and a tile into groups of 128 columns (rows and columns beyond the
// weight are zeros). A chunk is up to kChunkGroups consecutive groups of a tile, one per warp:
//
//   chunk = codes of its groups, 1024 bytes each, then scales of its groups, 16 F16 each (one per row)
//
// Lane l = 4 g + q of a group finds its codes as two vectors of 16 bytes, at 16 l and 512 + 16 l. Word m of
// the eight words belongs to the m-th product of 16 columns. With c = 32 (m / 2) + 8 q + 4 (m % 2), nibbles 0
// to 7 of the word are
//
//   (g, c) (g+8, c) (g, c+2) (g+8, c+2) (g, c+1) (g+8, c+1) (g, c+3) (g+8, c+3)        as (row, column), u =
//   code + 8
//
// so that (word >> 4 i) & 0x000F000F is operand register i, and lane q's activations are four vectors of 8
// consecutive F16 per group, at columns 32 v + 8 q.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/format.h"
#include "formats/group_int/cuda/decode_shape.h"

namespace nibble::group_int_cuda {

// Why the linear cannot be packed so ("groups of 128 columns or whole rows"), or nothing.
std::string decode_refusal(const PackedLinear& linear);
std::vector<uint8_t> pack_for_decode(const PackedLinear& linear);

// Where code (row, column) and scale (row, group) lie in the packed bytes: byte offset, and for codes the
// shift within the byte.
struct CodePlace {
  int64_t byte;
  int shift;
};
CodePlace code_place(const DecodeShape& shape, int64_t row, int64_t column);
int64_t scale_place(const DecodeShape& shape, int64_t row, int64_t group);

}  // namespace nibble::group_int_cuda
