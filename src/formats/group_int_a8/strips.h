// The strips of one op: what the vector kernels multiply by, made from the canonical layout at load
// (kernels.h).
#pragma once

#include <span>

#include "base/tensor.h"
#include "base/thread_pool.h"
#include "formats/group_int_a8/kernels.h"
#include "formats/group_int_a8/layout.h"

namespace nibble::group_int_a8 {

class Strips {
 public:
  // Linears for which can_fuse() held. Their rows follow each other.
  Strips(std::span<const PackedLinear* const> linears, ThreadPool& pool);

  const Weights& weights() const { return weights_; }
  size_t bytes() const;

 private:
  void fill_strip(std::span<const Layout> layouts, int64_t strip);
  void place_scales(const Layout& layout, int64_t row, int64_t strip, int64_t lane);

  Weights weights_{};
  std::vector<int64_t> first_rows_;  // of each linear among all rows
  Tensor codes_, scales_, half_scales_, multipliers_, row_scales_, bias_;
};

}  // namespace nibble::group_int_a8
