// One of QUIK's linears with random weights and input, on the host and on the device, and what kernels must
// make of it by plain loops.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <random>
#include <vector>

#include "backend/cuda/device.h"
#include "base/half.h"
#include "cases/linear_cases.h"
#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/quik/cuda/product.h"

namespace nibble::quik_cuda::testing {

struct Case {
  int n, k, outliers, tokens, weight_bits, activation_bits;
  bool bias = false;
};
inline std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.n << "x" << c.k << " w" << c.weight_bits << "a" << c.activation_bits << " outliers "
             << c.outliers << " tokens " << c.tokens << (c.bias ? " bias" : "");
}

template <typename T>
cuda::Buffer upload(const std::vector<T>& values) {
  cuda::Buffer buffer(values.size() * sizeof(T));
  buffer.upload(values.data(), values.size() * sizeof(T));
  return buffer;
}

template <typename T>
std::vector<T> download(const cuda::Buffer& buffer, size_t count) {
  std::vector<T> values(count);
  buffer.download(values.data(), count * sizeof(T));
  return values;
}

// What one token's codes must be.
struct Token {
  float scale = 0;
  int zero = 0;
  std::vector<uint8_t> codes;
};

inline Token quantize(const uint16_t* x, const std::vector<int32_t>& columns, int top) {
  float lo = 0, hi = 0;
  bool finite = true;
  for (const int32_t column : columns) {
    const float value = f16_to_float(x[column]);
    finite = finite && std::isfinite(value);
    lo = std::fmin(lo, value);
    hi = std::fmax(hi, value);
  }
  Token token;
  token.codes.resize(columns.size());
  token.scale = (hi - lo) / static_cast<float>(top);
  if (!finite) {
    token.scale = NAN;
    return token;
  }
  if (token.scale == 0) {
    lo = -1;
    token.scale = 2.0f / static_cast<float>(top);
  }
  token.zero = static_cast<int>(std::lrint(-lo / token.scale));
  for (size_t j = 0; j < columns.size(); ++j) {
    const float quotient = f16_to_float(x[columns[j]]) / token.scale;
    token.codes[j] =
        static_cast<uint8_t>(std::clamp(static_cast<int>(std::lrint(quotient)) + token.zero, 0, top));
  }
  return token;
}

struct Linear {
  explicit Linear(const Case& of) : c(of), k_int(of.k - of.outliers) {
    outlier_columns = cases::spread_columns(c.k, c.outliers);
    for (int32_t column = 0; column < c.k; ++column) {
      if (!std::binary_search(outlier_columns.begin(), outlier_columns.end(), column))
        integer_columns.push_back(column);
    }
    std::mt19937 generator(c.n * 31 + c.k);
    make_weights(generator);
    make_input(generator);
    weights = {.form = group_int_a8_cuda::FewTokensForm::kRows,
               .shape = shape,
               .slots = d_slots.as<uint8_t>(),
               .row_scales = d_scales.as<float>(),
               .code_sums = d_sums.as<int32_t>(),
               .bias = c.bias ? d_bias.as<float>() : nullptr};
  }

  // y of the kernels within the bound of the contract; `y` [tokens, y_stride] F16 bits.
  void expect_outputs(const std::vector<uint16_t>& y, int64_t y_stride) const {
    for (int t = 0; t < c.tokens; ++t) {
      for (int row = 0; row < c.n; ++row) {
        const Token& token = tokens[t];
        const float got = f16_to_float(y[static_cast<size_t>(t * y_stride) + row]);
        if (std::isnan(token.scale)) {
          ASSERT_TRUE(std::isnan(got)) << "token " << t << " row " << row;
          continue;
        }
        double exact =
            double{token.scale} * double{scales[row]} *
            (double(accumulators[static_cast<size_t>(t) * c.n + row]) - double(token.zero) * sums[row]);
        double magnitude = std::fabs(exact);
        for (int o = 0; o < c.outliers; ++o) {
          const double product =
              double{f16_to_float(x[static_cast<size_t>(t) * c.k + outlier_columns[o]])} *
              double{f16_to_float(outlier_weights[static_cast<size_t>(row) * c.outliers + o])};
          exact += product;
          magnitude += std::fabs(product);
        }
        if (c.bias) {
          exact += bias[row];
          magnitude += std::fabs(bias[row]);
        }
        const double bound = 4.0 * c.k * 0x1p-24 * magnitude + std::fabs(exact) * 0x1p-10 + 0x1p-24;
        ASSERT_NEAR(got, exact, bound) << "token " << t << " row " << row;
      }
    }
  }

