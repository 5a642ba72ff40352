// What a nibble folder tells about its making, beyond what running it needs.
#pragma once

#include <map>
#include <string>

#include "io/checkpoint.h"
#include "quantizers/recipe.h"

namespace nibble {

// Relative squared errors that quantizing a linear made: of its weight, and of its output over the
// calibration tokens (0 without calibration).
struct LinearError {
  double weight = 0, output = 0;
  // Of the output where it was measured.
  double of_linear() const { return output > 0 ? output : weight; }
};

struct QuantizationRecord {
  std::string fingerprint;  // of recipe, source, calibration and program version; empty in older folders
  Json recipe;
  std::map<std::string, LinearError> errors;  // by linear; empty in older folders
};

// Throws Error for a checkpoint that is no nibble folder, or whose record is malformed.
QuantizationRecord read_quantization_record(const Checkpoint& checkpoint);

// The form in which config.json holds the errors: {"<linear>": [weight, output]}; null for what is not
// finite.
Json errors_to_json(const std::map<std::string, LinearError>& errors);

}  // namespace nibble
