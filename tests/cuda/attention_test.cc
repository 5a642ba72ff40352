// Attention, rotation and the cache on the GPU against plain loops in FP64, at shapes that end within pages
// and tiles. Skipped where there is no GPU.
#include "backend/cuda/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "base/half.h"
#include "cuda/device_arrays.h"
#include "kernels/cache_row.h"

namespace nibble::cuda {
namespace {

using testing::DeviceArray;
using testing::GpuTest;
using testing::random_halves;

// A cache whose pages lie in another order than their positions, and more of them than are used.
class TestCache {
 public:
  TestCache(const HeadsShape& shape, int positions)
      : shape_(shape),
        pages_((positions + kPagePositions - 1) / kPagePositions + 3),
        table_(order(pages_)),
        keys_(std::vector<uint16_t>(size(), 0)),
        values_(std::vector<uint16_t>(size(), 0)),
        key_codes_(std::vector<uint8_t>(size(), 0)),
        value_codes_(std::vector<uint8_t>(size(), 0)),
        key_scales_(std::vector<uint16_t>(scales(), 0)),
        value_scales_(std::vector<uint16_t>(scales(), 0)) {}

  LayerCache layer() const {
    return {reinterpret_cast<__half*>(keys_.device()), reinterpret_cast<__half*>(values_.device()),
            table_.device(), shape_.kv_heads, shape_.head_dim};
  }
  LayerCache int8_layer() const {
    return {.pages = table_.device(),
            .kv_heads = shape_.kv_heads,
            .head_dim = shape_.head_dim,
            .key_codes = key_codes_.device(),
            .value_codes = value_codes_.device(),
            .key_scales = reinterpret_cast<__half*>(key_scales_.device()),
            .value_scales = reinterpret_cast<__half*>(value_scales_.device())};
  }
  int pages() const { return pages_; }
  int groups() const { return (shape_.head_dim + kScaleChannels - 1) / kScaleChannels; }
  size_t key_scale_at(int position, int head, int group) const {
    return static_cast<size_t>(scale_offset(position, head) + position % kPagePositions * groups() + group);
  }
  size_t value_scale_at(int position, int head, int group) const {
    return static_cast<size_t>(scale_offset(position, head) + group * kPagePositions +
                               position % kPagePositions);
  }
  // Random codes and scales, and the FP16 numbers that they are.
  void fill_codes(int positions, std::mt19937& generator) {
    std::uniform_real_distribution<float> scale(0.002f, 0.02f);
    for (int position = 0; position < positions; ++position) {
      for (int head = 0; head < shape_.kv_heads; ++head) {
        for (int d = 0; d < shape_.head_dim; ++d) {
          const size_t key_scale = key_scale_at(position, head, d / kScaleChannels),
                       value_scale = value_scale_at(position, head, d / kScaleChannels);
          if (d % kScaleChannels == 0) {
            key_scales_.host()[key_scale] = float_to_f16(scale(generator));
            value_scales_.host()[value_scale] = float_to_f16(scale(generator));
          }
          const auto fill = [&](DeviceArray<uint8_t>& codes, DeviceArray<uint16_t>& numbers, size_t at,
                                uint16_t scale_bits) {
            const int code = static_cast<int>(generator() % 255) + 1;
            codes.host()[at] = static_cast<uint8_t>(code);
            numbers.host()[at] = float_to_f16(static_cast<float>(code - 128) * f16_to_float(scale_bits));
          };
          fill(key_codes_, keys_, key_at(position, head, d), key_scales_.host()[key_scale]);
          fill(value_codes_, values_, value_at(position, head, d), value_scales_.host()[value_scale]);
        }
      }
    }
    key_codes_.upload();
    value_codes_.upload();
    key_scales_.upload();
    value_scales_.upload();
  }
  DeviceArray<uint8_t>& key_codes() { return key_codes_; }
  DeviceArray<uint8_t>& value_codes() { return value_codes_; }
  DeviceArray<uint16_t>& key_scales() { return key_scales_; }
  DeviceArray<uint16_t>& value_scales() { return value_scales_; }
  size_t key_at(int position, int head, int d) const {
    return static_cast<size_t>(offset(position, head) + position % kPagePositions * shape_.head_dim + d);
  }
  size_t value_at(int position, int head, int d) const {
    return static_cast<size_t>(offset(position, head) + d * kPagePositions + position % kPagePositions);
  }
  DeviceArray<uint16_t>& keys() { return keys_; }
  DeviceArray<uint16_t>& values() { return values_; }

