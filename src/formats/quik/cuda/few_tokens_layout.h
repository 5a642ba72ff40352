// quik's weights as the few-token kernel of formats/group_int_a8/cuda/few_tokens.h takes them (its form
// kRows, outlier columns included). Host code.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "formats/group_int_a8/cuda/few_tokens_layout.h"

namespace nibble::quik_cuda {

struct FewTokensPacked {
  group_int_a8_cuda::FewTokensWeights weights;
  // [k]: an integer column's place among the integer columns, ~ an outlier column's among the outliers.
  std::vector<int32_t> column_places;
  int activation_bits = 8;
};

// Of linears that can_fuse() joins, one below the other.
FewTokensPacked pack_for_few_tokens(std::span<const PackedLinear* const> linears);

}  // namespace nibble::quik_cuda
