#include "formats/quik/cuda/few_tokens_layout.h"

#include "base/error.h"
#include "formats/quik/layout.h"

namespace nibble::quik_cuda {

FewTokensPacked pack_for_few_tokens(std::span<const PackedLinear* const> linears) {
  std::vector<quik::Layout> layouts;
  for (const PackedLinear* linear : linears) layouts.push_back(quik::read_layout(*linear));
  const quik::Layout& first = layouts.front();

  FewTokensPacked packed;
  packed.activation_bits = first.activation_bits;
  packed.column_places.resize(static_cast<size_t>(first.k));
  for (size_t j = 0; j < first.integer_columns.size(); ++j)
    packed.column_places[first.integer_columns[j]] = static_cast<int32_t>(j);
  for (size_t o = 0; o < first.outlier_columns.size(); ++o)
    packed.column_places[first.outlier_columns[o]] = ~static_cast<int32_t>(o);

  group_int_a8_cuda::FewTokensWeights& weights = packed.weights;
  weights.form = group_int_a8_cuda::FewTokensForm::kRows;
  weights.shape.columns = first.k_int;
  weights.shape.outliers = first.outliers();
  weights.shape.weight_bits = first.weight_bits;
  for (const quik::Layout& layout : layouts) {
    NIBBLE_CHECK(layout.outlier_columns == first.outlier_columns && layout.weight_bits == first.weight_bits &&
                 layout.activation_bits == first.activation_bits);
    weights.shape.n += layout.n;
  }
  weights.slots.resize(static_cast<size_t>(weights.shape.bytes()));
  std::vector<int8_t> codes(static_cast<size_t>(first.k_int));
  int64_t to_row = 0;
  for (const quik::Layout& layout : layouts) {
    weights.row_scales.insert(weights.row_scales.end(), layout.scales.begin(), layout.scales.end());
    weights.bias.insert(weights.bias.end(), layout.bias.begin(), layout.bias.end());
    for (int64_t row = 0; row < layout.n; ++row, ++to_row) {
      layout.unpack_row(row, codes.data());
      place_row(weights.shape, to_row, codes.data(), layout.outlier_weights.data() + row * layout.outliers(),
                weights.slots.data());
      int32_t sum = 0;
      for (const int8_t code : codes) sum += code;
      weights.code_sums.push_back(sum);
    }
  }
  return packed;
}

}  // namespace nibble::quik_cuda
