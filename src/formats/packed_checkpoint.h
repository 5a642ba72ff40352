// Linears in checkpoints. In a nibble folder, config.json says per linear which format and parameters it has:
//   "quantization_config": {"quant_method": "nibble", "format_version": 1, "recipe": {...},
//     "linears": {"model.layers.0.self_attn.q_proj": {"format": "quik", "parameters": {"weight_bits": 4,
//     ...}}, ...}, "provenance": {...}}
// and the tensors are "<linear>.<suffix>". A linear that is not listed, and every linear of another
// checkpoint, is dense.
#pragma once

#include <map>
#include <string>

#include "formats/format.h"
#include "io/checkpoint.h"

namespace nibble {

inline constexpr int kNibbleFormatVersion = 1;

// Throws Error for a missing tensor, a wrong shape, or anything the format's validate() refuses.
PackedLinear load_packed_linear(const Checkpoint& checkpoint, const std::string& name, int64_t out_features,
                                int64_t in_features);
// What config.json says of a linear: {"format": ..., "parameters": {...}}.
Json packed_linear_config(const PackedLinear& linear);
// The reverse: a linear from such an entry and the tensors named "<name>.<suffix>" among `tensors`. Throws
// Error starting with `source` for an unknown format and for what the format's validate() refuses.
PackedLinear packed_linear_from_tensors(const std::string& name, const Json& entry,
                                        const std::map<std::string, Tensor>& tensors, int64_t out_features,
                                        int64_t in_features, const std::string& source);

// Checks quant_method and format_version of a nibble folder (a newer one is refused with the version it
// needs).
void check_nibble_config(const Checkpoint& checkpoint);

}  // namespace nibble
