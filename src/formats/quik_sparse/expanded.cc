// Kernels that expand the compressed codes at load and multiply as dense quik does: the same operands, so the
// same integer sums and the same floats.
#include <memory>
#include <vector>

#include "formats/quik/layout.h"
#include "formats/quik_sparse/layout.h"
#include "formats/signed_codes.h"

namespace nibble {

extern const LinearFormat kQuikFormat;

namespace quik {
extern const LinearKernel kAmxKernel, kAvx512VnniKernel, kAvxVnniKernel, kAvx2Kernel;
}

namespace quik_sparse {

extern const LinearKernel kExpandedAmxKernel, kExpandedAvx512VnniKernel, kExpandedAvxVnniKernel,
    kExpandedAvx2Kernel;

namespace {

// The same weight as a quik linear: dense codes in ascending column order.
PackedLinear expand(const PackedLinear& linear, ThreadPool& pool) {
  const Layout layout = read_layout(linear);
  PackedLinear dense;
  dense.format = &kQuikFormat;
  dense.name = linear.name;
  dense.out_features = linear.out_features;
  dense.in_features = linear.in_features;
  dense.parameters = linear.parameters;
  for (const auto& [suffix, tensor] : linear.tensors) {
    if (suffix != "codes" && suffix != "positions" && suffix != "integer_columns") {
      dense.tensors.emplace(suffix, tensor);
    }
  }
  const int64_t row_bytes = packed_row_bytes(layout.k_int, layout.weight_bits);
  Tensor codes = Tensor::empty(layout.weight_bits == 4 ? DType::kU8 : DType::kI8, {layout.n, row_bytes});
  auto* packed = reinterpret_cast<uint8_t*>(codes.mutable_raw());
  constexpr int64_t kRowsPerTask = 16;
  pool.parallel_for((layout.n + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    std::vector<int8_t> row_codes(static_cast<size_t>(layout.k_int));
    const int64_t end = std::min(layout.n, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) {
      layout.unpack_row(row, row_codes.data());
      nibble::pack_row(row_codes.data(), layout.k_int, layout.weight_bits, packed + row * row_bytes);
    }
  });
  dense.tensors.emplace("codes", std::move(codes));
  return dense;
}

template <const LinearKernel& kDense>
std::unique_ptr<LinearOp> prepare(std::span<const PackedLinear* const> linears, ThreadPool& pool) {
  std::vector<PackedLinear> dense;
  dense.reserve(linears.size());
  std::vector<const PackedLinear*> pointers;
  for (const PackedLinear* linear : linears) {
    dense.push_back(expand(*linear, pool));
    pointers.push_back(&dense.back());
  }
  return kDense.prepare(pointers, pool);
}

// Whether quik's kernel runs depends on the machine alone.
template <const LinearKernel& kDense>
std::string refusal(const Problem& problem) {
  return kDense.refusal(problem);
}

}  // namespace

const LinearKernel kExpandedAmxKernel = {"quik_sparse-expanded-amx", refusal<quik::kAmxKernel>,
                                         prepare<quik::kAmxKernel>};
const LinearKernel kExpandedAvx512VnniKernel = {
    "quik_sparse-expanded-avx512vnni", refusal<quik::kAvx512VnniKernel>, prepare<quik::kAvx512VnniKernel>};
const LinearKernel kExpandedAvxVnniKernel = {"quik_sparse-expanded-avxvnni", refusal<quik::kAvxVnniKernel>,
                                             prepare<quik::kAvxVnniKernel>};
const LinearKernel kExpandedAvx2Kernel = {"quik_sparse-expanded-avx2", refusal<quik::kAvx2Kernel>,
                                          prepare<quik::kAvx2Kernel>};

}  // namespace quik_sparse
}  // namespace nibble
