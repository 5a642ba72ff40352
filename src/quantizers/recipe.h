// A recipe says which quantizer, format and settings each linear gets. It is data: a name, defaults, and
// overrides that apply in order to the linears they match. Built-in recipes are JSON texts in recipes.cc; a
// user's is a JSON file with comments:
//
//   {
//     "name": "mine", "description": "...",
//     "defaults": {"weight_bits": 4, "activation_bits": 8},
//     "overrides": [
//       {"roles": ["down"], "settings": {"weight_bits": 8}},
//       {"name": "model.layers.0.*", "bits": 4, "settings": {"group_size": 64}}
//     ]
//   }
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "io/json.h"
#include "models/model_spec.h"
#include "transforms/transform.h"

namespace nibble {

// Everything a recipe can set for one linear. Field names are the keys of recipe files and of --set; a new
// one is a member here and a row of the table in recipe.cc.
struct LinearSettings {
  std::string quantizer = "gptq";  // a row of quantizers/all.cc, or "none"
  std::string format = "quik";     // a row of formats/all.cc; "dense" keeps the linear in 16 bit
  int64_t weight_bits = 4;
  int64_t activation_bits = 4;  // 4, 8; 16: activations stay floats
  int64_t group_size = 0;       // 0: one scale per output row
  bool symmetric = true;        // else every row or group has a zero point
  // Where group_size does not divide the inputs, half of it, and so on down to 32, if that does: 64 at 576
  // inputs for 128. Else the last group is shorter.
  bool fit_groups = false;
  // Outlier columns (QUIK): -1 by the rule of the contract (min(256, 32*ceil(hidden/512)) scaled by
  // floor(in/hidden) where outlier_scaling is set); 0 none; else that many before scaling.
  int64_t outlier_columns = 0;
  bool outlier_scaling = false;  // multiply by floor(in/hidden): 8-bit down projections
  // T: no outlier columns where max |x| <= T (doubled for down projections); 0: off.
  double outlier_threshold = 0.0;
  bool clip = false;  // search the clipping factor p*
  double clip_norm = 2.4;
  int64_t clip_steps = 80;   // p = 1.00, 0.99, ...
  double damping = 0.01;     // GPTQ: fraction of mean(diag H) added to the diagonal
  int64_t block_size = 128;  // GPTQ: columns per lazy update
  // GPTQ: "ascending" (QUIK: by max|x|), "natural", "descending" (diagonal of H); outlier columns always
  // last.
  std::string column_order = "ascending";
  // GPTQ: scales of groups from the weights as they were; else, with the natural order, from what the weights
  // have become when the group's turn comes.
  bool static_groups = true;
  // mixed_precision: which groups of columns get 4 bits (mixed_selection.h).
  std::string group_ranking = "sensitivity";
  double sparse_percent = 0;           // mixed_precision: weights of the other groups kept in 16 bit
  bool calibrate_on_quantized = true;  // statistics from the already quantized earlier layers
  // Quantizers that weigh by the gradients of the loss: calibration sequences used for them (of the whole
  // model: the defaults' value counts), and runs of output rows with a Hessian of their own.
  int64_t sensitivity_sequences = 100;
  int64_t guided_groups = 4;
  // Codebooks (kmeans, lnq): how much each weight's error counts. "fisher": its squared gradient of the loss,
  // "hessian_diagonal": its input's second moment, "uniform": all alike.
  std::string sensitivity = "fisher";
  std::string kmeans_solver = "exact";  // or "lloyd"
  // Weights beside the codebooks, in percent: of each matrix the most sensitive, of the model the largest.
  double sparse_sensitive_percent = 0.0;
  double sparse_outlier_percent = 0.0;
  // LNQ: "plain", the second moments of the input, or "guided", weighted by the gradients of the loss.
  std::string lnq_hessian = "plain";
  int64_t lnq_iterations = 4;  // LNQ: least-squares levels and one visit of every column, each
  // Of the whole model before anything else, so only in a recipe's defaults: "none"; "hadamard", the residual
  // stream, the values of attention and, while running, the input of down projections; "hadamard-inputs",
  // instead of the residual stream what attention and MLP read, while running; "hadamard-offline", what costs
  // nothing while running: residual stream and values.
  std::string rotation = "none";
  // With a rotation and calibration: channels between two linears are balanced first (rotate_checkpoint.h).
  bool balance_channels = false;
  // GPTQ: match the outputs of the float model on its own inputs (GPTAQ), not those of its weights on the
  // inputs of the quantized model.
  bool asymmetric_calibration = false;
  // Calibration runs through the packed linears with their quantized activations; else through their weights.
  bool calibrate_on_codes = false;
  // Group scales: "float", "integer" (times a power of two, the amplifier; 0: the largest that fits) or
  // "two_level" (a float per row times small integers; without groups, group_size 0, that float alone); for
  // formats that sum whole rows in integers.
  std::string scale_kind = "float";
  int64_t scale_amplifier = 0;
  int64_t scale_steps = 0;  // two_level: the largest multiplier; 0: see two_level_steps()
  // What is done to a linear group's input before anything is quantized (src/transforms): "none",
  // "log_equalization", "smoothquant". Members of a group must agree on these.
  std::string transform = "none";
  double static_limit = 15.0;      // log_equalization: largest |x| up to which a static scale is taken as is
  double per_token_limit = 150.0;  // from which on scales are per token; equalized in between
  double smooth_alpha = 0.5;       // smoothquant: how much of the range moves into the weights
  // Also fold factors into the linear in front (v_proj, up_proj) where no norm is.
  bool fold_through_linear = false;

