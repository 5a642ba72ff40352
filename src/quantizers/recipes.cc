// The built-in recipes, as a user would write them. A new one is a text here and a row at the end.
#include "quantizers/recipes.h"

#include <array>

namespace nibble {
namespace {

constexpr std::string_view kRtnW4A4 = R"({
  "name": "rtn-w4a4",
  "description": "4-bit weights and activations by plain rounding: the baseline that QUIK repairs",
  "defaults": {
    "quantizer": "rtn",
    "format": "quik",
    "weight_bits": 4,
    "activation_bits": 4,
    "outlier_columns": 0,
    "clip": false
  }
})";

constexpr std::string_view kQuik4b = R"({
  "name": "quik-4b",
  "description": "QUIK at 4 bits: outlier columns in 16 bits, GPTQ, clip search; down projections 8 bit",
  "defaults": {
    "quantizer": "gptq",
    "format": "quik",
    "weight_bits": 4,
    "activation_bits": 4,
    "outlier_columns": -1,  // by the hidden size: 64 at 576, 256 from 4096 on
    "clip": true
  },
  "overrides": [
    // Their input is a product of two activations, with a variance that 4 bits do not hold.
    {"roles": ["down"], "settings": {"weight_bits": 8, "activation_bits": 8, "outlier_scaling": true}}
  ]
})";

constexpr std::string_view kQuik8b = R"({
  "name": "quik-8b",
  "description": "QUIK at 8 bits: outlier columns in 16 bits, GPTQ, clip search",
  "defaults": {
    "quantizer": "gptq",
    "format": "quik",
    "weight_bits": 8,
    "activation_bits": 8,
    "outlier_columns": -1,
    "clip": true
  },
  "overrides": [
    {"roles": ["down"], "settings": {"outlier_scaling": true}}
  ]
})";

constexpr std::string_view kW4A4Hadamard = R"({
  "name": "w4a4-hadamard",
  "description": "4-bit weights and activations without outlier columns: Hadamard rotations, GPTQ, clip search",
  "defaults": {
    "quantizer": "gptq",
    "format": "quik",
    "weight_bits": 4,
    "activation_bits": 4,
    "outlier_columns": 0,
    "clip": true,
    // Not the residual stream: only what is behind a norm can be balanced before it is mixed.
    "rotation": "hadamard-inputs",
    "balance_channels": true
  }
})";

constexpr std::string_view kMixed24 = R"({
  "name": "mixed-2-4",
  "description": "2- and 4-bit groups in one matrix, 2.85 bits with all scales; activations stay floats",
  "defaults": {
    "quantizer": "mixed_precision",
    "format": "mixed_2_4_16",
    "weight_bits": 2,
    "activation_bits": 16,
    "column_order": "descending"
  }
})";

constexpr std::string_view kMixed2416 = R"({
  "name": "mixed-2-4-16",
  "description": "The same with the 0.19 % of weights that 2 bits hold worst in 16: 2.92 bits",
  "defaults": {
    "quantizer": "mixed_precision",
    "format": "mixed_2_4_16",
    "weight_bits": 2,
    "activation_bits": 16,
    "column_order": "descending",
    "sparse_percent": 0.19
  }
})";

constexpr std::string_view kMixed2416Clip = R"({
  "name": "mixed-2-4-16-clip",
  "description": "The same bits, scales searched by the output's error, 4-bit groups by what they gain",
  "defaults": {
    "quantizer": "mixed_precision",
    "format": "mixed_2_4_16",
    "weight_bits": 2,
    "activation_bits": 16,
    "column_order": "descending",
    "sparse_percent": 0.19,
    "group_ranking": "loss",
    "clip": true
  }
})";

const std::array kRecipes = {
    BuiltinRecipe{"mixed-2-4", kMixed24},
    BuiltinRecipe{"mixed-2-4-16", kMixed2416},
    BuiltinRecipe{"mixed-2-4-16-clip", kMixed2416Clip},
    BuiltinRecipe{"quik-4b", kQuik4b},
    BuiltinRecipe{"quik-8b", kQuik8b},
    BuiltinRecipe{"rtn-w4a4", kRtnW4A4},
    BuiltinRecipe{"squeezellm-3b", kSqueezellm3b},
    BuiltinRecipe{"squeezellm-4b", kSqueezellm4b},
    BuiltinRecipe{"squeezellm-3b-sparse", kSqueezellm3bSparse},
    BuiltinRecipe{"squeezellm-4b-sparse", kSqueezellm4bSparse},
    BuiltinRecipe{"squeezellm-3b-lnq", kSqueezellm3bLnq},
    BuiltinRecipe{"w4a4-hadamard", kW4A4Hadamard},
    BuiltinRecipe{"quik-4b-sparse", kQuik4bSparse},
    BuiltinRecipe{"quik-8b-sparse", kQuik8bSparse},
    BuiltinRecipe{"quik-4b-gptaq", kQuik4bGptaq},
    BuiltinRecipe{"rtn-w4a16-g128", kRtnW4A16},
    BuiltinRecipe{"rtn-w3a16", kRtnW3A16},
    BuiltinRecipe{"gptq-w4a16-g128", kGptqW4A16},
    BuiltinRecipe{"gptq-w3a16", kGptqW3A16},
    BuiltinRecipe{"fptq", kFptq},
    BuiltinRecipe{"w4a8-g128", kW4A8G128},
    BuiltinRecipe{"smoothquant-w8a8", kSmoothQuantW8A8},
};

}  // namespace

std::span<const BuiltinRecipe> builtin_recipes() { return kRecipes; }

}  // namespace nibble
