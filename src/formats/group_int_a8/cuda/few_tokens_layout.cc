#include "formats/group_int_a8/cuda/few_tokens_layout.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "formats/group_int_a8/cuda/folded_codes.h"
#include "formats/group_int_a8/layout.h"

namespace nibble::group_int_a8_cuda {
namespace {

using group_int_a8::Layout;
using group_int_a8::ScaleKind;

int64_t slot_start(const FewTokensShape& shape, int64_t row, int64_t slot) {
  return row / kTileRows * shape.tile_bytes() + slot * shape.slot_bytes();
}

FewTokensForm form_of(const Layout& layout) {
  if (layout.groups == 1) return FewTokensForm::kRows;
  return layout.scale_kind == ScaleKind::kFloat ? FewTokensForm::kFloatGroups : FewTokensForm::kIntegerGroups;
}

bool folds(const Layout& layout) {
  if (form_of(layout) != FewTokensForm::kIntegerGroups || layout.weight_bits != 4) return false;
  return std::all_of(layout.multipliers.begin(), layout.multipliers.end(),
                     [](uint32_t multiplier) { return multiplier <= kMostFoldedMultiplier; });
}

int32_t folded_sum(const Layout& layout, int64_t row, const std::vector<int8_t>& codes) {
  int32_t sum = 0;
  for (int64_t j = 0; j < layout.k; ++j)
    sum += codes[j] * static_cast<int32_t>(layout.multipliers[row * layout.groups + j / layout.group_size]);
  return sum;
}

void place_scales(const Layout& layout, int64_t row, int64_t to_row, FewTokensWeights* packed) {
  const FewTokensShape& shape = packed->shape;
  const int64_t groups = (layout.k + shape.group - 1) / shape.group;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t from = row * layout.groups + group * shape.group / layout.group_size;
    uint8_t* const at = packed->slots.data() + scale_place(shape, to_row, group);
    if (packed->form == FewTokensForm::kIntegerGroups) {
      std::memcpy(at, &layout.multipliers[from], 2);
    } else if (shape.scale_bytes == 4) {
      std::memcpy(at, &layout.scales[from], 4);
    } else {
      const uint16_t half = float_to_f16(layout.scales[from]);
      std::memcpy(at, &half, 2);
    }
  }
}

}  // namespace

SlotPlace code_place(const FewTokensShape& shape, int64_t row, int64_t column) {
  const int64_t j = column % shape.slot_columns(), g = row % 8, upper = row % kTileRows / 8;
  // column = 64 block + 16 q + 8 p + e in the slot, or 64 block + 32 p + 8 q + e
  const bool narrow = shape.group == 32;
  const int64_t block = j / 64, q = narrow ? j % 32 / 8 : j % 64 / 16, p = narrow ? j % 64 / 32 : j % 16 / 8,
                e = j % 8, lane = 4 * g + q;
  const int64_t start = slot_start(shape, row, column / shape.slot_columns()) + 16 * lane;
  if (shape.weight_bits == 4) {
    return {start + 512 * block + 4 * (2 * p + e / 4) + e % 4, static_cast<int>(4 * upper)};
  }
  return {start + 512 * (2 * block + p) + 4 * (2 * (e / 4) + upper) + e % 4, 0};
}

int64_t outlier_place(const FewTokensShape& shape, int64_t row, int64_t outlier) {
  const int64_t j = outlier % kOutlierSlotColumns, g = row % 8, upper = row % kTileRows / 8;
  // outlier = 32 block + 8 q + 4 p + e in the slot
  const int64_t block = j / 32, q = j % 32 / 8, p = j % 8 / 4, e = j % 4, lane = 4 * g + q;
  return slot_start(shape, row, shape.integer_slots()) + outlier / kOutlierSlotColumns * kSlotCodeBytes +
         512 * (2 * block + p) + 16 * lane + 4 * (2 * (e / 2) + upper) + 2 * (e % 2);
}

int64_t scale_place(const FewTokensShape& shape, int64_t row, int64_t group) {
  const int64_t in_slot = group % shape.slot_groups();
  return slot_start(shape, row, group / shape.slot_groups()) + kSlotCodeBytes +
         (in_slot * kTileRows + row % kTileRows) * shape.scale_bytes;
}

void place_row(const FewTokensShape& shape, int64_t row, const int8_t* codes, const uint16_t* outliers,
               uint8_t* slots) {
  // Every slot is like the first.
  std::array<SlotPlace, 256> places;
  const int64_t slot_columns = shape.slot_columns();
  for (int64_t j = 0; j < std::min(slot_columns, shape.columns); ++j) places[j] = code_place(shape, row, j);
  for (int64_t first = 0; first < shape.columns; first += slot_columns, slots += shape.slot_bytes()) {
    const int64_t count = std::min(slot_columns, shape.columns - first);
    for (int64_t j = 0; j < count; ++j) {
      const int8_t code = codes[first + j];
      if (shape.weight_bits == 8) {
        slots[places[j].byte] = static_cast<uint8_t>(code);
      } else {
        slots[places[j].byte] |= static_cast<uint8_t>((code & 0xF) << places[j].shift);
      }
    }
  }
  slots -= shape.integer_slots() * shape.slot_bytes();
  for (int64_t o = 0; o < shape.outliers; ++o)
    std::memcpy(slots + outlier_place(shape, row, o), &outliers[o], 2);
}