  // The group size for this many integer columns.
  int64_t group_size_for(int64_t columns) const;
  // Whether every group's scale is an integer times something that the row or the linear shares.
  bool integer_scales() const { return scale_kind != "float" && group_size > 0; }
  // The largest multiplier of two_level scales: scale_steps, or for 0 the most that keeps code * multiplier
  // in 8 bits with 4-bit codes, -8 * 16 = -128 (kernels then multiply such products as INT8), else what a
  // byte holds.
  int64_t two_level_steps() const { return scale_steps > 0 ? scale_steps : weight_bits == 4 ? 16 : 255; }
  TransformSettings transform_settings() const {
    return {.static_limit = static_limit, .per_token_limit = per_token_limit, .smooth_alpha = smooth_alpha};
  }
  // Whether linears with these and the other settings can share what a transform does to their input.
  bool same_transform(const LinearSettings& other) const;

  // Sets one field. Throws UsageError naming `source`, field, value and the allowed ones for an unknown field
  // or a value out of its range; nothing is changed then.
  void set(const std::string& field, const Json& value, const std::string& source);
  // Throws Error naming `source` when fields contradict each other.
  void check(const std::string& source) const;
  Json to_json() const;
};

struct RecipeOverride {
  std::string name_pattern;  // glob on the linear's name ("*" any run of characters, "?" one), empty: all
  std::vector<std::string> roles;  // "q", "k", "v", "o", "gate", "up", "down"; empty: all
  int64_t bits = 0;                // only linears whose weight_bits are this so far; 0: all
  Json settings;                   // field -> value
};

struct Recipe {
  std::string name;
  std::string description;
  LinearSettings defaults;
  std::vector<RecipeOverride> overrides;

  // Built-in name or a file's path. Throws UsageError listing the names when there is neither, Error when the
  // file is no recipe.
  static Recipe find(const std::string& name_or_path);
  // Throws Error naming `source`, key and value for unknown keys, fields and roles and for values out of
  // range.
  static Recipe from_json(const Json& json, const std::string& source);
  static std::vector<std::string> builtin_names();
  Json to_json() const;

  // "field=value" changes the defaults; "role.field=value" (role as above) appends an override for that role.
  // The value is JSON, or text where it is none: "damping=0.05", "clip=false", "down.column_order=natural".
  // UsageError as set().
  void apply_set(const std::string& key_value);

  // The settings of one linear. Throws Error when they contradict each other.
  LinearSettings settings_for(const std::string& linear_name, LinearRole role) const;
  // Throws Error when an override matches none of the linears: a typing mistake must not pass as "nothing to
  // do".
  void check_all_match(const std::vector<std::pair<std::string, LinearRole>>& linears) const;
};

}  // namespace nibble
