#include "formats/group_int_a8/strips.h"

#include <algorithm>
#include <cstring>

#include "base/half.h"

namespace nibble::group_int_a8 {
namespace {

static_assert(kStep == kStepColumns);

// Places row `r` of a strip; `codes` are its unsigned codes, zeros up to whole steps.
void place_nibbles(const uint8_t* codes, int64_t steps, int64_t r, uint8_t* strip) {
  for (int64_t line = 0; line < steps * 4; ++line) {
    uint8_t* out = strip + line * 128 + r / 16 * 64 + r % 16 * 4;
    for (int j = 0; j < 4; ++j) {
      out[j] = static_cast<uint8_t>(codes[line * 8 + j] | codes[line * 8 + 4 + j] << 4);
    }
  }
}

void place_bytes(const uint8_t* codes, int64_t steps, int64_t r, uint8_t* strip) {
  for (int64_t line = 0; line < steps * 8; ++line) {
    std::memcpy(strip + line * 128 + r / 16 * 64 + r % 16 * 4, codes + line * 4, 4);
  }
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
  w.strips = (n + kStripRows - 1) / kStripRows;
  w.steps = (shared.k + kStep - 1) / kStep;
  w.groups = shared.groups;
  w.group_steps = (shared.group_size + kStep - 1) / kStep;
  w.weight_bits = shared.weight_bits;
  w.activation_scale = shared.activation_scale;

  const int64_t rows = w.strips * kStripRows;
  const Shape per_group = {w.strips, w.groups, kStripRows};
  codes_ = Tensor::zeros(DType::kU8, {w.strips, strip_bytes(w)});
  bias_ = Tensor::zeros(DType::kF32, {rows});
  if (shared.scale_kind != ScaleKind::kFloat) {
    multipliers_ = Tensor::zeros(DType::kU16, per_group);
    row_scales_ = Tensor::zeros(DType::kF32, {rows});
    w.multipliers = multipliers_.data<uint16_t>();
    w.row_scales = row_scales_.data<float>();
  } else if (shared.f16_scales) {
    half_scales_ = Tensor::zeros(DType::kF16, per_group);
    w.half_scales = half_scales_.data<uint16_t>();
  } else {
    scales_ = Tensor::zeros(DType::kF32, per_group);
    w.scales = scales_.data<float>();
  }
  w.codes = codes_.data<uint8_t>();
  w.bias = bias_.data<float>();
  pool.parallel_for(w.strips, [&](int64_t strip, int) { fill_strip(layouts, strip); });
}

void Strips::place_scales(const Layout& layout, int64_t row, int64_t strip, int64_t lane) {
  const Weights& w = weights_;
  for (int64_t group = 0; group < w.groups; ++group) {
    const int64_t from = row * w.groups + group, to = (strip * w.groups + group) * kStripRows + lane;
    if (w.multipliers != nullptr) {
      multipliers_.mutable_data<uint16_t>()[to] = layout.multipliers[from];
    } else if (w.half_scales != nullptr) {
      half_scales_.mutable_data<uint16_t>()[to] = float_to_f16(layout.scales[from]);  // exact
    } else {
      scales_.mutable_data<float>()[to] = layout.scales[from];
    }
  }
  if (w.row_scales != nullptr) {
    row_scales_.mutable_data<float>()[strip * kStripRows + lane] = layout.row_scales[row];
  }
}

void Strips::fill_strip(std::span<const Layout> layouts, int64_t strip) {
  const Weights& w = weights_;
  uint8_t* out = codes_.mutable_data<uint8_t>() + strip * strip_bytes(w);
  // One row and zeros up to whole steps; padding columns meet activations of 0.
  std::vector<uint8_t> codes(static_cast<size_t>(w.steps * kStep));
  for (int64_t r = 0; r < kStripRows; ++r) {
    const int64_t row = strip * kStripRows + r;
    if (row >= w.n) break;
    const size_t part =
        std::upper_bound(first_rows_.begin(), first_rows_.end(), row) - first_rows_.begin() - 1;
    const Layout& layout = layouts[part];
    const int64_t own = row - first_rows_[part];
    layout.unpack_row(own, reinterpret_cast<int8_t*>(codes.data()));
    const int offset = w.weight_bits == 4 ? 8 : 128;
    for (int64_t j = 0; j < w.k; ++j) codes[j] = static_cast<uint8_t>(codes[j] + offset);
    (w.weight_bits == 4 ? place_nibbles : place_bytes)(codes.data(), w.steps, r, out);
    place_scales(layout, own, strip, r);
    bias_.mutable_data<float>()[row] = layout.bias[own];
  }
}

size_t Strips::bytes() const {
  size_t total = 0;
  for (const Tensor* tensor : {&codes_, &scales_, &half_scales_, &multipliers_, &row_scales_, &bias_})
    total += tensor->bytes();
  return total;
}

}  // namespace nibble::group_int_a8
