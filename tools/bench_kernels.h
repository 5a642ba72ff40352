// nibble bench --device cuda --kernels: the speed of single linears on a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench_shapes.h"
#include "command.h"

namespace nibble {

struct KernelBench {
  ShapeBench shape;
  std::string tokens;  // "1,16,2048", for a model's name
  int64_t repetitions = 3;
};

// Times every group of linears of the shape, and all of a model's layer together, beside cuBLASLt's FP16
// products and the limits of the GPU, which are measured first. Throws UsageError for an unknown shape,
// recipe or list of tokens.
int bench_kernels(const KernelBench& options, const CommonOptions& common);

}  // namespace nibble
