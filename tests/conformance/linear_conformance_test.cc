// What every format and every one of its kernels must do, on the shared case table. The references here are
// plain loops over the definitions (docs and src/formats/*/README.md) and use none of the library's
// arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>

#include "backend/cpu/cpu_path.h"
#include "cases/linear_cases.h"

namespace nibble {
namespace {

using cases::LinearCase;
using cases::Subject;

// Unit roundoff of FP32.
constexpr double kEps = 0x1p-24;

// A weight with a table of levels per row and sparse values beside them.
std::vector<float> expected_codebook_weight(const QuantizedWeight& weight) {
  const int64_t n = weight.out_features, k = weight.in_features;
  const int64_t levels = static_cast<int64_t>(weight.codebooks.size()) / n;
  std::vector<float> dense(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < n * k; ++i) dense[i] = weight.codebooks[i / k * levels + weight.codes[i]];
  for (int64_t row = 0; row < n && !weight.sparse.empty(); ++row) {
    for (int64_t i = weight.sparse.row_offsets[row]; i < weight.sparse.row_offsets[row + 1]; ++i) {
      dense[row * k + weight.sparse.columns[i]] += weight.sparse.values[i];
    }
  }
  return dense;
}

// The weight a case stands for, by the definition of QuantizedWeight.
std::vector<float> expected_weight(const QuantizedWeight& weight) {
  if (!weight.codebooks.empty()) return expected_codebook_weight(weight);
  const int64_t n = weight.out_features, k = weight.in_features, k_int = weight.integer_columns();
  const int64_t groups = static_cast<int64_t>(weight.scales.size()) / n;
  std::vector<float> dense(static_cast<size_t>(n * k));
  for (int64_t row = 0; row < n; ++row) {
    int64_t j = 0, o = 0;
    for (int64_t column = 0; column < k; ++column) {
      if (o < static_cast<int64_t>(weight.outlier_columns.size()) && weight.outlier_columns[o] == column) {
        dense[row * k + column] = weight.outlier_weights[row * weight.outlier_columns.size() + o++];
        continue;
      }
      const int64_t group = row * groups + (weight.group_size == 0 ? 0 : j / weight.group_size);
      const float zero = weight.zeros.empty() ? 0.0f : weight.zeros[group];
      dense[row * k + column] =
          (static_cast<float>(weight.codes[row * k_int + j]) - zero) * weight.scales[group];
      ++j;
    }
    for (int64_t i = weight.sparse.empty() ? 0 : weight.sparse.row_offsets[row];
         !weight.sparse.empty() && i < weight.sparse.row_offsets[row + 1]; ++i) {
      dense[row * k + weight.sparse.columns[i]] += weight.sparse.values[i];
    }
  }
  return dense;
}

std::vector<int64_t> integer_columns(int64_t k, const std::vector<int32_t>& outliers) {
  const std::set<int64_t> excluded(outliers.begin(), outliers.end());
  std::vector<int64_t> columns;
  for (int64_t column = 0; column < k; ++column) {
    if (excluded.count(column) == 0) columns.push_back(column);
  }
  return columns;
}

// Activation codes by the contract: per token over the integer columns, FP32, IEEE division, ties to even.
struct Activations {
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  std::vector<uint8_t> codes;  // [tokens, k_int]; signed ones as bytes
  bool is_signed = false;

