// The one interface between stored weights and arithmetic. A LinearFormat is a row of the table in all.cc: it
// packs what a quantizer produced into a documented canonical layout, validates and reads it back, and owns
// an ordered list of kernels that multiply by it. Adding a format is adding a folder here and one line to
// all.cc; see HACKING.md.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cpu/cpu_path.h"
#include "base/scratch.h"
#include "base/tensor.h"
#include "base/thread_pool.h"
#include "formats/quantized_weight.h"

namespace nibble {

struct LinearFormat;

// Integer settings of one linear's format, as stored in config.json ("weight_bits": 4, "activation_bits": 4,
// ...).
using FormatParameters = std::map<std::string, int64_t>;

// One linear in its format's canonical layout, as it stands in a file.
struct PackedLinear {
  const LinearFormat* format = nullptr;
  std::string name;          // the linear's name in the source checkpoint, without ".weight"
  int64_t out_features = 0;  // n
  int64_t in_features = 0;   // k
  FormatParameters parameters;
  // Tensors by suffix: the file stores `weight` of this map as "<name>.weight". A bias is "bias", F32 [n].
  std::map<std::string, Tensor> tensors;

  const Tensor* find(const std::string& suffix) const {
    const auto found = tensors.find(suffix);
    return found == tensors.end() ? nullptr : &found->second;
  }
  int64_t parameter(const std::string& key, int64_t otherwise) const {
    const auto found = parameters.find(key);
    return found == parameters.end() ? otherwise : found->second;
  }
  // All bytes of the linear, metadata included; the bias is not counted.
  size_t weight_bytes() const;
};

// What must be computed, for choosing a kernel. `rows` is the number of tokens; 0 means any.
struct Problem {
  const PackedLinear* linear = nullptr;  // the first of the fused ones
  int64_t out_features = 0;              // of all fused linears together
};

// A linear, or several fused ones that share their input, ready to run. Immutable after construction and
// usable from one thread at a time per Scratch.
class LinearOp {
 public:
  virtual ~LinearOp() = default;

  // y[t, 0..n) = x[t, 0..k) * W^T + bias for t in [0, tokens). x has stride in_features. y has row stride
  // `y_stride` >= n.
  virtual void forward(const float* x, int64_t tokens, float* y, int64_t y_stride, Scratch& scratch,
                       ThreadPool& pool) const = 0;

  // Formats with quantized activations: quantizes x as forward() does and returns its activation codes
  // [tokens, k_int] and the INT32 sums [tokens, n] of code products, before any scale, zero-point correction
  // or outlier part. These are equal bit for bit on every kernel of the format; tests compare them. Returns
  // false when the arithmetic has no such sums.
  virtual bool integer_accumulators(const float* x, int64_t tokens, std::vector<uint8_t>* activation_codes,
                                    std::vector<int32_t>* accumulators, Scratch& scratch,
                                    ThreadPool& pool) const {
    static_cast<void>(x), static_cast<void>(tokens), static_cast<void>(activation_codes);
    static_cast<void>(accumulators), static_cast<void>(scratch), static_cast<void>(pool);
    return false;
  }

  // Bytes held in memory for this op beyond the mapped file.
  virtual size_t prepared_bytes() const = 0;
};

// One implementation of a format's product.
struct LinearKernel {
  const char* name;  // "quik-avx512vnni"
  // Empty when the kernel can do `problem` in this process, else why not ("needs avx2", "in-features beyond
  // 131072").
  std::string (*refusal)(const Problem& problem);
  // Prepacks the canonical layout of `linears` (one, or several for which can_fuse held) into the kernel's
  // own.
  std::unique_ptr<LinearOp> (*prepare)(std::span<const PackedLinear* const> linears, ThreadPool& pool);
};

struct LinearFormat {
  const char* name;         // as stored in config.json: "quik"
  const char* description;  // one line for people

  // Packs into the canonical layout. Throws Error for what the format cannot hold (bits, groups, outliers).
  PackedLinear (*pack)(const QuantizedWeight& weight, const std::string& name);
  // Checks that the tensors read from a file are exactly those of the layout: names, types, shapes, and every
  // value that a kernel would index with. Throws Error naming the tensor and what was expected; afterwards
  // kernels may trust everything.
  void (*validate)(const PackedLinear& linear);
  // Rows [first, first + count) of the weight it stands for, as floats, row-major [count, k].
  void (*dequantize_rows)(const PackedLinear& linear, int64_t first, int64_t count, float* weight);
  // "int4xint4->int32", "int8xf32", "f32xf32".
  std::string (*arithmetic)(const PackedLinear& linear);
  // Integer width of the codes (16 or 32 for float weights).
  int (*code_bits)(const PackedLinear& linear);
  // Multiply-adds per token, by bits of the weight operand: {{4, 1.2e6}, {16, 9e4}}.
  std::map<int, double> (*multiply_adds)(const PackedLinear& linear);
  // Whether `b` may be fused after `a` into one LinearOp (same input, same settings, same outlier columns,
  // ...).
  bool (*can_fuse)(const PackedLinear& a, const PackedLinear& b);

  std::span<const LinearKernel* const> kernels;  // fastest first, reference last

  // Scales are stored as F16: quantizers round them before they choose codes, so that packing changes
  // nothing.
  bool f16_scales = false;
  // Holds QuantizedWeight::activation_scale; holds its integer group scales.
  bool static_activations = false;
  bool integer_scales = false;

  // All rows.
  void dequantize(const PackedLinear& linear, float* weight) const {
    dequantize_rows(linear, 0, linear.out_features, weight);
  }
};

// For formats whose parameters have `weight_bits`: their code_bits.
int weight_bits_parameter(const PackedLinear& linear);
// Where every weight is one multiply-add of the format's code_bits: its multiply_adds.
std::map<int, double> one_multiply_add_per_weight(const PackedLinear& linear);

// Every format, in no particular order.
std::span<const LinearFormat* const> all_formats();
// nullptr when there is none of that name.
const LinearFormat* find_format(std::string_view name);

// The kernel that would run, and why each faster one was passed over.
struct KernelChoice {
  const LinearKernel* kernel = nullptr;
  std::vector<std::pair<const LinearKernel*, std::string>> refused;
};
// NIBBLE_KERNEL=<kernel> chooses that kernel for its format. Throws Error when no kernel of the format
// accepts.
KernelChoice choose_kernel(const Problem& problem);

}  // namespace nibble
