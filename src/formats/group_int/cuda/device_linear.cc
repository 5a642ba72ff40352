// group_int's rows in the table of the device's kernels (backend/cuda/linear.h): 4-bit weights, FP16 tokens.
// One has Hopper's kernels, the other those that every GPU runs.
#include <algorithm>

#include "backend/cuda/dense_linear.h"
#include "backend/cuda/elementwise.h"
#include "backend/cuda/gemm_plans.h"
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "formats/group_int/cuda/choose.h"
#include "formats/group_int/cuda/decode_layout.h"
#include "formats/group_int/cuda/expand.h"
#include "formats/group_int/cuda/plain.h"

namespace nibble::group_int_cuda {
namespace {

constexpr size_t kSliceBytes = size_t{256} << 20;  // of FP16 weights at a time, for very many tokens
constexpr const char* kWhat = "multiplying 4-bit weights";

enum class Kernels { kHopper, kPlain };

class PackedLinears final : public cuda::DeviceLinear {
 public:
  PackedLinears(std::span<const PackedLinear* const> linears, const cuda::Device& device, ThreadPool& pool,
                Kernels kernels)
      : kernels_(kernels),
        k_(linears.front()->in_features),
        scales_per_block_(static_cast<int>(decode_shape(*linears.front()).scales_per_block)),
        multiprocessors_(device.multiprocessors),
        flags_(sizeof(uint32_t) * kTileFlags) {
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
    clear_flags();
  }

  int64_t in_features() const override { return k_; }
  int64_t out_features() const override { return n_; }

  size_t workspace_bytes(int most_tokens) const override {
    const size_t tiles = kernels_ == Kernels::kHopper ? tile_workspace_bytes(multiprocessors_) : 0;
    if (most_tokens < (kernels_ == Kernels::kHopper ? least_expanded_tokens() : kMaximumPlainTokens + 1))
      return tiles;
    const size_t slice = sizeof(__half) * static_cast<size_t>(slice_rows()) * static_cast<size_t>(k_);
    return std::max(tiles, cuda::kGemmWorkspaceBytes + slice);
  }

  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
               cudaStream_t stream) const override {
    const int n = static_cast<int>(n_), k = static_cast<int>(k_);
    const float* const bias = this->bias();
    const DecodeProblem problem = decode_problem(x, tokens, y, y_stride);
    if (runs_plain(tokens)) return launch_plain(problem, stream);
    const Choice choice = choose_for(tokens);
    switch (choice.method) {
      case Method::kDecode:
        cuda::check(launch_decode(problem, choice.decode, multiprocessors_, stream), kWhat);
        break;
      case Method::kFew:
        cuda::check(launch_few(problem, choice.few, multiprocessors_, stream), kWhat);
        break;
      case Method::kTile:
        cuda::check(launch_tile({.weights = weights_.as<uint8_t>(),
                                 .x = x,
                                 .y = y,
                                 .y_stride = y_stride,
                                 .bias = bias,
                                 .n = n,
                                 .k = k,
                                 .tokens = tokens,
                                 .scales_per_block = scales_per_block_,
                                 .workspace = workspace,
                                 .flags = flags_.as<uint32_t>()},
                                choice.tile, multiprocessors_, stream),
                    kWhat);
        break;
      case Method::kExpand: {
        auto* const slice = slice_of(workspace);
        for (int first = 0; first < n; first += slice_rows()) {
          const int rows = std::min(slice_rows(), n - first);
          expand(first, rows, slice, stream);
          cuda::GemmPlans::shared().enqueue({.m = tokens, .n = rows, .k = k_, .y_stride = y_stride}, x, slice,
                                            y + first, workspace, stream);
        }
        if (bias != nullptr) cuda::launch_add_bias(y, y_stride, bias, tokens, n, stream);
        break;
      }
    }
  }

  // The decode kernel's blocks each compute the step: worth it for one token.
  bool takes(const cuda::InputStep& step, int tokens) const override {
    return tokens == 1 && kernels_ == Kernels::kHopper && choose_for(1).method == Method::kDecode &&
           decode_takes(step, static_cast<int>(k_));
  }
  void forward_from(const cuda::InputStep& step, int tokens, __half* y, int64_t y_stride, void*,
                    cudaStream_t stream) const override {
    cuda::check(launch_decode_from(step, decode_problem(nullptr, tokens, y, y_stride), choose_for(1).decode,
                                   multiprocessors_, stream),
                kWhat);
  }

  void prepare(int tokens, void* workspace, cudaStream_t stream) const override {
    const int n = static_cast<int>(n_);
    if (runs_plain(tokens) || choose_for(tokens).method != Method::kExpand) return;
    auto* const slice = slice_of(workspace);
    for (const int rows : {slice_rows(), n % slice_rows()}) {
      if (rows == 0) continue;
      expand(n - rows - (n - rows) % static_cast<int>(kBlockRows), rows, slice, stream);
      cuda::GemmPlans::shared().tune({.m = tokens, .n = rows, .k = k_, .y_stride = n_}, slice, workspace,
                                     stream);
    }
  }

