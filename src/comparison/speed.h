// Speed and memory of models that take turns.
#pragma once

#include <filesystem>
#include <vector>

#include "comparison/compare_models.h"

namespace nibble {

struct SpeedTarget {
  std::filesystem::path model;
  ComparisonRow* row;
};

// Runs "<program> bench" on every target, options.repetitions times in turn, and fills in the rows' speeds
// and memory. Returns how many could not be measured; each is told of. Throws Interrupted on Ctrl-C.
int measure_speed(const CompareOptions& options, int threads, const std::vector<SpeedTarget>& targets);

}  // namespace nibble