  int code(int64_t index) const { return is_signed ? static_cast<int8_t>(codes[index]) : codes[index]; }
};

// Signed codes: s = max|x| / 127 or a static step, clamp(rne(x / s), -127, 127), and 0 where s is 0.
Activations quantize_signed(const std::vector<float>& x, int64_t tokens, int64_t k, float static_scale) {
  Activations result;
  result.is_signed = true;
  for (int64_t t = 0; t < tokens; ++t) {
    float s = static_scale;
    for (int64_t j = 0; j < k && static_scale == 0; ++j) s = std::fmax(s, std::fabs(x[t * k + j]));
    if (static_scale == 0) s = s / 127;
    for (int64_t j = 0; j < k; ++j) {
      const float quotient = s == 0 ? 0 : std::fmin(std::fmax(x[t * k + j] / s, -127), 127);
      result.codes.push_back(static_cast<uint8_t>(static_cast<int8_t>(std::lrint(quotient))));
    }
    result.scales.push_back(s);
    result.zeros.push_back(0);
  }
  return result;
}

Activations quantize(const std::vector<float>& x, int64_t tokens, int64_t k,
                     const std::vector<int64_t>& columns, int bits) {
  Activations result;
  const int top = (1 << bits) - 1;
  for (int64_t t = 0; t < tokens; ++t) {
    float lo = 0, hi = 0;
    for (const int64_t column : columns) {
      lo = std::fmin(lo, x[t * k + column]);
      hi = std::fmax(hi, x[t * k + column]);
    }
    float s = (hi - lo) / static_cast<float>(top);
    if (s == 0) {
      lo = -1;
      hi = 1;
      s = (hi - lo) / static_cast<float>(top);
    }
    float quotient = -lo / s;
    const long z = std::lrint(quotient);
    for (const int64_t column : columns) {
      quotient = x[t * k + column] / s;
      const long u = std::lrint(quotient) + z;
      result.codes.push_back(static_cast<uint8_t>(u < 0 ? 0 : u > top ? top : u));
    }
    result.scales.push_back(s);
    result.zeros.push_back(static_cast<int32_t>(z));
  }
  return result;
}

// y in FP64 and the sums of |a b| that bound its error, for float activations.
struct Expected {
  std::vector<double> y, magnitude;  // [tokens, n]
};

Expected float_product(const std::vector<float>& x, const std::vector<float>& weight, const Tensor* bias,
                       const LinearCase& shape) {
  Expected expected;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t row = 0; row < shape.n; ++row) {
      double sum = bias == nullptr ? 0.0 : bias->data<float>()[row], magnitude = std::fabs(sum);
      for (int64_t column = 0; column < shape.k; ++column) {
        const double product = double{x[t * shape.k + column]} * double{weight[row * shape.k + column]};
        sum += product;
        magnitude += std::fabs(product);
      }
      expected.y.push_back(sum);
      expected.magnitude.push_back(magnitude);
    }
  }
  return expected;
}

// The same for quantized activations: s (u - z) in place of x on the integer columns.
Expected coded_product(const std::vector<float>& x, const Activations& activations,
                       const QuantizedWeight& weight, const LinearCase& shape) {
  const std::vector<int64_t> columns = integer_columns(shape.k, weight.outlier_columns);
  const int64_t k_int = static_cast<int64_t>(columns.size());
  const int64_t outliers = static_cast<int64_t>(weight.outlier_columns.size());
  const int64_t groups = static_cast<int64_t>(weight.scales.size()) / shape.n;
  const int64_t columns_per_group = weight.group_size == 0 ? k_int : weight.group_size;
  Expected expected;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t row = 0; row < shape.n; ++row) {
      double sum = weight.bias.empty() ? 0.0 : weight.bias[row], magnitude = std::fabs(sum);
      for (int64_t group = 0; group < groups; ++group) {
        const double scale = double{activations.scales[t]} * double{weight.scales[row * groups + group]};
        int64_t integers = 0, integer_magnitude = 0;
        for (int64_t j = group * columns_per_group; j < std::min(k_int, (group + 1) * columns_per_group);
             ++j) {
          const int product =
              (activations.code(t * k_int + j) - activations.zeros[t]) * weight.codes[row * k_int + j];
          integers += product;
          integer_magnitude += std::abs(product);
        }
        sum += scale * static_cast<double>(integers);
        magnitude += scale * static_cast<double>(integer_magnitude);
      }
      for (int64_t o = 0; o < outliers; ++o) {
        const double product = double{x[t * shape.k + weight.outlier_columns[o]]} *
                               double{weight.outlier_weights[row * outliers + o]};
        sum += product;
        magnitude += std::fabs(product);
      }
      expected.y.push_back(sum);
      expected.magnitude.push_back(magnitude);
    }
  }
  return expected;
}

// Sums of code products as kernels report them: [tokens, n, groups], or [tokens, n] of integer scales times
// the groups' sums.
std::vector<int32_t> code_products(const Activations& activations, const QuantizedWeight& weight,
                                   int64_t tokens) {
  const int64_t n = weight.out_features, k_int = weight.integer_columns();
  const int64_t groups = static_cast<int64_t>(weight.scales.size()) / n;
  const int64_t columns_per_group = weight.group_size == 0 ? k_int : weight.group_size;
  std::vector<int32_t> sums;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t row = 0; row < n; ++row) {
      int64_t total = 0;
      for (int64_t group = 0; group < groups; ++group) {
        int64_t sum = 0;
        for (int64_t j = group * columns_per_group; j < std::min(k_int, (group + 1) * columns_per_group); ++j)
          sum += activations.code(t * k_int + j) * weight.codes[row * k_int + j];
        if (weight.scale_multipliers.empty()) {
          sums.push_back(static_cast<int32_t>(sum));
          EXPECT_EQ(sum, sums.back()) << "the case itself overflows";
        } else {
          total += sum * weight.scale_multipliers[row * groups + group];
        }
      }
      if (weight.scale_multipliers.empty()) continue;
      sums.push_back(static_cast<int32_t>(total));
      EXPECT_EQ(total, sums.back()) << "the case itself overflows";
    }
  }
  return sums;
}