  std::unique_ptr<cuda::DeviceLinear> duplicate() const override {
    return std::unique_ptr<cuda::DeviceLinear>(new PackedLinears(*this));
  }

  cuda::LinearPath path(int tokens) const override {
    if (runs_plain(tokens)) return {"w4a16, plain", "int4xf16->f32"};
    const Choice choice = choose_for(tokens);
    const bool rounds = choice.method == Method::kExpand ||
                        (choice.method == Method::kTile && choice.tile.size.tokens > kMostScaledSums);
    return {"w4a16, " + choice.describe(), rounds ? "int4 as f16xf16->f32" : "int4xf16->f32"};
  }
  size_t bytes() const override { return weights_.bytes() + bias_.bytes() + flags_.bytes(); }

 private:
  PackedLinears(const PackedLinears& other)
      : kernels_(other.kernels_),
        n_(other.n_),
        k_(other.k_),
        scales_per_block_(other.scales_per_block_),
        multiprocessors_(other.multiprocessors_),
        weights_(other.weights_.clone()),
        bias_(other.bias_.clone()),
        flags_(other.flags_.bytes()) {
    clear_flags();
  }
  const float* bias() const { return bias_.bytes() > 0 ? bias_.as<float>() : nullptr; }
  DecodeProblem decode_problem(const __half* x, int tokens, __half* y, int64_t y_stride) const {
    return {.weights = weights_.as<uint8_t>(),
            .x = x,
            .y = y,
            .y_stride = y_stride,
            .bias = bias(),
            .n = static_cast<int>(n_),
            .k = static_cast<int>(k_),
            .tokens = tokens,
            .scales_per_block = scales_per_block_};
  }
  bool runs_plain(int tokens) const { return kernels_ == Kernels::kPlain && tokens <= kMaximumPlainTokens; }
  Choice choose_for(int tokens) const {
    if (kernels_ == Kernels::kPlain) return {.method = Method::kExpand};
    return choose(tokens, static_cast<int>(n_), static_cast<int>(k_), scales_per_block_, multiprocessors_);
  }
  void clear_flags() {
    cuda::check(cudaMemset(flags_.data(), 0, flags_.bytes()), "uploading weights");
    cuda::check(cudaDeviceSynchronize(), "uploading weights");
  }
  int slice_rows() const {
    return expand_slice_rows(static_cast<int>(n_), static_cast<int>(k_), kSliceBytes);
  }
  static __half* slice_of(void* workspace) {
    return reinterpret_cast<__half*>(static_cast<uint8_t*>(workspace) + cuda::kGemmWorkspaceBytes);
  }
  void expand(int first_row, int rows, __half* to, cudaStream_t stream) const {
    cuda::check(launch_expand({.weights = weights_.as<uint8_t>(),
                               .w = to,
                               .n = static_cast<int>(n_),
                               .k = static_cast<int>(k_),
                               .scales_per_block = scales_per_block_,
                               .first_row = first_row,
                               .rows = rows},
                              multiprocessors_, stream),
                "taking 4-bit weights apart");
  }

  Kernels kernels_;
  int64_t n_ = 0, k_ = 0;
  int scales_per_block_ = 1, multiprocessors_ = 0;
  cuda::Buffer weights_, bias_, flags_;
};

std::string refusal(const Problem& problem, const cuda::Device&) {
  const PackedLinear& linear = *problem.linear;
  if (linear.in_features % 8 != 0) return format_text("{} columns, no multiple of 8", linear.in_features);
  return decode_refusal(linear);
}

template <Kernels kKernels>
std::unique_ptr<cuda::DeviceLinear> load(std::span<const PackedLinear* const> linears,
                                         const cuda::Device& device, ThreadPool& pool) {
  return std::make_unique<PackedLinears>(linears, device, pool, kKernels);
}

size_t packed_bytes(const PackedLinear& linear) { return static_cast<size_t>(decode_shape(linear).bytes()); }

bool fuses(const PackedLinear& a, const PackedLinear& b) {
  return a.out_features % kBlockRows == 0 &&
         decode_shape(a).scales_per_block == decode_shape(b).scales_per_block;
}

}  // namespace

extern const cuda::DeviceKernel kDeviceKernel, kPlainDeviceKernel;
const cuda::DeviceKernel kDeviceKernel = {.name = "cuda-w4a16",
                                          .refusal = refusal,
                                          .load = load<Kernels::kHopper>,
                                          .bytes = packed_bytes,
                                          .fuses = fuses};
const cuda::DeviceKernel kPlainDeviceKernel = {.name = "cuda-w4a16-plain",
                                               .portable = true,
                                               .refusal = refusal,
                                               .load = load<Kernels::kPlain>,
                                               .bytes = packed_bytes,
                                               .fuses = fuses};

}  // namespace nibble::group_int_cuda