FewTokensShape few_tokens_shape(const PackedLinear& linear) {
  const int64_t k = linear.in_features, group = linear.parameter("group_size", 0);
  const Tensor* const scales = linear.find("scales");
  FewTokensShape shape = {.n = linear.out_features,
                          .columns = k,
                          .weight_bits = static_cast<int>(linear.parameter("weight_bits", 0))};
  // Groups beyond 128 columns repeat their scales.
  shape.group = group == 0 || group >= k ? 0 : static_cast<int>(std::min<int64_t>(group, 128));
  shape.scale_bytes = scales != nullptr && scales->dtype() == DType::kF32 ? 4 : 2;
  return shape;
}

std::string few_tokens_refusal(const PackedLinear& linear) {
  const int64_t k = linear.in_features, group = linear.parameter("group_size", 0);
  if (k > kMaximumColumns) return format_text("{} columns, more than {}", k, kMaximumColumns);
  if (group == 0 || group >= k) return "";
  if (linear.parameter("weight_bits", 0) != 4) return "groups of 8-bit weights";
  if (group != 32 && group != 64 && group % 128 != 0) {
    return format_text("groups of {} columns, neither 32, 64, a multiple of 128 nor whole rows", group);
  }
  return "";
}

FewTokensWeights pack_for_few_tokens(std::span<const PackedLinear* const> linears, ThreadPool* pool) {
  std::vector<Layout> layouts;
  FewTokensWeights packed;
  FewTokensShape& shape = packed.shape;
  shape = few_tokens_shape(*linears.front());
  shape.n = 0;
  std::vector<int64_t> first_rows;  // of each linear
  for (const PackedLinear* linear : linears) {
    NIBBLE_CHECK(few_tokens_refusal(*linear).empty());
    layouts.push_back(group_int_a8::read_layout(*linear));
    const Layout& layout = layouts.back();
    NIBBLE_CHECK(layout.k == layouts[0].k && layout.group_size == layouts[0].group_size &&
                 form_of(layout) == form_of(layouts[0]) && layout.weight_bits == layouts[0].weight_bits);
    first_rows.push_back(shape.n);
    shape.n += layout.n;
    shape.scale_bytes = std::max(shape.scale_bytes, few_tokens_shape(*linear).scale_bytes);
    packed.bias.insert(packed.bias.end(), layout.bias.begin(), layout.bias.end());
  }
  packed.form = form_of(layouts.front());
  packed.slots.resize(static_cast<size_t>(shape.bytes()));
  if (packed.form != FewTokensForm::kFloatGroups) packed.row_scales.resize(static_cast<size_t>(shape.n));
  packed.folds = std::all_of(layouts.begin(), layouts.end(), folds);
  if (packed.form == FewTokensForm::kRows || packed.folds)
    packed.code_sums.resize(static_cast<size_t>(shape.n));

  // Rows of one tile share bytes; tiles do not.
  const auto pack_tile = [&](int64_t tile, int) {
    std::vector<int8_t> codes(static_cast<size_t>(shape.columns));
    for (int64_t row = tile * kTileRows; row < std::min(shape.n, (tile + 1) * kTileRows); ++row) {
      const auto which = std::upper_bound(first_rows.begin(), first_rows.end(), row) - first_rows.begin() - 1;
      const Layout& layout = layouts[which];
      const int64_t own = row - first_rows[which];
      layout.unpack_row(own, codes.data());
      place_row(shape, row, codes.data(), nullptr, packed.slots.data());
      switch (packed.form) {
        case FewTokensForm::kRows: {
          int32_t sum = 0;
          for (const int8_t code : codes) sum += code;
          packed.code_sums[row] = sum;
          packed.row_scales[row] = layout.scales[own];
          break;
        }
        case FewTokensForm::kIntegerGroups:
          packed.row_scales[row] = layout.row_scales[own];
          if (packed.folds) packed.code_sums[row] = folded_sum(layout, own, codes);
          [[fallthrough]];
        case FewTokensForm::kFloatGroups:
          place_scales(layout, own, row, &packed);
          break;
      }
    }
  };
  if (pool != nullptr) {
    pool->parallel_for(shape.tiles(), pack_tile);
  } else {
    for (int64_t tile = 0; tile < shape.tiles(); ++tile) pack_tile(tile, 0);
  }
  return packed;
}

}  // namespace nibble::group_int_a8_cuda
