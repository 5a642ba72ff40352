// Attention on every CPU path against the definition in double precision.
#include <algorithm>

#include "cache_row_reading.h"
#include "kernel_cases.h"
#include "kernels/attention.h"

namespace nibble::testing {
namespace {

struct CacheTypes {
  CacheType keys, values;
};

constexpr CacheTypes kF32 = {CacheType::kF32, CacheType::kF32};
constexpr CacheTypes kAllTypes[] = {kF32,
                                    {CacheType::kF16, CacheType::kF16},
                                    {CacheType::kQ8, CacheType::kQ8},
                                    {CacheType::kQ4, CacheType::kQ4},
                                    {CacheType::kQ8, CacheType::kQ4},
                                    {CacheType::kF16, CacheType::kQ8}};

struct Case {
  int64_t heads, kv_heads, head_dim;
  int64_t first_position, tokens;
  int64_t window;
};

// Keys and values of one sequence as a cache keeps them: tiles in arbitrary order, bytes that mean NaN or
// nothing of use wherever nothing was written. What the stored rows stand for is read by cache_value().
class Keys {
 public:
  Keys(const Case& c, CacheTypes types, uint32_t seed) : c_(c), types_(types) {
    const int64_t positions = c.first_position + c.tokens;
    tiles_ = (positions + kKeyTile - 1) / kKeyTile;
    keys_ = random_floats(static_cast<size_t>(c.kv_heads * positions * c.head_dim), seed);
    values_ = random_floats(keys_.size(), seed + 1);
    store(types.keys, keys_, &stored_keys_, &key_pointers_);
    store(types.values, values_, &stored_values_, &value_pointers_);
  }
  double key(int64_t head, int64_t position, int64_t i) const { return keys_[index(head, position, i)]; }
  double value(int64_t head, int64_t position, int64_t i) const { return values_[index(head, position, i)]; }
  CacheTypes types() const { return types_; }
  const void* const* key_tiles() const { return key_pointers_.data(); }
  const void* const* value_tiles() const { return value_pointers_.data(); }
  int64_t tiles() const { return tiles_; }

 private:
  size_t index(int64_t head, int64_t position, int64_t i) const {
    return static_cast<size_t>((head * (c_.first_position + c_.tokens) + position) * c_.head_dim + i);
  }
  void store(CacheType type, std::vector<float>& values, std::vector<char>* bytes,
             std::vector<const void*>* pointers) {
    const int64_t row_bytes = expected_row_bytes(type, c_.head_dim), tile_bytes = kKeyTile * row_bytes;
    bytes->assign(static_cast<size_t>(c_.kv_heads * tiles_ * tile_bytes), '\xff');
    for (int64_t head = 0; head < c_.kv_heads; ++head) {
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        char* start = bytes->data() + (head * tiles_ + (tiles_ - 1 - tile)) * tile_bytes;
        pointers->push_back(start);
        for (int64_t j = 0; j < kKeyTile && tile * kKeyTile + j < c_.first_position + c_.tokens; ++j) {
          float* row = &values[index(head, tile * kKeyTile + j, 0)];
          float_kernels().store_cache_row(type, row, c_.head_dim, start + j * row_bytes);
          for (int64_t i = 0; i < c_.head_dim; ++i) {
            row[i] = cache_value(type, start + j * row_bytes, c_.head_dim, i);
          }
        }
      }
    }
  }

  Case c_;
  CacheTypes types_;
  int64_t tiles_ = 0;
  std::vector<float> keys_, values_;
  std::vector<char> stored_keys_, stored_values_;
  std::vector<const void*> key_pointers_, value_pointers_;
};

AttentionShape shape_of(const Case& c) {
  return {.heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .window = c.window,
          .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim))),
          .query_stride = c.heads * c.head_dim + 5,
          .out_stride = c.heads * c.head_dim + 2};
}

std::vector<double> expected_output(const Case& c, const AttentionShape& shape,
                                    const std::vector<float>& query, const Keys& keys, int64_t token,
                                    int64_t head) {
  const int64_t position = c.first_position + token, kv_head = head / (c.heads / c.kv_heads);
  const int64_t start = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
  std::vector<double> scores;
  for (int64_t j = start; j <= position; ++j) {
    double score = 0;
    for (int64_t i = 0; i < c.head_dim; ++i) {
      score += query[static_cast<size_t>(token * shape.query_stride + head * c.head_dim + i)] *
               keys.key(kv_head, j, i);
    }
    scores.push_back(score * shape.scale);
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) score = std::exp(score - largest), sum += score;
  std::vector<double> out(static_cast<size_t>(c.head_dim));
  for (size_t j = 0; j < scores.size(); ++j) {
    for (int64_t i = 0; i < c.head_dim; ++i) {
      out[static_cast<size_t>(i)] +=
          scores[j] / sum * keys.value(kv_head, start + static_cast<int64_t>(j), i);
    }
  }
  return out;
}

