// The strips of one op: what the vector kernels multiply by, made from the canonical layout at load
// (kernels.h).
#pragma once

#include <span>

#include "base/tensor.h"
#include "base/thread_pool.h"
#include "formats/quik/kernels.h"
#include "formats/quik/layout.h"

namespace nibble::quik {

class Strips {
 public:
  // Linears for which can_fuse() held: same columns, bits and outlier columns. Their rows follow each other.
  Strips(std::span<const PackedLinear* const> linears, ThreadPool& pool);

  const Weights& weights() const { return weights_; }
  size_t bytes() const;

 private:
  void fill_columns(const Layout& shared);
  void fill_strip(std::span<const Layout> layouts, int64_t strip);

  Weights weights_{};
  std::vector<int64_t> first_rows_;  // of each linear among all rows
  Tensor codes_, scales_, sums_, bias_, outlier_weights_, outlier_columns_, keep_, compact_;
};

}  // namespace nibble::quik
