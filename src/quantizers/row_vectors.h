// y += a * x on floats, multiplied and added without fusing on every instruction set: the same bits on every
// machine.
#pragma once

#include <cstdint>

namespace nibble {

void add_scaled(float a, const float* x, int64_t count, float* y);

}  // namespace nibble
