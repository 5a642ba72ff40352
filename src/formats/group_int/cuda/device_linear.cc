// group_int's row in the table of the device's kernels (backend/cuda/linear.h): 4-bit weights, FP16 tokens.
#include <algorithm>

#include "backend/cuda/dense_linear.h"
#include "backend/cuda/elementwise.h"
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "formats/group_int/cuda/decode.h"
#include "formats/group_int/cuda/decode_layout.h"

namespace nibble::group_int_cuda {
namespace {

// Tokens that one launch can hold in shared memory beside its ring.
int tokens_at_once(int64_t k, const DecodePlan& plan) {
  constexpr int64_t kSharedBytes = 227 << 10, kStaticBytes = 8 << 10;
  const int64_t ring = plan.stages * kChunkGroups * (kCodeBytes + kScaleBytes);
  const int64_t token = 2 * (k + kGroup - 1) / kGroup * kGroup;
  return static_cast<int>(
      std::min<int64_t>(kMaximumDecodeTokens, (kSharedBytes - kStaticBytes - ring) / token));
}

class DecodeLinear final : public cuda::DeviceLinear {
 public:
  DecodeLinear(std::span<const PackedLinear* const> linears, const cuda::Device& device, ThreadPool& pool)
      : k_(linears.front()->in_features), multiprocessors_(device.multiprocessors) {
    // Whole tiles of rows stand one behind the other (fuses()), so packed linears can too.
    std::vector<std::vector<uint8_t>> packed(linears.size());
    pool.parallel_for(static_cast<int64_t>(linears.size()), [&](int64_t i, int) {
      packed[static_cast<size_t>(i)] = pack_for_decode(*linears[static_cast<size_t>(i)]);
    });
    size_t bytes = 0;
    for (size_t i = 0; i < linears.size(); ++i) {
      n_ += linears[i]->out_features;
      bytes += packed[i].size();
    }
    weights_ = cuda::Buffer(bytes);
    size_t at = 0;
    for (const std::vector<uint8_t>& part : packed) {
      cuda::check(cudaMemcpy(weights_.as<uint8_t>() + at, part.data(), part.size(), cudaMemcpyHostToDevice),
                  "uploading weights");
      at += part.size();
    }
    if (const std::vector<float> bias = cuda::joined_biases(linears); !bias.empty()) {
      bias_ = cuda::Buffer(sizeof(float) * bias.size());
      bias_.upload(bias.data(), sizeof(float) * bias.size());
    }
  }

  int64_t in_features() const override { return k_; }
  int64_t out_features() const override { return n_; }
  size_t workspace_bytes(int) const override { return 0; }

  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void*,
               cudaStream_t stream) const override {
    const DecodePlan plan;
    const int step = y_stride == n_ ? tokens_at_once(k_, plan) : 1;
    for (int first = 0; first < tokens; first += step) {
      cuda::check(launch_decode({.weights = weights_.as<uint8_t>(),
                                 .x = x + first * k_,
                                 .y = y + first * y_stride,
                                 .n = static_cast<int>(n_),
                                 .k = static_cast<int>(k_),
                                 .tokens = std::min(step, tokens - first)},
                                plan, multiprocessors_, stream),
                  "multiplying 4-bit weights");
    }
    if (bias_.bytes() > 0) {
      cuda::launch_add_bias(y, y_stride, bias_.as<float>(), tokens, static_cast<int>(n_), stream);
    }
  }

  std::unique_ptr<cuda::DeviceLinear> duplicate() const override {
    return std::unique_ptr<cuda::DeviceLinear>(new DecodeLinear(*this));
  }

  cuda::LinearPath path(int tokens) const override {
    return {tokens <= kMaximumDecodeTokens ? "w4a16-decode" : "w4a16-decode, few tokens at a time",
            "int4xf16->f32"};
  }
  size_t bytes() const override { return weights_.bytes() + bias_.bytes(); }

 private:
  DecodeLinear(const DecodeLinear& other)
      : n_(other.n_),
        k_(other.k_),
        multiprocessors_(other.multiprocessors_),
        weights_(other.weights_.clone()),
        bias_(other.bias_.clone()) {}

  int64_t n_ = 0, k_ = 0;
  int multiprocessors_ = 0;
  cuda::Buffer weights_, bias_;
};

std::string refusal(const Problem& problem, const cuda::Device&) {
  const PackedLinear& linear = *problem.linear;
  if (linear.in_features % 8 != 0) return format_text("{} columns, no multiple of 8", linear.in_features);
  if (tokens_at_once(linear.in_features, {}) < 1)
    return format_text("{} columns do not fit into shared memory", linear.in_features);
  return decode_refusal(linear);
}

std::unique_ptr<cuda::DeviceLinear> load(std::span<const PackedLinear* const> linears,
                                         const cuda::Device& device, ThreadPool& pool) {
  return std::make_unique<DecodeLinear>(linears, device, pool);
}

size_t packed_bytes(const PackedLinear& linear) {
  return static_cast<size_t>(DecodeShape{.n = linear.out_features, .k = linear.in_features}.bytes());
}

bool fuses(const PackedLinear& a, const PackedLinear&) { return a.out_features % kRows == 0; }

}  // namespace

extern const cuda::DeviceKernel kDeviceKernel;
const cuda::DeviceKernel kDeviceKernel = {
    .name = "cuda-w4a16", .refusal = refusal, .load = load, .bytes = packed_bytes, .fuses = fuses};

}  // namespace nibble::group_int_cuda