class Attention : public EveryPath {
 protected:
  std::vector<float> run(const Case& c, const std::vector<float>& query, const Keys& keys, int threads) {
    const AttentionShape shape = shape_of(c);
    std::vector<float> out(static_cast<size_t>(c.tokens * shape.out_stride), kGuard);
    const AttentionSpan span = {.query = query.data(),
                                .out = out.data(),
                                .tokens = c.tokens,
                                .first_position = c.first_position,
                                .key_type = keys.types().keys,
                                .value_type = keys.types().values,
                                .key_tiles = keys.key_tiles(),
                                .value_tiles = keys.value_tiles(),
                                .tiles = keys.tiles()};
    ThreadPool pool(threads);
    Scratch scratch;
    attention(kernels(), shape, {&span, 1}, scratch, pool);
    return out;
  }
};

constexpr Case kCases[] = {
    {1, 1, 8, 0, 1, 0},       // the first token sees itself
    {4, 2, 16, 0, 24, 0},     // a prompt within one tile
    {7, 7, 8, 0, 65, 0},      // one key beyond a tile
    {9, 3, 64, 0, 200, 0},    // several query blocks
    {3, 1, 40, 60, 9, 0},     // a chunk that crosses a tile
    {8, 1, 32, 130, 1, 0},    // one token, many heads of a group
    {6, 2, 128, 511, 1, 0},   // one token, several parts of keys
    {4, 2, 16, 0, 100, 32},   // a window
    {4, 2, 16, 300, 70, 5},   // a window shorter than the chunk
    {4, 2, 16, 700, 1, 300},  // a window that begins within a tile
    {4, 4, 16, 700, 1, 1},    // a token that sees only itself
    {2, 1, 264, 70, 3, 0},    // a head larger than a depth block
    {5, 5, 10, 3, 14, 0},     // a head size of no vector
    {4, 2, 56, 150, 1, 90},   // no multiple of a cache row's groups, a window
    {3, 3, 56, 40, 70, 33},  {2, 2, 258, 130, 1, 0},
};

TEST_P(Attention, MatchesTheDefinition) {
  for (const Case& c : kCases) {
    for (const CacheTypes& types : kAllTypes) {
      const AttentionShape shape = shape_of(c);
      const Keys keys(c, types, 71);
      const std::vector<float> query =
          random_floats(static_cast<size_t>(c.tokens * shape.query_stride), 73, 2.0f);
      const std::vector<float> out = run(c, query, keys, 2);
      const std::string where =
          format_text("{} heads {}/{} of {}, {} tokens from {}, window {}, types {} and {}", kernels().name,
                      c.heads, c.kv_heads, c.head_dim, c.tokens, c.first_position, c.window,
                      static_cast<int>(types.keys), static_cast<int>(types.values));
      for (int64_t t = 0; t < c.tokens; ++t) {
        for (int64_t h = 0; h < c.heads; ++h) {
          const std::vector<double> expected = expected_output(c, shape, query, keys, t, h);
          for (int64_t i = 0; i < c.head_dim; ++i) {
            expect_near(out[static_cast<size_t>(t * shape.out_stride + h * c.head_dim + i)],
                        expected[static_cast<size_t>(i)], 1e-5, where);
          }
        }
        for (int64_t i = c.heads * c.head_dim; i < shape.out_stride; ++i) {
          ASSERT_EQ(out[static_cast<size_t>(t * shape.out_stride + i)], kGuard) << where;
        }
      }
    }
  }
}

TEST_P(Attention, ThreadCountsGiveTheSameBits) {
  for (const Case& c : {Case{9, 3, 64, 0, 150, 0}, Case{6, 2, 128, 700, 1, 0}, Case{4, 2, 16, 90, 80, 30}}) {
    for (const CacheTypes& types : kAllTypes) {
      const Keys keys(c, types, 81);
      const std::vector<float> query =
          random_floats(static_cast<size_t>(c.tokens * shape_of(c).query_stride), 83);
      const std::vector<float> one = run(c, query, keys, 1);
      for (const int threads : {2, 4}) EXPECT_EQ(run(c, query, keys, threads), one);
    }
  }
}

// Scores far apart: nothing overflows, and the largest key wins alone.
TEST_P(Attention, HugeScores) {
  const Case c = {1, 1, 16, 100, 2, 0};
  const Keys keys(c, kF32, 91);
  std::vector<float> query =
      random_floats(static_cast<size_t>(c.tokens * shape_of(c).query_stride), 93, 1e4f);
  const std::vector<float> out = run(c, query, keys, 1);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const std::vector<double> expected = expected_output(c, shape_of(c), query, keys, t, 0);
    for (int64_t i = 0; i < c.head_dim; ++i) {
      expect_near(out[static_cast<size_t>(t * shape_of(c).out_stride + i)], expected[static_cast<size_t>(i)],
                  1e-3, "huge");
    }
  }
}

NIBBLE_FOR_EVERY_PATH(Attention);

}  // namespace
}  // namespace nibble::testing
