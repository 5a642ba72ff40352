// Which groups of columns get 4 bits, and which weights of the others stay in 16, for format mixed_2_4_16.
#pragma once

#include <cstdint>
#include <vector>

#include "quantizers/damped_hessian.h"

namespace nibble {

// Groups in the order of the format's places (MixedGroups::order): a quarter of them, those with the largest
// score, in every fourth place. Scores by settings.group_ranking:
//   "sensitivity"  sum over the group's weights of w^2 / [H^-1]_jj (SpQR's saliency, as the paper's)
//   "range"        the same times (max w - min w)^2 of the group: large and sensitive ones
//   "loss"         the difference it makes: sum of (e2^2 - e4^2) / [H^-1]_jj with e2 and e4 the errors of
//                  rounding the group's rows to 2 and to 4 bits
std::vector<int32_t> order_groups(const QuantizerInput& input, const HessianDiagonal& diagonal,
                                  ThreadPool& pool);

// One byte per weight [n, k], 1 for those that the sparse part keeps: settings.sparse_percent of all weights,
// the ones with the largest e^2 H_jj in 2-bit groups, e the error of rounding. In two passes: the second half
// is chosen with the first one out of the groups' ranges.
std::vector<uint8_t> choose_sparse(const QuantizerInput& input, const std::vector<int32_t>& order,
                                   ThreadPool& pool);

}  // namespace nibble
