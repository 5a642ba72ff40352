// Which kernel multiplies 4-bit group_int weights by a number of tokens, and how: measured, as data.
#pragma once

#include <cstddef>
#include <string>

#include "formats/group_int/cuda/decode.h"
#include "formats/group_int/cuda/few.h"
#include "formats/group_int/cuda/tile.h"

namespace nibble::group_int_cuda {

enum class Method {
  kDecode,  // decode.h: 1 to 4 tokens
  kFew,     // few.h: 5 to 16
  kTile,    // tile.h: any number
  kExpand,  // expand.h to FP16, a slice of rows after another, then cuBLASLt
};

struct Choice {
  Method method = Method::kTile;
  DecodePlan decode = {};
  FewPlan few = {};
  TilePlan tile = {};
  std::string describe()
      const;  // "decode, 8 stages, 2 per SM", "few, split 4", "tile 128 x 16, split 4", "expand to FP16"
};

// Every choice can run: the decode kernel is not chosen where tokens do not fit into shared memory.
Choice choose(int tokens, int n, int k, int scales_per_block, int multiprocessors);
// The same without expansion, which needs cuBLASLt.
Choice choose_packed(int tokens, int n, int k, int scales_per_block, int multiprocessors);

// The least number of tokens for which choose() may expand.
int least_expanded_tokens();
// Rows per slice of an expansion: what fits into `bytes`, a multiple of 16 rows.
int expand_slice_rows(int n, int k, size_t bytes);

}  // namespace nibble::group_int_cuda
