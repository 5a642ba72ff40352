#include "pipeline/token_matrix.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/half.h"
#include "formats/dense/dense.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 256;
constexpr int64_t kFourBitGroup = 32;

// Round to nearest on a symmetric grid whose scales are the F16 values that will be stored.
QuantizedWeight round_to_nearest(const PackedLinear& source, int bits, ThreadPool& pool) {
  const int64_t n = source.out_features, k = source.in_features;
  const int64_t group = bits == 4 ? std::min(kFourBitGroup, k) : k;
  const int64_t groups = (k + group - 1) / group;
  const float top = static_cast<float>((1 << (bits - 1)) - 1);
  QuantizedWeight quantized = {
      .out_features = n, .in_features = k, .weight_bits = bits, .activation_bits = 16};
  quantized.group_size = bits == 4 ? group : 0;
  quantized.codes.resize(static_cast<size_t>(n * k));
  quantized.scales.resize(static_cast<size_t>(n * groups));

  pool.parallel_for((n + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t first = task * kRowsPerTask, count = std::min(kRowsPerTask, n - first);
    std::vector<float> rows(static_cast<size_t>(count * k));
    source.format->dequantize_rows(source, first, count, rows.data());
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = g * group, end = std::min(k, begin + group);
        float largest = 0;
        for (int64_t j = begin; j < end; ++j) {
          const float value = rows[static_cast<size_t>(r * k + j)];
          if (!std::isfinite(value)) fail("{}: row {} column {} is not finite", source.name, first + r, j);
          largest = std::max(largest, std::fabs(value));
        }
        float scale = f16_to_float(float_to_f16(largest / top));
        if (!std::isfinite(scale)) fail("{}: row {} is too large for an F16 scale", source.name, first + r);
        if (scale == 0) scale = 0x1p-24f;  // all zero, or below what F16 holds
        quantized.scales[static_cast<size_t>((first + r) * groups + g)] = scale;
        for (int64_t j = begin; j < end; ++j) {
          const float code = std::nearbyint(rows[static_cast<size_t>(r * k + j)] / scale);
          quantized.codes[static_cast<size_t>((first + r) * k + j)] =
              static_cast<int8_t>(std::clamp(code, -top - 1, top));
        }
      }
    }
  });
  return quantized;
}

double relative_error(const PackedLinear& source, const PackedLinear& packed, ThreadPool& pool) {
  const int64_t n = source.out_features, k = source.in_features;
  const int64_t tasks = (n + kRowsPerTask - 1) / kRowsPerTask;
  std::vector<double> difference(static_cast<size_t>(tasks)), total(static_cast<size_t>(tasks));
  pool.parallel_for(tasks, [&](int64_t task, int) {
    const int64_t first = task * kRowsPerTask, count = std::min(kRowsPerTask, n - first);
    std::vector<float> a(static_cast<size_t>(count * k)), b(a.size());
    source.format->dequantize_rows(source, first, count, a.data());
    packed.format->dequantize_rows(packed, first, count, b.data());
    for (size_t i = 0; i < a.size(); ++i) {
      const double d = static_cast<double>(a[i]) - b[i];
      difference[static_cast<size_t>(task)] += d * d;
      total[static_cast<size_t>(task)] += static_cast<double>(a[i]) * a[i];
    }
  });
  double difference_sum = 0, total_sum = 0;
  for (size_t i = 0; i < total.size(); ++i) {
    difference_sum += difference[i];
    total_sum += total[i];
  }
  return total_sum > 0 ? difference_sum / total_sum : 0;
}

}  // namespace

PackedLinear quantize_token_matrix(const PackedLinear& source, int bits, ThreadPool& pool, double* error) {
  PackedLinear packed;
  if (bits == 16) {
    packed = to_16_bit(source);
  } else {
    const LinearFormat* format = find_format("group_int");
    NIBBLE_CHECK(format != nullptr);
    QuantizedWeight quantized = round_to_nearest(source, bits, pool);
    if (const Tensor* bias = source.find("bias")) {
      const Tensor floats = to_f32(*bias);
      quantized.bias.assign(floats.data<float>(), floats.data<float>() + floats.elements());
    }
    packed = format->pack(quantized, source.name);
  }
  if (error != nullptr) *error = relative_error(source, packed, pool);
  return packed;
}

}  // namespace nibble