// A forced NIBBLE_CPU that this machine lacks: nothing to test here.
const char* missing_forced_path() {
  const char* forced = std::getenv("NIBBLE_CPU");
  if (forced == nullptr || *forced == '\0') return nullptr;
  for (const CpuPath path : kAllCpuPaths) {
    if (cpu_path_name(path) == forced && !machine_has(path)) return forced;
  }
  return nullptr;
}

std::vector<const LinearKernel*> enabled_kernels(const PackedLinear& linear) {
  std::vector<const LinearKernel*> kernels;
  for (const LinearKernel* kernel : linear.format->kernels) {
    if (kernel->refusal({&linear, linear.out_features}).empty()) kernels.push_back(kernel);
  }
  return kernels;
}

std::vector<float> run(const LinearOp& op, const std::vector<float>& x, int64_t tokens, int64_t n,
                       int64_t stride, ThreadPool& pool) {
  constexpr float kUntouched = -12345.0f;
  std::vector<float> y(static_cast<size_t>(tokens * stride), kUntouched);
  Scratch scratch;
  op.forward(x.data(), tokens, y.data(), stride, scratch, pool);
  std::vector<float> dense;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < stride; ++i) {
      const float value = y[t * stride + i];
      if (i < n) {
        dense.push_back(value);
      } else {
        EXPECT_EQ(value, kUntouched) << "wrote beyond its " << n << " outputs at token " << t << ", column "
                                     << i;
      }
    }
  }
  return dense;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void expect_close(const std::vector<float>& y, const Expected& expected, int64_t k) {
  ASSERT_EQ(y.size(), expected.y.size());
  for (size_t i = 0; i < y.size(); ++i) {
    // Where the whole sum is subnormal, one unit of the least subnormal per term is the best there is.
    const double bound = 4.0 * static_cast<double>(k) * (kEps * expected.magnitude[i] + 0x1p-149);
    ASSERT_LE(std::fabs(double{y[i]} - expected.y[i]), bound)
        << "output " << i << " is " << y[i] << ", expected " << expected.y[i];
  }
}

class LinearConformance : public ::testing::TestWithParam<Subject> {
 protected:
  void SetUp() override {
    if (const char* missing = missing_forced_path()) GTEST_SKIP() << "this machine has no " << missing;
  }
  std::vector<float> input(const LinearCase& shape) {
    return cases::make_input(shape, GetParam().activation_bits, GetParam().symmetric_activations);
  }
};

TEST_P(LinearConformance, PackedWeightIsTheQuantizedOne) {
  const Subject& subject = GetParam();
  for (const LinearCase& shape : cases::linear_cases()) {
    SCOPED_TRACE(shape.name());
    const PackedLinear linear = subject.make(shape, "layer.linear");
    ASSERT_EQ(linear.out_features, shape.n);
    ASSERT_EQ(linear.in_features, shape.k);
    ASSERT_NO_THROW(subject.format->validate(linear));
    std::vector<float> weight(static_cast<size_t>(shape.n * shape.k), NAN);
    subject.format->dequantize(linear, weight.data());
    if (subject.weight) {
      const std::vector<float> expected = expected_weight(subject.weight(shape));
      for (size_t i = 0; i < weight.size(); ++i) ASSERT_EQ(weight[i], expected[i]) << "element " << i;
    }
    const int64_t first = shape.n / 3, count = shape.n - first - shape.n / 4;
    std::vector<float> rows(static_cast<size_t>(count * shape.k), NAN);
    subject.format->dequantize_rows(linear, first, count, rows.data());
    for (size_t i = 0; i < rows.size(); ++i)
      ASSERT_EQ(rows[i], weight[first * shape.k + i]) << "element " << i;

    double multiply_adds = 0;
    for (const auto& [bits, adds] : subject.format->multiply_adds(linear)) multiply_adds += adds;
    EXPECT_EQ(multiply_adds, static_cast<double>(shape.n * shape.k));
    EXPECT_GT(linear.weight_bytes(), 0u);
  }
}

