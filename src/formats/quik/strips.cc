#include "formats/quik/strips.h"

#include <algorithm>
#include <cstring>

namespace nibble::quik {
namespace {

// The eight nibbles of `packed`, lowest first, as the bytes of the result.
uint64_t spread_nibbles(uint32_t packed) {
  uint64_t x = packed;
  x = (x | (x << 16)) & 0x0000ffff0000ffffu;
  x = (x | (x << 8)) & 0x00ff00ff00ff00ffu;
  return (x | (x << 4)) & 0x0f0f0f0f0f0f0f0fu;
}

int32_t sum_of_nibble_bytes(uint64_t x) { return static_cast<int32_t>((x * 0x0101010101010101u) >> 56); }

// Places row `r` of a strip, 4-bit codes; returns the sum of its codes. `packed` has 4 readable bytes per 8
// columns.
int32_t place_nibbles(const uint8_t* packed, int64_t k_int, int64_t r, uint8_t* strip) {
  int32_t sum = 0;
  for (int64_t column = 0; column < k_int; column += 8) {
    uint32_t word;
    std::memcpy(&word, packed + column / 2, sizeof(word));
    uint64_t codes = spread_nibbles(word ^ 0x88888888u);  // two's complement to p + 8
    if (k_int - column < 8) codes &= (uint64_t{1} << (8 * (k_int - column))) - 1;
    sum += sum_of_nibble_bytes(codes);
    const uint32_t line = static_cast<uint32_t>(codes) | static_cast<uint32_t>(codes >> 32) << 4;
    const int64_t block = column / kBlockColumns, index = column % kBlockColumns / 8;
    std::memcpy(strip + block * 1024 + r / 16 * 512 + index * 64 + r % 16 * 4, &line, sizeof(line));
  }
  return sum - static_cast<int32_t>(8 * k_int);
}

// The same for 8-bit codes; `codes` has 4 readable bytes per 4 columns, zero beyond k_int.
int32_t place_bytes(const uint8_t* codes, int64_t k_int, int64_t r, uint8_t* strip) {
  int32_t sum = 0;
  for (int64_t column = 0; column < k_int; column += 4) {
    int8_t line[4];
    std::memcpy(line, codes + column, sizeof(line));
    sum += line[0] + line[1] + line[2] + line[3];
    const int64_t block = column / kBlockColumns, index = column % kBlockColumns / 4;
    std::memcpy(strip + block * 2048 + r / 16 * 1024 + index * 64 + r % 16 * 4, line, sizeof(line));
  }
  return sum;
}

}  // namespace

Strips::Strips(std::span<const PackedLinear* const> linears, ThreadPool& pool) {
  std::vector<Layout> layouts;
  int64_t n = 0;
  for (const PackedLinear* linear : linears) {
    layouts.push_back(read_layout(*linear));
    first_rows_.push_back(n);
    n += layouts.back().n;
  }
  const Layout& shared = layouts.front();
  Weights& w = weights_;
  w.n = n;
  w.k = shared.k;
  w.k_int = shared.k_int;
  w.strips = (n + kStripRows - 1) / kStripRows;
  w.blocks = (shared.k_int + kBlockColumns - 1) / kBlockColumns;
  w.outliers = shared.outliers();
  w.outlier_blocks = (w.outliers + kOutlierBlock - 1) / kOutlierBlock;
  w.weight_bits = shared.weight_bits;
  w.activation_bits = shared.activation_bits;

  const int64_t rows = w.strips * kStripRows;
  codes_ = Tensor::zeros(DType::kU8, {w.strips, strip_bytes(w)});
  scales_ = Tensor::zeros(DType::kF32, {rows});
  sums_ = Tensor::zeros(DType::kI32, {rows});
  bias_ = Tensor::zeros(DType::kF32, {rows});
  outlier_weights_ = Tensor::zeros(DType::kF16, {w.strips, w.outliers, kStripRows});
  fill_columns(shared);
  w.codes = codes_.data<uint8_t>();
  w.scales = scales_.data<float>();
  w.sums = sums_.data<int32_t>();
  w.bias = bias_.data<float>();
  w.outlier_weights = outlier_weights_.data<uint16_t>();
  w.outlier_columns = outlier_columns_.data<int32_t>();
  w.keep = keep_.data<uint8_t>();
  w.compact = compact_.data<uint64_t>();
  pool.parallel_for(w.strips, [&](int64_t strip, int) { fill_strip(layouts, strip); });
}

void Strips::fill_columns(const Layout& shared) {
  outlier_columns_ = Tensor::copy_of<int32_t>({shared.outliers()}, shared.outlier_columns);
  keep_ = Tensor::zeros(DType::kU8, {(shared.k + 15) / 16 * 2});
  for (const int32_t column : shared.integer_columns) {
    keep_.mutable_data<uint8_t>()[column / 8] |= static_cast<uint8_t>(1 << (column % 8));
  }
  compact_ = Tensor::zeros(DType::kU64, {256});
  for (int mask = 0; mask < 256; ++mask) {
    uint64_t indices = 0;
    int found = 0;
    for (int bit = 0; bit < 8; ++bit) {
      if ((mask >> bit & 1) != 0) indices |= static_cast<uint64_t>(bit) << (8 * found++);
    }
    compact_.mutable_data<uint64_t>()[mask] = indices;
  }
}

void Strips::fill_strip(std::span<const Layout> layouts, int64_t strip) {
  const Weights& w = weights_;
  uint8_t* codes = codes_.mutable_data<uint8_t>() + strip * strip_bytes(w);
  uint16_t* outliers = outlier_weights_.mutable_data<uint16_t>() + strip * w.outliers * kStripRows;
  std::vector<uint8_t> packed(
      static_cast<size_t>(w.blocks * kBlockColumns));  // one row and zeros up to whole blocks
  for (int64_t r = 0; r < kStripRows; ++r) {
    const int64_t row = strip * kStripRows + r;
    if (row >= w.n) break;
    const size_t part =
        std::upper_bound(first_rows_.begin(), first_rows_.end(), row) - first_rows_.begin() - 1;
    const Layout& layout = layouts[part];
    const int64_t own = row - first_rows_[part];
    std::memcpy(packed.data(), layout.codes + own * layout.code_row_bytes,
                static_cast<size_t>(layout.code_row_bytes));
    sums_.mutable_data<int32_t>()[row] = w.weight_bits == 4 ? place_nibbles(packed.data(), w.k_int, r, codes)
                                                            : place_bytes(packed.data(), w.k_int, r, codes);
    scales_.mutable_data<float>()[row] = layout.scales[own];
    bias_.mutable_data<float>()[row] = layout.bias[own];
    for (int64_t o = 0; o < w.outliers; ++o) {
      outliers[o * kStripRows + r] = layout.outlier_weights[own * w.outliers + o];
    }
  }
}

size_t Strips::bytes() const {
  size_t total = 0;
  for (const Tensor* tensor :
       {&codes_, &scales_, &sums_, &bias_, &outlier_weights_, &outlier_columns_, &keep_, &compact_}) {
    total += tensor->bytes();
  }
  return total;
}

}  // namespace nibble::quik
