// Small linears of every format and width, made from synthetic weights: what `doctor` asks kernels about.
#pragma once

#include <vector>

#include "formats/format.h"

namespace nibble {

// One per format and combination of widths that the format packs, named after its settings.
std::vector<PackedLinear> sample_linears();

// Round-to-nearest codes of pseudo-random weights [out_features, in_features] with the given settings;
// `outliers` columns stay floats.
QuantizedWeight synthetic_weight(int64_t out_features, int64_t in_features, int weight_bits,
                                 int activation_bits, int64_t group_size, int64_t outliers);

}  // namespace nibble
