// The step before quantizing that sparse outliers need: one look at every weight of the model, to find how
// far out an outlier lies.
#pragma once

#include <map>
#include <string>

#include "base/thread_pool.h"
#include "io/checkpoint.h"
#include "models/model_spec.h"
#include "quantizers/recipe.h"

namespace nibble {

// By linear, the r of SqueezeLLM's quartile rule (quantizers/sparse_selection.h) that makes the recipe's
// sparse_outlier_percent of the weights outliers: one r for all linears of the same percentage. Linears
// without sparse outliers are missing; nothing is read where none has any. Reads the model once, one linear
// in memory at a time.
std::map<std::string, double> find_sparse_outlier_ratios(const Checkpoint& checkpoint, const ModelSpec& spec,
                                                         const Recipe& recipe, ThreadPool& pool);

}  // namespace nibble
