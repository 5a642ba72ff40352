// nibble bench --shape: single linears with synthetic weights, without a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "command.h"
#include "formats/format.h"
#include "models/model_spec.h"

namespace nibble {

struct ShapeBench {
  std::string shape;                // a model's name, or "MxNxK": M tokens, N outputs, K inputs
  std::string recipe;               // of recipe.h, or "none": 16-bit weights
  int64_t prompt = 512, batch = 1;  // tokens per product where the shape is a model's name
  int64_t repetitions = 3;
  int64_t layers = 0;  // on a GPU; 0: all of the model
};

// The names that --shape knows, for its help.
std::string shape_names();

// The model of that name as a spec. UsageError when --shape is no model's name.
ModelSpec shape_spec(const ShapeBench& options);
// Whether --shape is a model's name rather than MxNxK. UsageError when it is neither.
bool is_model_shape(const ShapeBench& options);
// The groups of linears that share an input, with synthetic weights: q k v, o, gate up and down of a model's
// layer, or the one of MxNxK. With recipe "none" they have shapes only.
struct SyntheticGroup {
  std::string name;
  int64_t tokens = 0;  // M of MxNxK
  int64_t out_features = 0, in_features = 0;
  std::vector<PackedLinear> linears;
};
std::vector<SyntheticGroup> synthetic_groups(const ShapeBench& options);
// The linears of one of its layers with synthetic weights: q, k, v, o, gate, up, down.
std::vector<PackedLinear> synthetic_layer(const ShapeBench& options);

// Times the linear groups of one decoder block (or one linear) as the runtime would run them, prints time,
// operations per second and bytes of weights read per second. Throws UsageError for an unknown shape or
// recipe.
int bench_shapes(const ShapeBench& options, const CommonOptions& common);

}  // namespace nibble
