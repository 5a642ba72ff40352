// Layer-wise non-uniform quantization (LNQ, of GuidedQuant, Kim et al., ICML 2025): codes and levels of a row
// made better for the output error of the whole row, (q - w)^T H (q - w), instead of each weight's own.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

// Rows that share a Hessian.
struct LnqProblem {
  const float* weight = nullptr;   // [rows, k]
  const float* hessian = nullptr;  // [k, k], symmetric, with a positive diagonal
  int64_t rows = 0, in_features = 0;
  int levels = 0;                  // per row, at most 16
  const uint8_t* taken = nullptr;  // [rows, k] or nullptr: weights that are kept exactly
  int64_t iterations = 0;
};

// Improves `levels` [rows, levels] and `codes` [rows, k] in place. Each iteration solves for the levels that
// are best for the codes (least squares), then visits every column once and gives it the code that is best
// while the others stay. Neither can make the error larger; at the end levels are rounded to F16 where F16
// holds them, and the columns visited once more. Levels end ascending. With `objectives`, the sum of the
// rows' errors is appended at the start and after every step.
void refine_rows(const LnqProblem& problem, float* levels, int8_t* codes, std::vector<double>* objectives);

}  // namespace nibble
