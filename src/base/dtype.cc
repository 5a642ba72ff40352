#include "base/dtype.h"

#include <array>

namespace nibble {
namespace {

struct DTypeRow {
  DType dtype;
  std::string_view name;
  size_t size;
};
constexpr std::array<DTypeRow, 13> kRows = {{{DType::kF64, "F64", 8},
                                             {DType::kF32, "F32", 4},
                                             {DType::kF16, "F16", 2},
                                             {DType::kBF16, "BF16", 2},
                                             {DType::kI64, "I64", 8},
                                             {DType::kI32, "I32", 4},
                                             {DType::kI16, "I16", 2},
                                             {DType::kI8, "I8", 1},
                                             {DType::kU64, "U64", 8},
                                             {DType::kU32, "U32", 4},
                                             {DType::kU16, "U16", 2},
                                             {DType::kU8, "U8", 1},
                                             {DType::kBool, "BOOL", 1}}};

}  // namespace

size_t dtype_size(DType dtype) noexcept { return kRows[static_cast<size_t>(dtype)].size; }
std::string_view dtype_name(DType dtype) noexcept { return kRows[static_cast<size_t>(dtype)].name; }

std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  for (const DTypeRow& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace nibble