 private:
  static std::vector<int32_t> order(int pages) {
    std::vector<int32_t> table(static_cast<size_t>(pages));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(3));
    return table;
  }
  size_t size() const {
    return static_cast<size_t>(pages_) * shape_.kv_heads * kPagePositions * shape_.head_dim;
  }
  int64_t offset(int position, int head) const {
    return layer_offset(table_.host()[static_cast<size_t>(position / kPagePositions)], head);
  }
  int64_t layer_offset(int page, int head) const {
    return (int64_t{page} * shape_.kv_heads + head) * kPagePositions * shape_.head_dim;
  }
  size_t scales() const { return static_cast<size_t>(pages_) * shape_.kv_heads * kPagePositions * groups(); }
  int64_t scale_offset(int position, int head) const {
    const int64_t page = table_.host()[static_cast<size_t>(position / kPagePositions)];
    return (page * shape_.kv_heads + head) * kPagePositions * groups();
  }
  HeadsShape shape_;
  int pages_;
  DeviceArray<int32_t> table_;
  DeviceArray<uint16_t> keys_, values_;
  DeviceArray<uint8_t> key_codes_, value_codes_;
  DeviceArray<uint16_t> key_scales_, value_scales_;
};

struct AttentionCase {
  int heads, kv_heads, head_dim, first, tokens, window = 0;
  bool int8 = false;
};

class Attention : public GpuTest, public ::testing::WithParamInterface<AttentionCase> {};

TEST_P(Attention, EqualsPlainLoops) {
  const AttentionCase& c = GetParam();
  const HeadsShape shape = {c.heads, c.kv_heads, c.head_dim};
  const Device device = open_device(0);
  const Stream stream;
  std::mt19937 generator(c.heads * 131 + c.tokens);
  const int positions = c.first + c.tokens;
  TestCache cache(shape, positions);
  if (c.int8) cache.fill_codes(positions, generator);
  for (int position = 0; position < positions && !c.int8; ++position) {
    for (int head = 0; head < c.kv_heads; ++head) {
      const auto key = random_halves(static_cast<size_t>(c.head_dim), generator),
                 value = random_halves(static_cast<size_t>(c.head_dim), generator);
      for (int d = 0; d < c.head_dim; ++d) {
        cache.keys().host()[cache.key_at(position, head, d)] = key[static_cast<size_t>(d)];
        cache.values().host()[cache.value_at(position, head, d)] = value[static_cast<size_t>(d)];
      }
    }
  }
  // Of a cache of codes the numbers are what it is compared with; on the device they are to be found out.
  if (!c.int8) {
    cache.keys().upload();
    cache.values().upload();
  }
  const DeviceArray<uint16_t> qkv(random_halves(static_cast<size_t>(c.tokens * shape.stride()), generator));
  const DeviceArray<int32_t> first({c.first});
  DeviceArray<uint16_t> out(
      std::vector<uint16_t>(static_cast<size_t>(c.tokens) * c.heads * c.head_dim, 0x7E00));
  const DeviceArray<uint8_t> workspace(
      std::vector<uint8_t>(attention_workspace_bytes(shape, device.multiprocessors), 0));
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  const AttentionProblem problem = {.shape = shape,
                                    .qkv = reinterpret_cast<const __half*>(qkv.device()),
                                    .out = reinterpret_cast<__half*>(out.device()),
                                    .tokens = c.tokens,
                                    .first_position = first.device(),
                                    .window = c.window,
                                    .scale = scale,
                                    .cache = c.int8 ? cache.int8_layer() : cache.layer(),
                                    .expanded = c.int8 ? cache.layer() : LayerCache{},
                                    .table_pages = cache.pages()};
  const CacheMaps maps = make_cache_maps(cache.layer(), cache.pages());
  attention(problem, maps, workspace.device(), device.multiprocessors, stream.get());
  attention(problem, maps, workspace.device(), device.multiprocessors,
            stream.get());  // the workspace serves twice
  stream.synchronize();
  out.download();

  for (int t = 0; t < c.tokens; ++t) {
    for (int head = 0; head < c.heads; ++head) {
      const int kv_head = head / (c.heads / c.kv_heads), position = c.first + t;
      const int begin = c.window > 0 ? std::max(0, position - c.window + 1) : 0;
      std::vector<double> weights;
      double largest = -INFINITY;
      for (int key = begin; key <= position; ++key) {
        double score = 0;
        for (int d = 0; d < c.head_dim; ++d) {
          score += double{f16_to_float(
                       qkv.host()[static_cast<size_t>(t * shape.stride() + head * c.head_dim + d)])} *
                   double{f16_to_float(cache.keys().host()[cache.key_at(key, kv_head, d)])};
        }
        weights.push_back(score * scale);
        largest = std::max(largest, weights.back());
      }
      double total = 0;
      for (double& weight : weights) total += weight = std::exp(weight - largest);
      for (int d = 0; d < c.head_dim; ++d) {
        double sum = 0, magnitude = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
          const double term =
              weights[i] / total *
              double{f16_to_float(
                  cache.values().host()[cache.value_at(begin + static_cast<int>(i), kv_head, d)])};
          sum += term;
          magnitude += std::fabs(term);
        }
        // Weights are rounded to F16, and so is the result.
        const double bound = 0x1p-10 * magnitude + 0x1p-10 * std::fabs(sum) + 2e-5;
        const auto at = static_cast<size_t>((t * c.heads + head) * c.head_dim + d);
        ASSERT_NEAR(f16_to_float(out.host()[at]), sum, bound)
            << "token " << t << " head " << head << " d " << d;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Attention,
    ::testing::Values(
        AttentionCase{4, 4, 128, 0, 1}, AttentionCase{4, 2, 128, 1000, 1}, AttentionCase{32, 8, 64, 2047, 1},
        AttentionCase{16, 1, 64, 300, 2}, AttentionCase{9, 3, 64, 62, 4}, AttentionCase{6, 2, 96, 517, 3},
        AttentionCase{4, 2, 32, 33, 1}, AttentionCase{8, 8, 128, 4000, 1},
        AttentionCase{8, 2, 128, 700, 2, 100}, AttentionCase{8, 2, 64, 31, 1, 5},
        AttentionCase{4, 2, 128, 0, 5}, AttentionCase{4, 2, 128, 0, 64}, AttentionCase{4, 2, 128, 0, 129},
        AttentionCase{2, 2, 128, 37, 300}, AttentionCase{3, 1, 64, 0, 400}, AttentionCase{4, 1, 64, 200, 77},
        AttentionCase{4, 2, 128, 0, 333, 50}, AttentionCase{4, 2, 64, 100, 333, 128},
        AttentionCase{4, 2, 16, 0, 50}, AttentionCase{2, 1, 80, 10, 37}, AttentionCase{2, 1, 256, 5, 20, 7},
        AttentionCase{2, 2, 16, 90, 1}, AttentionCase{2, 2, 32, 3, 40}));

INSTANTIATE_TEST_SUITE_P(
    EightBits, Attention,
    ::testing::Values(AttentionCase{4, 4, 128, 0, 1, 0, true}, AttentionCase{4, 2, 128, 1000, 1, 0, true},
                      AttentionCase{32, 8, 64, 2047, 1, 0, true}, AttentionCase{9, 3, 64, 62, 4, 0, true},
                      AttentionCase{8, 2, 128, 700, 2, 100, true}, AttentionCase{6, 2, 96, 517, 3, 0, true},
                      AttentionCase{4, 2, 128, 0, 64, 0, true}, AttentionCase{2, 2, 128, 37, 300, 0, true},
                      AttentionCase{4, 2, 64, 100, 333, 128, true}, AttentionCase{2, 1, 80, 10, 37, 0, true},
                      AttentionCase{2, 2, 16, 90, 1, 0, true}));

struct RotateCase {
  int heads, kv_heads, head_dim, first, tokens;
  bool interleaved = false, norm = false, rope = true, int8 = false;
};

class Rotate : public GpuTest, public ::testing::WithParamInterface<RotateCase> {};

TEST_P(Rotate, RotatesAndStores) {
  const RotateCase& c = GetParam();
  const HeadsShape shape = {c.heads, c.kv_heads, c.head_dim};
  open_device(0);
  const Stream stream;
  std::mt19937 generator(c.tokens);
  TestCache cache(shape, c.first + c.tokens);
  DeviceArray<uint16_t> qkv(random_halves(static_cast<size_t>(c.tokens * shape.stride()), generator));
  const std::vector<uint16_t> before = qkv.host();
  const DeviceArray<int32_t> first({c.first});
  const int half = c.head_dim / 2;
  std::vector<float> frequencies, norm;
  for (int i = 0; i < half; ++i)
    frequencies.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / c.head_dim)));
  for (int i = 0; i < c.head_dim; ++i) norm.push_back(0.5f + 0.01f * static_cast<float>(i));
  const DeviceArray<float> device_frequencies(frequencies), device_norm(norm);
  launch_rotate_and_store({.shape = shape,
                           .qkv = reinterpret_cast<__half*>(qkv.device()),
                           .tokens = c.tokens,
                           .first_position = first.device(),
                           .frequencies = c.rope ? device_frequencies.device() : nullptr,
                           .interleaved = c.interleaved,
                           .query_norm = c.norm ? device_norm.device() : nullptr,
                           .key_norm = c.norm ? device_norm.device() : nullptr,
                           .epsilon = 1e-5f,
                           .cache = c.int8 ? cache.int8_layer() : cache.layer()},
                          stream.get());
  stream.synchronize();
  qkv.download();
  if (c.int8) {
    for (DeviceArray<uint8_t>* codes : {&cache.key_codes(), &cache.value_codes()}) codes->download();
    for (DeviceArray<uint16_t>* scales : {&cache.key_scales(), &cache.value_scales()}) scales->download();
  }
  cache.keys().download();
  cache.values().download();

