// Products with the transposed side of a linear group: what carries a gradient from outputs to inputs.
#pragma once

#include <cstdint>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"
#include "models/linear_group.h"

namespace nibble {

// c [rows, columns] = a [rows, depth] b [depth, columns], added to c where `accumulate` is set; in tiles that
// depend on the shape alone.
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows,
              int64_t columns, int64_t depth, bool accumulate, float* c, int64_t c_stride, ThreadPool& pool);

// Rows [first, first + count) of a linear's weight as F32: in place where it is F32 already, else converted
// into `buffer`, which is made large enough.
const float* float_rows(const PackedLinear& linear, int64_t first, int64_t count, Tensor* buffer,
                        ThreadPool& pool);

class GroupWeights {
 public:
  // The group and its weights must outlive this.
  GroupWeights(const LinearGroup& group, ThreadPool& pool);

  // dx [tokens, in_features] = dy [tokens, out_features of all members] W.
  void gradient_by_input(const float* dy, int64_t tokens, float* dx, ThreadPool& pool) const;

 private:
  struct Member {
    Tensor converted;  // undefined where the weight is F32 already
    const float* weight = nullptr;
    int64_t rows = 0, column = 0;
  };
  int64_t in_features_, out_features_;
  std::vector<Member> members_;
};

}  // namespace nibble
