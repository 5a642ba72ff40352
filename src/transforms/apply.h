// Moving factors through a model: what a plan's factors do to statistics, norms and weights.
#pragma once

#include <span>

#include "calibration/statistics.h"
#include "models/model.h"

namespace nibble {

// The statistics of x_j / factors[j] from those of x_j: max_abs / s_j, hessian / (s_i s_j).
void divide_inputs(std::span<const float> factors, InputStatistics* statistics);
// weight (and bias) / factors, in new tensors: the old ones may be those of a mapped file.
void divide_norm(std::span<const float> factors, NormWeights* norm);

// The float weight [n, k] that a slot stands for at the moment.
Tensor float_weight(const LinearSlot& slot, int64_t in_features);
// Replaces a slot's weight by a float matrix with the same bias.
void set_float_weight(LinearSlot& slot, const Tensor& weight);
// Column j of every linear of the group times factors[j].
void multiply_columns(std::span<const float> factors, LinearGroup* group, ThreadPool& pool);
// Row r of the slot (and its bias) / factors[r].
void divide_rows(std::span<const float> factors, int64_t in_features, LinearSlot* slot, ThreadPool& pool);
// The largest |w| of every column over all linears of the group, [k].
std::vector<float> column_maxima(const LinearGroup& group);

}  // namespace nibble