  Case c;
  int k_int;
  std::vector<int32_t> outlier_columns, integer_columns, sums;  // sums: of a row's codes
  std::vector<float> scales, bias;
  std::vector<uint16_t> outlier_weights, x;  // F16 bits
  std::vector<Token> tokens;
  std::vector<int32_t> accumulators;  // [tokens, n] of codes, before any correction
  group_int_a8_cuda::FewTokensShape shape;
  group_int_a8_cuda::FewTokensOperand weights;  // on the device
  cuda::Buffer d_slots, d_sums, d_scales, d_bias, d_x;

 private:
  void make_weights(std::mt19937& generator) {
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> code(-(1 << (c.weight_bits - 1)), (1 << (c.weight_bits - 1)) - 1);
    shape.n = c.n;
    shape.columns = k_int;
    shape.outliers = c.outliers;
    shape.weight_bits = c.weight_bits;
    std::vector<uint8_t> slots(static_cast<size_t>(shape.bytes()));
    codes_.resize(static_cast<size_t>(c.n) * k_int);
    sums.resize(c.n);
    scales.resize(c.n);
    bias.resize(c.n);
    outlier_weights.resize(static_cast<size_t>(c.n) * c.outliers);
    for (int row = 0; row < c.n; ++row) {
      int8_t* const row_codes = codes_.data() + static_cast<size_t>(row) * k_int;
      uint16_t* const row_outliers = outlier_weights.data() + static_cast<size_t>(row) * c.outliers;
      for (int j = 0; j < k_int; ++j) {
        row_codes[j] = static_cast<int8_t>(code(generator));
        sums[row] += row_codes[j];
      }
      scales[row] = 0.001f + 0.01f * std::fabs(normal(generator));
      bias[row] = normal(generator);
      for (int o = 0; o < c.outliers; ++o) row_outliers[o] = float_to_f16(0.05f * normal(generator));
      place_row(shape, row, row_codes, row_outliers, slots.data());
    }
    d_slots = upload(slots);
    d_sums = upload(sums);
    d_scales = upload(scales);
    d_bias = upload(bias);
  }

  void make_input(std::mt19937& generator) {
    std::normal_distribution<float> normal;
    x.resize(static_cast<size_t>(c.tokens) * c.k);
    for (uint16_t& value : x) value = float_to_f16(normal(generator));
    if (c.tokens > 2) std::fill(x.begin() + c.k, x.begin() + 2 * c.k, 0);  // an all-zero token
    if (c.tokens > 4)
      x[4 * static_cast<size_t>(c.k) + integer_columns.back()] = 0x7C00;  // and one with an infinity
    d_x = upload(x);
    for (int t = 0; t < c.tokens; ++t) {
      tokens.push_back(
          quantize(x.data() + static_cast<size_t>(t) * c.k, integer_columns, (1 << c.activation_bits) - 1));
      for (int row = 0; row < c.n; ++row) {
        const int8_t* const row_codes = codes_.data() + static_cast<size_t>(row) * k_int;
        int32_t sum = 0;
        for (int j = 0; j < k_int; ++j) sum += tokens.back().codes[j] * row_codes[j];
        accumulators.push_back(sum);
      }
    }
  }

  std::vector<int8_t> codes_;
};

}  // namespace nibble::quik_cuda::testing
