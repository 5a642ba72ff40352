#include "formats/quik/cuda/product.h"

#include "backend/cuda/tensor_map.h"
#include "base/error.h"
#include "formats/quik/cuda/kernels.h"
#include "formats/quik/cuda/prompt_layout.h"

namespace nibble::quik_cuda {
namespace {

template <typename Number>
Number round_up(Number value, Number unit) {
  return (value + unit - 1) / unit * unit;
}

// Where the arrays of Activations lie one after the other.
struct Places {
  int64_t code_stride, outlier_stride;
  size_t outliers, scales, zeros, bytes;

  Places(int tokens, int columns, int outlier_count)
      : code_stride(round_up(columns, kCodeUnit)), outlier_stride(round_up(outlier_count, kOutlierUnit)) {
    const auto rows = static_cast<size_t>(tokens), numbers = round_up(4 * rows, size_t{256});
    outliers = round_up(rows * static_cast<size_t>(code_stride), size_t{256});
    scales = outliers + round_up(rows * static_cast<size_t>(2 * outlier_stride), size_t{256});
    zeros = scales + numbers;
    bytes = zeros + numbers;
  }
};

}  // namespace

size_t activation_bytes(int tokens, int columns, int outliers) {
  return Places(tokens, columns, outliers).bytes;
}

Activations place_activations(void* memory, int tokens, int columns, int outliers) {
  const Places places(tokens, columns, outliers);
  uint8_t* const base = static_cast<uint8_t*>(memory);
  return {.codes = base,
          .code_stride = places.code_stride,
          .scales = reinterpret_cast<float*>(base + places.scales),
          .zeros = reinterpret_cast<int32_t*>(base + places.zeros),
          .outliers = reinterpret_cast<__half*>(base + places.outliers),
          .outlier_stride = places.outlier_stride};
}

std::vector<uint32_t> column_words(int k, std::span<const int32_t> outlier_columns) {
  std::vector<uint32_t> words(static_cast<size_t>(k + 7) / 8);
  size_t next = 0;
  for (size_t v = 0; v < words.size(); ++v) {
    const auto before = static_cast<uint32_t>(next);
    uint32_t mask = 0;
    for (uint32_t e = 0; e < 8; ++e) {
      const auto column = static_cast<int32_t>(8 * v + e);
      const bool outlier = next < outlier_columns.size() && outlier_columns[next] == column;
      if (outlier) ++next;
      if (outlier || column >= k) mask |= 1u << e;
    }
    words[v] = column_word(before, mask);
  }
  return words;
}

Product::Product(const group_int_a8_cuda::FewTokensOperand& weights, const Activations& activations,
                 int tokens, __half* y, int64_t y_stride, const Configuration& configuration,
                 int multiprocessors)
    : configuration_(configuration) {
  const group_int_a8_cuda::FewTokensShape& shape = weights.shape;
  NIBBLE_CHECK(weights.form == group_int_a8_cuda::FewTokensForm::kRows || weights.folds);
  const ProductSizes sizes = {configuration, shape.weight_bits, weights.folds};
  const void* const kernel = weights.folds            ? folded_product_kernel(configuration)
                             : shape.weight_bits == 8 ? int8_product_kernel(configuration)
                                                      : int4_product_kernel(configuration);
  if (kernel == nullptr)
    fail("there is no product of {} tokens for {} bits", sizes.tile_tokens, shape.weight_bits);

  ProductArguments a = {};
  a.weights = cuda::make_byte_map(weights.slots, shape.tiles(), shape.tile_bytes(), kTileOutputs / 16,
                                  sizes.weight_box());
  if (weights.folds) {
    const int groups = kBlockColumns / shape.group;
    a.slot_units = static_cast<int>(shape.slot_bytes() / 8);
    a.multiplier_box = groups * group_int_a8_cuda::kTileRows * shape.scale_bytes;
    a.multiplier_shift = groups == 1 ? 2 : groups == 2 ? 1 : 0;
    a.multipliers = cuda::make_byte_map(weights.slots, shape.tiles(), shape.tile_bytes(), kTileOutputs / 16,
                                        a.multiplier_box);
  }
  a.codes = cuda::make_tile_map(cuda::TileType::kBytes, activations.codes, tokens,
                                round_up(static_cast<int>(shape.columns), kCodeUnit), activations.code_stride,
                                sizes.tile_tokens / sizes.share);
  if (shape.outliers > 0) {
    a.outliers = cuda::make_tile_map(cuda::TileType::kHalf, activations.outliers, tokens,
                                     activations.outlier_stride, 2 * activations.outlier_stride,
                                     sizes.own_tokens() / sizes.share, sizes.outlier_row());
  }
  a.y = cuda::make_tile_map(cuda::TileType::kHalf, y, tokens, shape.n, 2 * y_stride, sizes.chunk_tokens());
  a.scales = weights.row_scales;
  a.code_sums = weights.code_sums;
  a.bias = weights.bias;
  a.token_scales = activations.scales;
  a.token_zeros = activations.zeros;
  a.n = static_cast<int>(shape.n);
  a.tokens = tokens;
  a.integer_blocks = static_cast<int>(products::divided_up(shape.columns, kBlockColumns));
  a.outlier_blocks = static_cast<int>(products::divided_up(shape.outliers, sizes.outliers()));
  a.outlier_offset = static_cast<int>(shape.integer_slots() * shape.slot_bytes() / 8);
  a.raster = sizes.raster();
  a.lag = configuration.lag;
  prepared_.prepare(kernel, configuration, sizes.shared(), multiprocessors, a);
}

cudaError_t Product::launch(int32_t* accumulators, cudaStream_t stream) const {
  return prepared_.launch<ProductArguments>(accumulators, stream);
}

}  // namespace nibble::quik_cuda
