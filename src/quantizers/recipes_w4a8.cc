// The recipes of 8-bit activations on one symmetric grid.
#include "quantizers/recipes.h"

namespace nibble {

const std::string_view kFptq = R"({
  "name": "fptq",
  "description": "FPTQ: 4-bit weights in groups of 128, 8-bit activations: static, equalized or per token",
  "defaults": {
    "quantizer": "rtn",
    "format": "group_int_a8",
    "weight_bits": 4,
    "activation_bits": 8,
    "group_size": 128,
    "fit_groups": true,  // 64 where 128 does not divide
    "scale_kind": "two_level",  // float scales: as accurate, larger, slower
    "transform": "log_equalization"
  }
})";

const std::string_view kW4A8G128 = R"({
  "name": "w4a8-g128",
  "description": "4-bit weights in groups of 128 by GPTQ, 8-bit activations per token: fast on CPUs",
  "defaults": {
    "quantizer": "gptq",
    "format": "group_int_a8",
    "weight_bits": 4,
    "activation_bits": 8,
    "group_size": 128,
    "fit_groups": true,
    "scale_kind": "two_level",
    "column_order": "descending"
  }
})";

const std::string_view kSmoothQuantW8A8 = R"({
  "name": "smoothquant-w8a8",
  "description": "SmoothQuant: 8-bit weights per row, 8-bit activations per token, smoothed",
  "defaults": {
    "quantizer": "rtn",
    "format": "group_int_a8",
    "weight_bits": 8,
    "activation_bits": 8,
    "transform": "smoothquant"
  }
})";

}  // namespace nibble
