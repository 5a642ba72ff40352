// Rounds the columns of a weight one after another; each one's error is taken up by the columns that are not
// rounded yet (GPTQ, Frantar et al., 2023; SparseGPT, Frantar and Alistarh, 2023; with outlier columns as in
// QUIK, section "Outlier-aware quantization": they come last and are never rounded, so that they take up what
// is left).
#pragma once

#include "quantizers/hessian_factor.h"

namespace nibble {

// Columns of a group of which two survive.
inline constexpr int64_t kSparseGroup = 4;

// Codes on the grid that input.settings ask for. With `sparse`, in each group of kSparseGroup columns in the
// order of processing all but the two with the largest (w_i / U_ii)^2 become zero before they are rounded;
// the last group may be shorter. The result's mask_order then says which columns form the groups.
// Throws Error naming the linear. The same bits for any number of threads.
QuantizedWeight solve_columns(const QuantizerInput& input, bool sparse, ThreadPool& pool);

}  // namespace nibble
