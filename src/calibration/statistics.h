// What calibration keeps per linear group: the second moments of its input and the largest magnitudes per
// channel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"

namespace nibble {

struct InputStatistics {
  int64_t in_features = 0;
  int64_t tokens = 0;
  std::vector<float> max_abs;  // [k] largest |x_j|
  Tensor hessian;  // F32 [k, k], (2 / tokens) * sum x x^T, both triangles; undefined when not asked for
  // F32 [k, k], (2 / tokens) * sum (x' - x) x^T with x' the same input in the float model; undefined when not
  // asked for.
  Tensor cross;
};

// Accumulates tokens as they stream by. The running sum stays in F32: over 10^5 tokens its relative error is
// about 1e-5, far below the damping of GPTQ (1e-2). The result depends on how the tokens are cut into calls,
// never on the number of threads. Calls of a few hundred tokens or more run at the speed of a matrix product.
class StatisticsCollector {
 public:
  StatisticsCollector(int64_t in_features, bool with_hessian, bool with_cross = false);
  // x [tokens, in_features]. Throws Error naming `where`, token, channel and value when x has a NaN or
  // infinity; the statistics are then as before the call.
  void add(const float* x, int64_t tokens, ThreadPool& pool, const std::string& where);
  // With cross: the same tokens of the float model, after add() for them. x as given there. Throws like
  // add().
  void add_cross(const float* x_float, const float* x, int64_t tokens, ThreadPool& pool,
                 const std::string& where);
  // Ends the collection and hands the statistics over. Throws Error when no token was added.
  InputStatistics finish();

 private:
  void check_finite(const float* x, int64_t tokens, const std::string& where) const;
  InputStatistics statistics_;
  bool with_hessian_, with_cross_;
  int64_t cross_tokens_ = 0;
  std::vector<float> difference_;  // scratch of add_cross()
  bool finished_ = false;
};

}  // namespace nibble
