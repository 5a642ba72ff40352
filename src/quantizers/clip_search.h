// The search for the clipping factor of one stretch of weights that shares a scale (QUIK, section "weight
// clipping").
#pragma once

#include <cstdint>

namespace nibble {

// Weights are summed in this many independent lanes on every instruction set; stretches are padded to a
// multiple of it with zeros, which add nothing.
inline constexpr int64_t kClipLanes = 16;

// One stretch: weights divided by their largest magnitude, so that every error is in one unit for all
// factors.
struct ClipStretch {
  const float* values = nullptr;  // [padded_count] in [-1, 1], 0 beyond the weights
  int64_t padded_count = 0;       // a multiple of kClipLanes
  float lowest_code = 0;          // -2^(b-1)
  float highest_code = 0;         // 2^(b-1) - 1; with a zero point both less that
  float levels = 0;               // steps in the largest magnitude: 2^(b-1) - 1 on a symmetric grid
  float norm = 0;                 // the exponent of the error, 2.4
  int steps = 0;                  // factors tried: 1.00, 0.99, ..., 1 - (steps - 1) / 100
};

// The step i whose factor p = (100 - i) / 100 makes sum |q(v) - v|^norm smallest, with q(v) = s * clamp(rne(v
// / s)) and s = p / levels; the first of equals. A candidate is dropped as soon as its partial sum
// exceeds the best so far, which changes nothing in the result. The power is exp2(norm * log2(e)) by
// polynomials: relative error below 1e-6.
int find_clip_step(const ClipStretch& stretch);

// The factor of a step, the same expression everywhere. Static: sources compiled per instruction set share no
// symbol.
static constexpr float clip_factor(int64_t step) { return static_cast<float>(100 - step) / 100.0f; }

}  // namespace nibble
