// Uniform grids beyond QUIK's own recipes: rounding and GPTQ with float activations, asymmetric calibration,
// 2:4 sparsity.
#include "quantizers/recipes.h"

namespace nibble {

const std::string_view kQuik4bSparse = R"({
  "name": "quik-4b-sparse",
  "description": "quik-4b on 2:4 masks: two of four weights pruned (SparseGPT), outlier columns dense",
  "defaults": {
    "quantizer": "sparse_gptq",
    "format": "quik_sparse",
    "weight_bits": 4,
    "activation_bits": 4,
    "outlier_columns": -1,
    "clip": true
  },
  "overrides": [
    {"roles": ["down"], "settings": {"weight_bits": 8, "activation_bits": 8, "outlier_scaling": true}}
    // To prune only some linears, give the others back: {"roles": ["gate", "up", "down"],
    // "settings": {"quantizer": "gptq", "format": "quik"}}
  ]
})";

const std::string_view kQuik8bSparse = R"({
  "name": "quik-8b-sparse",
  "description": "quik-8b on 2:4 masks: two of four weights pruned (SparseGPT), outlier columns dense",
  "defaults": {
    "quantizer": "sparse_gptq",
    "format": "quik_sparse",
    "weight_bits": 8,
    "activation_bits": 8,
    "outlier_columns": -1,
    "clip": true
  },
  "overrides": [
    {"roles": ["down"], "settings": {"outlier_scaling": true}}
  ]
})";

const std::string_view kQuik4bGptaq = R"({
  "name": "quik-4b-gptaq",
  "description": "quik-4b with asymmetric calibration (GPTAQ): outputs match the float model's",
  "defaults": {
    "quantizer": "gptq",
    "format": "quik",
    "weight_bits": 4,
    "activation_bits": 4,
    "outlier_columns": -1,
    "clip": true,
    "asymmetric_calibration": true
  },
  "overrides": [
    {"roles": ["down"], "settings": {"weight_bits": 8, "activation_bits": 8, "outlier_scaling": true}}
  ]
})";

const std::string_view kRtnW4A16 = R"({
  "name": "rtn-w4a16-g128",
  "description": "4-bit weights in groups of 128 by plain rounding, float activations",
  "defaults": {
    "quantizer": "rtn",
    "format": "group_int",
    "weight_bits": 4,
    "activation_bits": 16,
    "group_size": 128,
    "fit_groups": true
  }
})";

const std::string_view kRtnW3A16 = R"({
  "name": "rtn-w3a16",
  "description": "3-bit weights, one scale per row, by plain rounding, float activations",
  "defaults": {
    "quantizer": "rtn",
    "format": "group_int",
    "weight_bits": 3,
    "activation_bits": 16
  }
})";

// Columns by falling activations: the ones that matter most are rounded while all others can make up for it.
const std::string_view kGptqW4A16 = R"({
  "name": "gptq-w4a16-g128",
  "description": "GPTQ, 4-bit weights in groups of 128, act-order with static groups, float activations",
  "defaults": {
    "quantizer": "gptq",
    "format": "group_int",
    "weight_bits": 4,
    "activation_bits": 16,
    "group_size": 128,
    "fit_groups": true,
    "column_order": "descending"
  }
})";

const std::string_view kGptqW3A16 = R"({
  "name": "gptq-w3a16",
  "description": "GPTQ, 3-bit weights, one scale per row, act-order, float activations",
  "defaults": {
    "quantizer": "gptq",
    "format": "group_int",
    "weight_bits": 3,
    "activation_bits": 16,
    "column_order": "descending"
  }
})";

}  // namespace nibble
