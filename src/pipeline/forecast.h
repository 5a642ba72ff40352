// What a quantization run will need, before it starts.
#pragma once

#include "models/model.h"
#include "pipeline/quantize_model.h"

namespace nibble {

// Throws when the recipe cannot be applied to the model: an override that matches nothing, a format or
// quantizer that does not exist, settings that a format cannot hold.
void check_recipe(const Recipe& recipe, const ModelSpec& spec);
// Whether any linear needs calibration data, and whether any needs statistics of its input.
bool recipe_needs_calibration(const Recipe& recipe, const ModelSpec& spec);
bool recipe_needs_statistics(const Recipe& recipe, const ModelSpec& spec);
// Whether calibration also runs the float model, in step with the quantized one.
bool recipe_needs_float_stream(const Recipe& recipe, const ModelSpec& spec);

// Sizes are exact up to outlier thresholds; memory and time are estimates, time from running block 0 on one
// sequence.
QuantizeForecast make_forecast(const QuantizeOptions& options, const Checkpoint& checkpoint,
                               const ModelSpec& spec, const CalibrationData& data, ThreadPool& pool);

// Throws Error with both numbers when memory or disk will not do.
void check_resources(const QuantizeForecast& forecast, const QuantizeOptions& options);

}  // namespace nibble
