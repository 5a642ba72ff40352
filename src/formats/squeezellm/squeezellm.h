// What quantizers need to know of squeezellm's storage.
#pragma once

#include <cstdint>

namespace nibble {

// Whether F16 can hold `count` levels of one row: none overflows or moves by more than 2^-11 of the largest
// magnitude. A quantizer rounds such rows to F16 before it assigns codes; where any row fails, the linear is
// stored in F32.
bool f16_holds_levels(const float* levels, int64_t count);

}  // namespace nibble
