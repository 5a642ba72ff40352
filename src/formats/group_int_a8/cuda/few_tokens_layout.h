// How integer weights lie in GPU memory for few tokens: in the order in which a warp's lanes need them as
// operands of mma.m16n8k32 (outlier columns: mma.m16n8k16 in FP16), so that the kernel copies runs of bytes
// and never shuffles. Used by group_int_a8 and quik. Host code, tested without a GPU by emulating the operand
// maps.
//
// The weight is cut into tiles of 16 rows, and a tile into slots of 2048 bytes of codes; rows and columns
// beyond the weight are zeros. A tile is its integer slots, then its outlier slots.
//
//   integer slot   256 columns of 4 bits or 128 of 8 bits, then its scales [group in the slot][16 rows]
//   outlier slot   64 columns of F16
//
// Lane l = 4 g + q finds a slot's codes as four vectors v of 16 bytes, at 512 v + 16 l.
//
//   4 bits   words 2 p, 2 p + 1 of vector v belong to the product of step s = 2 v + p, columns
//            c = 64 v + 16 q + 8 p + {0..7}. Byte i of the first word holds column c + i of row g in its low
//            nibble and of row g + 8 in its high one; the second word is the same of columns c + 4 + i. So
//            (word << 4) & 0xF0F0F0F0 and word & 0xF0F0F0F0 are the operand registers, times 16.
//            With groups of 32 columns c = 64 v + 32 p + 8 q + {0..7}: a product never crosses groups.
//   8 bits   vector v is the four registers of step v: columns c = 64 (v / 2) + 16 q + 8 (v % 2) + {0..3} of
//            rows g and g + 8, then columns c + {4..7} of both.
//   F16      vector v is the four registers of step v: columns c = 32 (v / 2) + 8 q + 4 (v % 2) + {0, 1} of
//            rows g and g + 8, then columns c + {2, 3} of both.
//
// A lane's activations of 64 integer (32 outlier) columns are thereby 16 consecutive bytes of each token.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "formats/format.h"
#include "formats/group_int_a8/cuda/few_tokens_shape.h"

namespace nibble::group_int_a8_cuda {

// One linear, or several of the same input one below the other, ready to be uploaded.
struct FewTokensWeights {
  FewTokensForm form = FewTokensForm::kRows;
  FewTokensShape shape;
  bool folds = false;              // kIntegerGroups whose codes times multipliers fit 8 bits (folded_codes.h)
  std::vector<uint8_t> slots;      // [shape.bytes()]
  std::vector<float> row_scales;   // [n]; empty for kFloatGroups
  std::vector<int32_t> code_sums;  // [n] sums of a row's codes (kRows), or of its folded codes
  std::vector<float> bias;         // [n]
};

// Where things lie in `slots`: byte offset, and the shift of a code within its byte.
struct SlotPlace {
  int64_t byte;
  int shift;
};
SlotPlace code_place(const FewTokensShape& shape, int64_t row, int64_t column);
int64_t outlier_place(const FewTokensShape& shape, int64_t row, int64_t outlier);
// `group` counts groups of shape.group columns.
int64_t scale_place(const FewTokensShape& shape, int64_t row, int64_t group);

// Writes a row's codes [columns] and outlier weights (F16 bits, [outliers]) into `slots`.
void place_row(const FewTokensShape& shape, int64_t row, const int8_t* codes, const uint16_t* outliers,
               uint8_t* slots);

// The sizes of a group_int_a8 linear that few_tokens_refusal() accepts.
FewTokensShape few_tokens_shape(const PackedLinear& linear);
// Why a group_int_a8 linear cannot be packed so ("groups of 96 columns: ..."), or nothing.
std::string few_tokens_refusal(const PackedLinear& linear);
// Linears that can_fuse() joins (one input, one kind of scales). kRows (whole rows as one group) takes
// activations as unsigned codes a + 128 with a zero point of 128.
FewTokensWeights pack_for_few_tokens(std::span<const PackedLinear* const> linears,
                                     ThreadPool* pool = nullptr);

}  // namespace nibble::group_int_a8_cuda
