// What calibration keeps per linear group: the second moments of its input and the largest magnitudes per channel.
#pragma once

#include <cstdint>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"

namespace nibble {

struct InputStatistics {
  int64_t in_features = 0;
  int64_t tokens = 0;
  std::vector<float> max_abs;  // [k] largest |x_j|
  Tensor hessian;              // F32 [k, k], (2 / tokens) * sum x x^T, both triangles; undefined when not asked for
};

// Accumulates tokens as they stream by. Sums in F32 per chunk and F64 across none: the error of a chunked F32 sum over
// 10^5 tokens is far below the damping of GPTQ.
class StatisticsCollector {
 public:
  StatisticsCollector(int64_t in_features, bool with_hessian);
  // x [tokens, in_features]. Throws Error naming `where` when x has a NaN or infinity.
  void add(const float* x, int64_t tokens, ThreadPool& pool, const std::string& where);
  InputStatistics finish();

 private:
  InputStatistics statistics_;
  bool with_hessian_;
};

}  // namespace nibble
