// quik's row in the table of the device's kernels (backend/cuda/linear.h): integer products on the tensor
// cores, 4-bit codes widened to 8 bits in memory.
#include <numeric>

#include "backend/cuda/dense_linear.h"
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "formats/quik/cuda/product.h"
#include "formats/quik/layout.h"

namespace nibble::quik_cuda {
namespace {

int64_t rounded(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
size_t aligned(int64_t bytes) { return static_cast<size_t>(rounded(bytes, 256)); }

template <typename T>
cuda::Buffer uploaded(const std::vector<T>& values) {
  if (values.empty()) return {};
  cuda::Buffer buffer(sizeof(T) * values.size());
  buffer.upload(values.data(), sizeof(T) * values.size());
  return buffer;
}

class QuikLinear final : public cuda::DeviceLinear {
 public:
  QuikLinear(std::span<const PackedLinear* const> linears, const cuda::Device& device, ThreadPool& pool)
      : multiprocessors_(device.multiprocessors) {
    std::vector<quik::Layout> layouts;
    for (const PackedLinear* linear : linears) layouts.push_back(quik::read_layout(*linear));
    const quik::Layout& first = layouts.front();
    k_ = first.k;
    bits_ = first.activation_bits;
    weight_bits_ = first.weight_bits;
    weights_.k_int = static_cast<int>(first.k_int);
    weights_.outliers = static_cast<int>(first.outliers());
    weights_.code_stride = rounded(first.k_int, 16);
    weights_.outlier_stride = rounded(std::max<int64_t>(first.outliers(), 1), 8);
    for (const quik::Layout& layout : layouts) n_ += layout.n;
    weights_.n = static_cast<int>(n_);

    std::vector<int8_t> codes(static_cast<size_t>(n_ * weights_.code_stride), 0);
    std::vector<float> scales;
    std::vector<int32_t> sums(static_cast<size_t>(n_));
    std::vector<uint16_t> outliers(static_cast<size_t>(n_ * weights_.outlier_stride), 0);
    int64_t row = 0;
    for (const quik::Layout& layout : layouts) {
      scales.insert(scales.end(), layout.scales.begin(), layout.scales.end());
      pool.parallel_for(layout.n, [&](int64_t i, int) {
        int8_t* const to = codes.data() + (row + i) * weights_.code_stride;
        layout.unpack_row(i, to);
        sums[static_cast<size_t>(row + i)] = std::accumulate(to, to + layout.k_int, 0);
        std::copy_n(layout.outlier_weights.data() + i * layout.outliers(), layout.outliers(),
                    outliers.data() + (row + i) * weights_.outlier_stride);
      });
      row += layout.n;
    }
    codes_ = uploaded(codes);
    scales_ = uploaded(scales);
    sums_ = uploaded(sums);
    outliers_ = uploaded(outliers);
    integer_columns_ = uploaded(first.integer_columns);
    outlier_columns_ = uploaded(first.outlier_columns);
    bias_ = uploaded(cuda::joined_biases(linears));
    point();
  }

  int64_t in_features() const override { return k_; }
  int64_t out_features() const override { return n_; }

  size_t workspace_bytes(int most_tokens) const override {
    return activations(most_tokens, nullptr).second + output_bytes(most_tokens);
  }

  void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
               cudaStream_t stream) const override {
    const auto [quantized, used] = activations(tokens, static_cast<uint8_t*>(workspace));
    cuda::check(launch_quantize(x, weights_, bits_, quantized, stream), "quantizing activations");
    // The product writes rows of n.
    __half* const to =
        y_stride == n_ ? y : reinterpret_cast<__half*>(static_cast<uint8_t*>(workspace) + used);
    cuda::check(Product(weights_, quantized).launch(to, nullptr, multiprocessors_, stream),
                "multiplying integers");
    if (to == y) return;
    cuda::check(
        cudaMemcpy2DAsync(y, sizeof(__half) * static_cast<size_t>(y_stride), to,
                          sizeof(__half) * static_cast<size_t>(n_), sizeof(__half) * static_cast<size_t>(n_),
                          static_cast<size_t>(tokens), cudaMemcpyDeviceToDevice, stream),
        "moving a product");
  }

  std::unique_ptr<cuda::DeviceLinear> duplicate() const override {
    return std::unique_ptr<cuda::DeviceLinear>(new QuikLinear(*this));
  }

  cuda::LinearPath path(int) const override {
    return {"quik-product", format_text("int{}xint{}->int32, as int8", weight_bits_, bits_)};
  }

  size_t bytes() const override {
    size_t total = 0;
    for (const cuda::Buffer* buffer :
         {&codes_, &scales_, &sums_, &outliers_, &integer_columns_, &outlier_columns_, &bias_}) {
      total += buffer->bytes();
    }
    return total;
  }

 private:
  QuikLinear(const QuikLinear& other)
      : n_(other.n_),
        k_(other.k_),
        bits_(other.bits_),
        weight_bits_(other.weight_bits_),
        multiprocessors_(other.multiprocessors_),
        codes_(other.codes_.clone()),
        scales_(other.scales_.clone()),
        sums_(other.sums_.clone()),
        outliers_(other.outliers_.clone()),
        integer_columns_(other.integer_columns_.clone()),
        outlier_columns_(other.outlier_columns_.clone()),
        bias_(other.bias_.clone()),
        weights_(other.weights_) {
    point();
  }

  void point() {
    weights_.codes = codes_.as<int8_t>();
    weights_.scales = scales_.as<float>();
    weights_.code_sums = sums_.as<int32_t>();
    weights_.outlier_weights = outliers_.as<__half>();
    weights_.bias = bias_.bytes() > 0 ? bias_.as<float>() : nullptr;
    weights_.integer_columns = integer_columns_.as<int32_t>();
    weights_.outlier_columns = outlier_columns_.as<int32_t>();
  }

  // Arrays within the workspace, and how many of its bytes they take.
  std::pair<Activations, size_t> activations(int tokens, uint8_t* workspace) const {
    Activations made = {
        .tokens = tokens, .code_stride = weights_.code_stride, .outlier_stride = weights_.outlier_stride};
    size_t used = 0;
    const auto take = [&](int64_t bytes) {
      uint8_t* const at = workspace == nullptr ? nullptr : workspace + used;
      used += aligned(bytes);
      return at;
    };
    made.codes = take(tokens * made.code_stride);
    made.scales = reinterpret_cast<float*>(take(4 * int64_t{tokens}));
    made.zeros = reinterpret_cast<int32_t*>(take(4 * int64_t{tokens}));
    made.outliers = reinterpret_cast<__half*>(take(2 * tokens * made.outlier_stride));
    return {made, used};
  }
  size_t output_bytes(int tokens) const { return aligned(2 * n_ * tokens); }

  int64_t n_ = 0, k_ = 0;
  int bits_ = 0, weight_bits_ = 0, multiprocessors_ = 0;
  cuda::Buffer codes_, scales_, sums_, outliers_, integer_columns_, outlier_columns_, bias_;
  Weights weights_;
};

std::string refusal(const Problem& problem, const cuda::Device&) {
  constexpr int64_t kMostColumns = (227 << 10) / 2 - 1024;  // a token in shared memory
  if (problem.linear->in_features > kMostColumns)
    return format_text("{} columns do not fit into shared memory", problem.linear->in_features);
  return "";
}

std::unique_ptr<cuda::DeviceLinear> load(std::span<const PackedLinear* const> linears,
                                         const cuda::Device& device, ThreadPool& pool) {
  return std::make_unique<QuikLinear>(linears, device, pool);
}

size_t device_bytes(const PackedLinear& linear) {
  const int64_t outliers = linear.parameter("outlier_columns", 0), n = linear.out_features;
  return static_cast<size_t>(n * rounded(linear.in_features - outliers, 16) + 2 * n * rounded(outliers, 8) +
                             8 * n + 4 * linear.in_features);
}

bool fuses(const PackedLinear&, const PackedLinear&) { return true; }

}  // namespace

extern const cuda::DeviceKernel kDeviceKernel;
const cuda::DeviceKernel kDeviceKernel = {
    .name = "cuda-quik", .refusal = refusal, .load = load, .bytes = device_bytes, .fuses = fuses};

}  // namespace nibble::quik_cuda
