// SqueezeLLM (Kim et al., ICML 2024): the levels of each row by k-means of its weights, each counted by how
// much the loss minds its error, beside the few weights that are corrected one by one.
#include "quantizers/codebook_rows.h"
#include "quantizers/uniform_grid.h"

namespace nibble {
namespace {

QuantizedWeight quantize_kmeans(const QuantizerInput& input, ThreadPool& pool) {
  check_quantizer_input(input, pool);
  const WeightImportance importance(input, pool);
  const SparseSelection selection = select_sparse(input, importance, pool);
  std::vector<float> levels = kmeans_levels(input, importance, selection, pool);
  std::vector<int8_t> codes = nearest_codes(input, levels, pool);
  return codebook_result(input, std::move(codes), std::move(levels), selection);
}

}  // namespace

extern const Quantizer kKmeansQuantizer;
const Quantizer kKmeansQuantizer = {
    .name = "kmeans", .needs = importance_needs, .quantize = quantize_kmeans, .sample = codebook_sample};

}  // namespace nibble
