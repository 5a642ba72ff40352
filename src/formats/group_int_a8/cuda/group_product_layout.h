// Where a prompt's activation codes lie, so that weights packed by few_tokens_layout.h are operands of the
// prompt's products. Groups of 32 columns are packed so that a step of the products keeps to one group; the
// others as whole rows are, for which quik's prompt_layout.h has the order. Plain functions, for host and
// device.
#pragma once

#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::group_int_a8_cuda {

// The byte of a token's codes that holds column c = 32 s + 8 q + 4 h + i: 32 s + 16 h + 4 q + i.
NIBBLE_BOTH_SIDES constexpr int narrow_code_position(int column) {
  const int q = column / 8 % 4, h = column / 4 % 2;
  return column / 32 * 32 + 16 * h + 4 * q + column % 4;
}

// The same for weights whose FewTokensShape::group is `group`.
NIBBLE_BOTH_SIDES constexpr int group_code_position(int column, int group) {
  return group == 32 ? narrow_code_position(column) : quik_cuda::code_position(column);
}

}  // namespace nibble::group_int_a8_cuda
