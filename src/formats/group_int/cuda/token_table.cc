// 8-bit tables of embeddings and heads on the device (backend/cuda/token_table.h), kept in 8 bits.
#include "backend/cuda/token_table.h"

#include <cstring>
#include <string_view>

#include "base/error.h"
#include "base/half.h"
#include "formats/group_int/cuda/rows8.h"
#include "formats/group_int/layout.h"

namespace nibble::group_int_cuda {
namespace {

class RowTable final : public cuda::TokenTable {
 public:
  explicit RowTable(const PackedLinear& table) {
    const GroupIntLayout layout = group_int_layout(table);
    weights_.n = static_cast<int>(layout.out_features);
    weights_.k = static_cast<int>(layout.in_features);
    codes_ = cuda::Buffer(static_cast<size_t>(layout.out_features * layout.row_bytes));
    codes_.upload(layout.codes, codes_.bytes());
    std::vector<float> scales(static_cast<size_t>(layout.out_features));
    for (int64_t row = 0; row < layout.out_features; ++row)
      scales[static_cast<size_t>(row)] = group_int_scale(layout, row, 0);
    scales_ = cuda::Buffer(sizeof(float) * scales.size());
    scales_.upload(scales.data(), scales_.bytes());
    weights_.codes = codes_.as<uint8_t>();
    weights_.scales = scales_.as<float>();
  }

  int64_t tokens() const override { return weights_.n; }
  int64_t channels() const override { return weights_.k; }
  void embed(const int32_t* ids, int count, float* residual, cudaStream_t stream) const override {
    cuda::check(launch_embed_rows8(weights_, ids, count, residual, stream), "looking embeddings up");
  }
  void logits(const __half* x, int count, float* y, void*, cudaStream_t stream) const override {
    cuda::check(launch_rows8(weights_, x, count, y, stream), "computing logits");
  }
  size_t workspace_bytes(int) const override { return 0; }
  cuda::LinearPath path() const override { return {"w8a16-rows", "int8xf16->f32"}; }
  size_t bytes() const override { return codes_.bytes() + scales_.bytes(); }

 private:
  Rows8 weights_;
  cuda::Buffer codes_, scales_;
};

std::string refusal(const PackedLinear& table) {
  if (std::string_view(table.format->name) != "group_int")
    return format_text("the table's format is {}", table.format->name);
  const GroupIntLayout layout = group_int_layout(table);
  if (layout.bits != 8) return format_text("{} bits (it takes 8)", layout.bits);
  if (layout.groups != 1) return format_text("groups of {} columns (it takes whole rows)", layout.group_size);
  if (layout.zeros_u8 != nullptr || layout.zeros_f32 != nullptr) return "zero points";
  if (layout.bias != nullptr) return "a bias";
  if (layout.in_features % 16 != 0) return format_text("{} columns: no multiple of 16", layout.in_features);
  return "";
}

std::unique_ptr<cuda::TokenTable> load(const PackedLinear& table, ThreadPool&) {
  return std::make_unique<RowTable>(table);
}

size_t device_bytes(const PackedLinear& table) {
  return static_cast<size_t>(table.out_features) * (static_cast<size_t>(table.in_features) + sizeof(float));
}

}  // namespace

extern const cuda::TokenTableKernel kTokenTableKernel;
const cuda::TokenTableKernel kTokenTableKernel = {
    .name = "cuda-w8a16-rows", .refusal = refusal, .load = load, .bytes = device_bytes};

}  // namespace nibble::group_int_cuda