  for (int t = 0; t < c.tokens; ++t) {
    const uint16_t* const row = before.data() + t * shape.stride();
    for (int head = 0; head < c.heads + c.kv_heads; ++head) {
      std::vector<double> x(static_cast<size_t>(c.head_dim));
      double squares = 0;
      for (int d = 0; d < c.head_dim; ++d) {
        x[static_cast<size_t>(d)] = f16_to_float(row[head * c.head_dim + d]);
        squares += x[static_cast<size_t>(d)] * x[static_cast<size_t>(d)];
      }
      if (c.norm) {
        for (int d = 0; d < c.head_dim; ++d)
          x[static_cast<size_t>(d)] *= norm[static_cast<size_t>(d)] / std::sqrt(squares / c.head_dim + 1e-5);
      }
      if (c.rope) {
        for (int i = 0; i < half; ++i) {
          const auto a = static_cast<size_t>(c.interleaved ? 2 * i : i),
                     b = static_cast<size_t>(c.interleaved ? 2 * i + 1 : i + half);
          const double angle =
              static_cast<double>(static_cast<float>(c.first + t) * frequencies[static_cast<size_t>(i)]);
          const double low = x[a], high = x[b];
          x[a] = low * std::cos(angle) - high * std::sin(angle);
          x[b] = high * std::cos(angle) + low * std::sin(angle);
        }
      }
      if (c.int8 && head >= c.heads) {
        for (int d = 0; d < c.head_dim; ++d) {
          const int group = d / kScaleChannels * kScaleChannels;
          double largest = 0;
          for (int i = group; i < std::min(group + kScaleChannels, c.head_dim); ++i)
            largest = std::max(largest, std::fabs(x[static_cast<size_t>(i)]));
          const float scale = f16_to_float(
              cache.key_scales().host()[cache.key_scale_at(c.first + t, head - c.heads, d / kScaleChannels)]);
          ASSERT_NEAR(scale, largest / 127, 0x1p-10 * largest / 127 + 1e-7);
          const int code = cache.key_codes().host()[cache.key_at(c.first + t, head - c.heads, d)] - 128;
          ASSERT_NEAR(code, std::clamp(x[static_cast<size_t>(d)] / scale, -127.0, 127.0), 0.501)
              << t << " " << d;
        }
        continue;
      }
      for (int d = 0; d < c.head_dim; ++d) {
        const uint16_t got = head < c.heads
                                 ? qkv.host()[static_cast<size_t>(t * shape.stride() + head * c.head_dim + d)]
                                 : cache.keys().host()[cache.key_at(c.first + t, head - c.heads, d)];
        const double expected = x[static_cast<size_t>(d)];
        ASSERT_NEAR(f16_to_float(got), expected, 0x1p-10 * std::fabs(expected) + 2e-6)
            << "token " << t << " head " << head << " d " << d;
      }
    }
    for (int head = 0; head < c.kv_heads && c.int8; ++head) {
      std::vector<float> value;
      for (int d = 0; d < c.head_dim; ++d)
        value.push_back(f16_to_float(row[(c.heads + c.kv_heads + head) * c.head_dim + d]));
      // Bit for bit what the CPU's cache holds.
      std::vector<int8_t> stored(static_cast<size_t>(cache_row_bytes(CacheType::kQ8, c.head_dim)));
      float_kernels().store_cache_row(CacheType::kQ8, value.data(), c.head_dim, stored.data());
      for (int d = 0; d < c.head_dim; ++d) {
        ASSERT_EQ(cache.value_codes().host()[cache.value_at(c.first + t, head, d)] - 128,
                  stored[static_cast<size_t>(d)]);
        uint16_t scale = 0;
        std::memcpy(&scale, stored.data() + c.head_dim + d / kScaleChannels * 2, 2);
        ASSERT_EQ(cache.value_scales().host()[cache.value_scale_at(c.first + t, head, d / kScaleChannels)],
                  scale);
      }
    }
    for (int head = 0; head < c.kv_heads && !c.int8; ++head) {
      for (int d = 0; d < c.head_dim; ++d) {
        ASSERT_EQ(cache.values().host()[cache.value_at(c.first + t, head, d)],
                  row[(c.heads + c.kv_heads + head) * c.head_dim + d]);
      }
    }
  }
  // Nothing else was written: as many values other than zero as there should be at most.
  const auto written = std::count_if(cache.values().host().begin(), cache.values().host().end(),
                                     [](uint16_t bits) { return bits != 0; });
  EXPECT_LE(written, int64_t{c.tokens} * c.kv_heads * c.head_dim);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Rotate,
                         ::testing::Values(RotateCase{4, 2, 128, 0, 1}, RotateCase{4, 4, 64, 63, 3},
                                           RotateCase{9, 3, 64, 61, 200, false, true},
                                           RotateCase{2, 1, 16, 5, 70, true},
                                           RotateCase{2, 2, 256, 100, 65, true, true},
                                           RotateCase{3, 1, 96, 4000, 130},
                                           RotateCase{2, 1, 128, 1, 5, false, false, false},
                                           RotateCase{4, 2, 128, 0, 1, false, false, true, true},
                                           RotateCase{9, 3, 64, 61, 200, false, true, true, true},
                                           RotateCase{2, 1, 16, 5, 70, true, false, true, true},
                                           RotateCase{3, 1, 96, 127, 3, false, false, true, true}));

}  // namespace
}  // namespace nibble::cuda
