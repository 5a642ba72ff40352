// Integer group scales for formats that sum whole rows in INT32.
#pragma once

#include "quantizers/uniform_grid.h"

namespace nibble {

// Replaces the grid's scales by ones that are integers up to one factor, as settings.scale_kind says; nothing
// for "float" or without groups. `columns` is how many integer columns a row has. Never larger than what the
// INT32 sum of multiplier * code * activation code over a row of largest codes holds, where a smaller
// multiplier can help.
//  - "integer" (Integer Scale, 2405.14597): multipliers rne(scale * amplifier), one amplifier for the linear,
//    a power of two: settings.scale_amplifier, or the largest that fits for 0.
//  - "two_level": multipliers of 1 to settings.two_level_steps() times one float per row, the unit, which is
//    the row's largest scale over the integer that makes the squared relative errors of its scales least.
void make_integer_scales(const QuantizerInput& input, int64_t columns, UniformGrid* grid);

}  // namespace nibble
