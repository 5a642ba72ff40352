// y = x W^T + bias on every CPU path against double-precision loops, for each weight type, odd shapes
// included.

#include "base/half.h"
#include "kernel_cases.h"
#include "kernels/gemm.h"

namespace nibble::testing {
namespace {

// A weight matrix in one of the three types, and the floats it stands for.
struct Weight {
  Weight(WeightType which, int64_t n, int64_t k, uint32_t seed)
      : type(which), values(random_floats(n * k, seed)) {
    if (type == WeightType::kF32) return;
    for (float& value : values) {
      bits.push_back(type == WeightType::kF16 ? float_to_f16(value) : float_to_bf16(value));
      value = type == WeightType::kF16 ? f16_to_float(bits.back()) : bf16_to_float(bits.back());
    }
  }
  const void* data() const {
    return type == WeightType::kF32 ? static_cast<const void*>(values.data()) : bits.data();
  }
  WeightType type;
  std::vector<float> values;
  std::vector<uint16_t> bits;
};

struct Case {
  int64_t tokens, n, k;
};

// 1 row, 1 column, fewer and more than a tile, a panel and a depth block of each path.
constexpr Case kCases[] = {{1, 1, 1},    {1, 7, 5},      {2, 33, 56},   {3, 4, 17},
                           {4, 40, 136}, {5, 1, 3},      {5, 31, 88},   {6, 16, 192},
                           {7, 17, 193}, {11, 33, 191},  {12, 32, 384}, {13, 65, 385},
                           {25, 48, 64}, {30, 129, 200}, {64, 10, 577}, {97, 70, 40}};

class Gemm : public EveryPath {};

void expect_product(const FloatKernels& kernels, const Case& c, WeightType type, bool with_bias,
                    ThreadPool& pool) {
  const std::string where = format_text("{} tokens {} n {} k {} type {} bias {}", kernels.name, c.tokens, c.n,
                                        c.k, static_cast<int>(type), with_bias);
  const std::vector<float> x = random_floats(static_cast<size_t>(c.tokens * c.k), 21);
  const Weight weight(type, c.n, c.k, 22);
  const std::vector<float> bias = random_floats(static_cast<size_t>(c.n), 23);
  const int64_t stride = c.n + 3;  // the three behind each row must stay as they are
  std::vector<float> y(static_cast<size_t>(c.tokens * stride), kGuard);
  Scratch scratch;
  const GemmWeight operand = {
      .type = type, .data = weight.data(), .bias = with_bias ? bias.data() : nullptr, .n = c.n};
  gemm(kernels, x.data(), c.tokens, c.k, {&operand, 1}, y.data(), stride, scratch, pool);
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t j = 0; j < c.n; ++j) {
      double expected = with_bias ? bias[static_cast<size_t>(j)] : 0.0, magnitude = std::fabs(expected);
      for (int64_t i = 0; i < c.k; ++i) {
        const double product = static_cast<double>(x[static_cast<size_t>(t * c.k + i)]) *
                               weight.values[static_cast<size_t>(j * c.k + i)];
        expected += product;
        magnitude += std::fabs(product);
      }
      // The contract's bound for float outputs is 4 K eps sum|ab|; blocked sums are far better.
      expect_near(y[static_cast<size_t>(t * stride + j)], expected, 1e-6 * magnitude + 1e-12, where);
    }
    for (int64_t j = c.n; j < stride; ++j) ASSERT_EQ(y[static_cast<size_t>(t * stride + j)], kGuard) << where;
  }
}

TEST_P(Gemm, MatchesDoubles) {
  ThreadPool pool(1);
  for (const Case& c : kCases) {
    for (const WeightType type : {WeightType::kF32, WeightType::kF16, WeightType::kBF16}) {
      expect_product(kernels(), c, type, c.n % 2 == 0, pool);
    }
  }
}

// Several weights of different types side by side, as fused q, k and v.
TEST_P(Gemm, WeightsSideBySide) {
  constexpr int64_t kTokens[] = {1, 4, 29};
  const int64_t k = 72, sizes[] = {40, 9, 33};
  const Weight weights[] = {
      {WeightType::kF32, 40, k, 31}, {WeightType::kBF16, 9, k, 32}, {WeightType::kF16, 33, k, 33}};
  std::vector<GemmWeight> together;
  int64_t column = 0;
  for (size_t i = 0; i < 3; ++i) {
    together.push_back({.type = weights[i].type, .data = weights[i].data(), .n = sizes[i], .column = column});
    column += sizes[i];
  }
  ThreadPool pool(2);
  Scratch scratch;
  for (const int64_t tokens : kTokens) {
    const std::vector<float> x = random_floats(static_cast<size_t>(tokens * k), 34);
    std::vector<float> fused(static_cast<size_t>(tokens * column)), alone(fused.size());
    gemm(kernels(), x.data(), tokens, k, together, fused.data(), column, scratch, pool);
    for (const GemmWeight& weight : together)
      gemm(kernels(), x.data(), tokens, k, {&weight, 1}, alone.data(), column, scratch, pool);
    EXPECT_EQ(fused, alone);
  }
}

TEST_P(Gemm, ThreadCountsGiveTheSameBits) {
  const int64_t k = 400, n = 131;
  const Weight weight(WeightType::kBF16, n, k, 41);
  const GemmWeight operand = {.type = weight.type, .data = weight.data(), .n = n};
  for (const int64_t tokens : {1, 3, 100}) {
    const std::vector<float> x = random_floats(static_cast<size_t>(tokens * k), 42);
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2, 4, 7}) {
      ThreadPool pool(threads);
      Scratch scratch;
      results.emplace_back(static_cast<size_t>(tokens * n));
      gemm(kernels(), x.data(), tokens, k, {&operand, 1}, results.back().data(), n, scratch, pool);
      EXPECT_EQ(results.back(), results.front()) << threads << " threads, " << tokens << " tokens";
    }
  }
}

// A token's outputs do not depend on the batch around it, beyond the one switch at kGemvTokens.
TEST_P(Gemm, TokensDoNotDependOnTheBatch) {
  const int64_t k = 210, n = 37;
  const Weight weight(WeightType::kF32, n, k, 51);
  const GemmWeight operand = {.data = weight.data(), .n = n};
  const std::vector<float> x = random_floats(static_cast<size_t>(40 * k), 52);
  ThreadPool pool(1);
  Scratch scratch;
  const auto first_token = [&](int64_t tokens) {
    std::vector<float> y(static_cast<size_t>(tokens * n));
    gemm(kernels(), x.data(), tokens, k, {&operand, 1}, y.data(), n, scratch, pool);
    y.resize(static_cast<size_t>(n));
    return y;
  };
  for (int64_t tokens = 2; tokens <= kGemvTokens; ++tokens)
    EXPECT_EQ(first_token(tokens), first_token(1)) << tokens;
  for (const int64_t tokens : {6, 7, 12, 13, 24, 40})
    EXPECT_EQ(first_token(tokens), first_token(kGemvTokens + 1)) << tokens;
}

TEST_P(Gemm, NoTokensIsNothing) {
  ThreadPool pool(1);
  Scratch scratch;
  const Weight weight(WeightType::kF32, 3, 4, 61);
  const GemmWeight operand = {.data = weight.data(), .n = 3};
  gemm(kernels(), nullptr, 0, 4, {&operand, 1}, nullptr, 3, scratch, pool);
}

NIBBLE_FOR_EVERY_PATH(Gemm);

}  // namespace
}  // namespace nibble::testing