TEST_P(LinearConformance, EveryKernelMatchesPlainLoops) {
  const Subject& subject = GetParam();
  ThreadPool one(1), two(2), four(4);
  for (const LinearCase& shape : cases::linear_cases()) {
    SCOPED_TRACE(shape.name());
    const PackedLinear linear = subject.make(shape, "layer.linear");
    const std::vector<float> x = input(shape);
    Expected expected;
    Activations activations;
    std::vector<int32_t> accumulators;
    if (subject.activation_bits < 16) {
      const QuantizedWeight weight = subject.weight(shape);
      const std::vector<int64_t> columns = integer_columns(shape.k, weight.outlier_columns);
      activations = subject.symmetric_activations
                        ? quantize_signed(x, shape.tokens, shape.k, weight.activation_scale)
                        : quantize(x, shape.tokens, shape.k, columns, subject.activation_bits);
      expected = coded_product(x, activations, weight, shape);
      accumulators = code_products(activations, weight, shape.tokens);
    } else {
      std::vector<float> weight(static_cast<size_t>(shape.n * shape.k));
      subject.format->dequantize(linear, weight.data());
      expected = float_product(x, weight, linear.find("bias"), shape);
    }

    const std::vector<const LinearKernel*> kernels = enabled_kernels(linear);
    ASSERT_FALSE(kernels.empty());
    for (const LinearKernel* kernel : kernels) {
      SCOPED_TRACE(kernel->name);
      const PackedLinear* pointer = &linear;
      const auto op = kernel->prepare({&pointer, 1}, two);
      const std::vector<float> y = run(*op, x, shape.tokens, shape.n, shape.n, one);
      expect_close(y, expected, shape.k);
      ASSERT_TRUE(same_bits(y, run(*op, x, shape.tokens, shape.n, shape.n + 3, two)))
          << "two threads differ from one";
      ASSERT_TRUE(same_bits(y, run(*op, x, shape.tokens, shape.n, shape.n, four)))
          << "four threads differ from one";

      std::vector<uint8_t> codes;
      std::vector<int32_t> sums;
      Scratch scratch;
      const bool integer = op->integer_accumulators(x.data(), shape.tokens, &codes, &sums, scratch, two);
      ASSERT_EQ(integer, subject.activation_bits < 16);
      if (integer) {
        ASSERT_EQ(codes, activations.codes);
        ASSERT_EQ(sums, accumulators);
      }
    }
  }
}

TEST_P(LinearConformance, FusedLinearsGiveTheSameBits) {
  const Subject& subject = GetParam();
  ThreadPool pool(2);
  for (const auto& [n_first, n_second, n_third, k, outliers, tokens] :
       std::vector<std::array<int64_t, 6>>{{48, 17, 33, 130, 32, 1},
                                           {48, 17, 33, 130, 32, 5},
                                           {5, 40, 1, 95, 0, 3},
                                           {64, 32, 32, 200, 64, 37},
                                           {7, 100, 70, 321, 1, 70}}) {
    const std::array<LinearCase, 3> shapes = {
        LinearCase{n_first, k, outliers, tokens, true}, LinearCase{n_second, k, outliers, tokens, false},
        LinearCase{n_third, k, outliers, tokens, true, cases::Codes::kAlternate}};
    SCOPED_TRACE(shapes[0].name());
    std::vector<PackedLinear> linears;
    for (const LinearCase& shape : shapes) linears.push_back(subject.make(shape, "layer.linear"));
    if (!subject.format->can_fuse(linears[0], linears[1]) ||
        !subject.format->can_fuse(linears[1], linears[2]))
      continue;
    const std::vector<float> x = input(shapes[0]);
    std::vector<const PackedLinear*> pointers;
    for (const PackedLinear& linear : linears) pointers.push_back(&linear);
    const int64_t total = n_first + n_second + n_third;
    for (const LinearKernel* kernel : enabled_kernels(linears[0])) {
      SCOPED_TRACE(kernel->name);
      const std::vector<float> fused = run(*kernel->prepare(pointers, pool), x, tokens, total, total, pool);
      int64_t column = 0;
      for (size_t i = 0; i < linears.size(); ++i) {
        const int64_t n = shapes[i].n;
        const std::vector<float> alone =
            run(*kernel->prepare({&pointers[i], 1}, pool), x, tokens, n, n, pool);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t row = 0; row < n; ++row) {
            const float a = fused[t * total + column + row], b = alone[t * n + row];
            ASSERT_EQ(std::memcmp(&a, &b, sizeof(float)), 0)
                << "part " << i << ", token " << t << ", row " << row;
          }
        }
        column += n;
      }
    }
  }
}

TEST(LinearConformanceTable, EveryFormatWithKernelsIsTested) {
  std::set<std::string> tested;
  for (const Subject& subject : cases::subjects()) tested.insert(subject.format->name);
  for (const LinearFormat* format : all_formats()) {
    EXPECT_EQ(tested.count(format->name), 1u)
        << "tests/cases/linear_cases.h has no subject for format " << format->name;
    ASSERT_FALSE(format->kernels.empty()) << format->name;
    // The last kernel is the reference: it runs on any machine.
    EXPECT_NE(std::string(format->kernels.back()->name).find("reference"), std::string::npos) << format->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, LinearConformance, ::testing::ValuesIn(cases::subjects()),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           for (char& letter : name) {
                             if (!std::isalnum(static_cast<unsigned char>(letter))) letter = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace nibble
