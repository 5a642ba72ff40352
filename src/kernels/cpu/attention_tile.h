// Attention of one query block over tiles of keys with a running softmax (the scheme of FlashAttention), and
// of one token over a part of the keys. Included only by float_kernels.isa.cc.
#pragma once

#include "kernels/cpu/cache_row_tile.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm_tile.h"

namespace nibble::NIBBLE_ISA {
namespace {

constexpr int64_t kScoreStride = kKeyTile + 16;
constexpr float kMinusInfinity = -__builtin_inff();

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

inline int64_t blocks_of(int64_t depth) { return (depth + kGemmDepth - 1) / kGemmDepth; }

// Row stride of packed queries: one of the strides that tile() is compiled for.
inline int64_t query_row_stride(int64_t head_dim) {
  return head_dim <= 64 ? 80 : head_dim <= 128 ? 144 : kGemmRowStride;
}

int64_t attention_scratch(int64_t rows, int64_t head_dim) {
  const int64_t padded = round_up(rows, kTileRows);
  const int64_t wide = round_up(head_dim, kTileColumns);
  return padded * blocks_of(head_dim) * query_row_stride(head_dim) + padded * kScoreStride + padded * wide +
         kKeyTile * round_up(head_dim, 16) + kKeyTile * wide + 2 * round_up(padded, 16);
}

template <int kStride>
void scores_of_tile(const float* queries, int64_t rows, int64_t head_dim, const float* key_panel,
                    int64_t keys, float* scores) {
  const int64_t blocks = blocks_of(head_dim);
  for (int64_t r = 0; r < rows; r += kTileRows) {
    for (int64_t first = 0; first < keys; first += kTileColumns) {
      const int64_t columns = keys - first < kTileColumns ? keys - first : kTileColumns;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = block * kGemmDepth;
        const int64_t depth = head_dim - begin < kGemmDepth ? head_dim - begin : kGemmDepth;
        const float* a = queries + (r / kTileRows * blocks + block) * kTileRows * kStride;
        const TileShape shape = {.depth = depth,
                                 .start = block == 0 ? Start::kZero : Start::kContinue,
                                 .row = nullptr,
                                 .c_stride = kScoreStride,
                                 .rows = rows - r < kTileRows ? rows - r : kTileRows,
                                 .columns = columns};
        tile_rows<kStride>(a, key_panel + first * head_dim + begin * kTileColumns,
                           scores + r * kScoreStride + first, shape, nullptr);
      }
    }
  }
}

// A panel of one tile of keys, for scores_of_tile().
template <CacheType kType>
void pack_keys(const void* tile, int64_t keys, int64_t head_dim, float* rows, float* panel) {
  const float* floats = static_cast<const float*>(tile);
  if constexpr (kType == CacheType::kQ8 || kType == CacheType::kQ4) {
    for (int64_t j = 0; j < keys; ++j) {
      const CacheRow<kType> row(tile, j, head_dim);
      int64_t i = 0;
      for (; i + kLanes <= head_dim; i += kLanes) store(rows + j * head_dim + i, row.load(i));
      if (i < head_dim) {
        store_partial(rows + j * head_dim + i, row.load_partial(i, head_dim - i), head_dim - i);
      }
    }
    floats = rows;
  }
  for (int64_t first = 0; first < keys; first += kTileColumns) {
    const int64_t columns = keys - first < kTileColumns ? keys - first : kTileColumns;
    if constexpr (kType == CacheType::kF16) {
      pack_panel(static_cast<const F16*>(tile) + first * head_dim, head_dim, columns, head_dim,
                 panel + first * head_dim);
    } else {
      pack_panel(floats + first * head_dim, head_dim, columns, head_dim, panel + first * head_dim);
    }
  }
}

// A panel of one tile of values: [round_up(head_dim, kTileColumns) / kTileColumns][kKeyTile][kTileColumns].
template <CacheType kType>
void pack_values(const void* tile, int64_t keys, int64_t head_dim, float* panel) {
  for (int64_t j = 0; j < keys; ++j) {
    const CacheRow<kType> row(tile, j, head_dim);
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      store(panel + i / kTileColumns * kTileColumns * kKeyTile + j * kTileColumns + i % kTileColumns,
            head_dim - i < kLanes ? row.load_partial(i, head_dim - i) : row.load(i));
    }
  }
}

void pack_keys(CacheType type, const void* tile, int64_t keys, int64_t head_dim, float* rows, float* panel) {
  switch (type) {
    case CacheType::kF32:
      return pack_keys<CacheType::kF32>(tile, keys, head_dim, rows, panel);
    case CacheType::kF16:
      return pack_keys<CacheType::kF16>(tile, keys, head_dim, rows, panel);
    case CacheType::kQ8:
      return pack_keys<CacheType::kQ8>(tile, keys, head_dim, rows, panel);
    case CacheType::kQ4:
      return pack_keys<CacheType::kQ4>(tile, keys, head_dim, rows, panel);
  }
}

void pack_values(CacheType type, const void* tile, int64_t keys, int64_t head_dim, float* panel) {
  switch (type) {
    case CacheType::kF32:
      return pack_values<CacheType::kF32>(tile, keys, head_dim, panel);
    case CacheType::kF16:
      return pack_values<CacheType::kF16>(tile, keys, head_dim, panel);
    case CacheType::kQ8:
      return pack_values<CacheType::kQ8>(tile, keys, head_dim, panel);
    case CacheType::kQ4:
      return pack_values<CacheType::kQ4>(tile, keys, head_dim, panel);
  }
}

void attention_block(const AttentionBlock& in) {
  const int64_t rows = in.tokens * in.group, head_dim = in.head_dim;
  const int64_t padded = round_up(rows, kTileRows), wide = round_up(head_dim, kTileColumns);
  const int64_t blocks = blocks_of(head_dim), query_stride = query_row_stride(head_dim);
  float* queries = in.scratch;
  float* scores = queries + padded * blocks * query_stride;
  float* output = scores + padded * kScoreStride;  // [padded, wide]
  float* key_panel = output + padded * wide;       // [kKeyTile / kTileColumns][head_dim][kTileColumns]
  float* value_panel =
      key_panel + kKeyTile * round_up(head_dim, 16);  // [wide / kTileColumns][kKeyTile][kTileColumns]
  float* largest = value_panel + kKeyTile * wide;
  float* sums = largest + round_up(padded, 16);

  for (int64_t r = 0; r < padded; ++r) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = block * kGemmDepth;
      const int64_t depth = head_dim - begin < kGemmDepth ? head_dim - begin : kGemmDepth;
      float* to = queries + ((r / kTileRows * blocks + block) * kTileRows + r % kTileRows) * query_stride;
      if (r < rows) {
        const float* from = in.query + r / in.group * in.query_stride + r % in.group * head_dim + begin;
        for (int64_t i = 0; i < depth; ++i) to[i] = from[i] * in.scale;
      } else {
        for (int64_t i = 0; i < depth; ++i) to[i] = 0.0f;
      }
    }
    largest[r] = kMinusInfinity;
    sums[r] = 0.0f;
  }
  for (int64_t i = 0; i < padded * wide; ++i) output[i] = 0.0f;
  for (int64_t i = 0; i < padded * kScoreStride; ++i) scores[i] = 0.0f;

  const int64_t end = in.first_position + in.tokens;  // keys the last token sees
  int64_t begin = 0;
  if (in.window > 0 && in.first_position - in.window + 1 > 0) begin = in.first_position - in.window + 1;
  for (int64_t key_tile = begin / kKeyTile; key_tile * kKeyTile < end; ++key_tile) {
    const int64_t base = key_tile * kKeyTile;
    const int64_t keys = end - base < kKeyTile ? end - base : kKeyTile;
    // The place of the values holds rows of quantized keys before.
    pack_keys(in.key_type, in.key_tiles[key_tile], keys, head_dim, value_panel, key_panel);
    pack_values(in.value_type, in.value_tiles[key_tile], keys, head_dim, value_panel);
    if (query_stride == 80) {
      scores_of_tile<80>(queries, rows, head_dim, key_panel, keys, scores);
    } else if (query_stride == 144) {
      scores_of_tile<144>(queries, rows, head_dim, key_panel, keys, scores);
    } else {
      scores_of_tile<kGemmRowStride>(queries, rows, head_dim, key_panel, keys, scores);
    }

    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = in.first_position + r / in.group;
      int64_t low = in.window > 0 ? position - in.window + 1 - base : 0;
      if (low < 0) low = 0;
      const int64_t high = position + 1 - base < keys ? position + 1 - base : keys;  // seen: [low, high)
      float* row = scores + r * kScoreStride;
      if (high <= low) {
        for (int64_t j = 0; j < keys; ++j) row[j] = 0.0f;
        continue;
      }
      const float tile_largest = largest_of(row + low, high - low);
      if (tile_largest > largest[r]) {
        const float keep = reduce_max(exp(set1(largest[r] - tile_largest)));
        largest[r] = tile_largest;
        sums[r] *= keep;
        scale_all(output + r * wide, head_dim, keep);
      }
      for (int64_t j = 0; j < low; ++j) row[j] = 0.0f;
      sums[r] += exponentials(row + low, high - low, largest[r]);
      for (int64_t j = high; j < keys; ++j) row[j] = 0.0f;
    }

    for (int64_t r = 0; r < rows; r += kTileRows) {
      for (int64_t first = 0; first < head_dim; first += kTileColumns) {
        const TileShape shape = {
            .depth = keys,
            .start = Start::kContinue,
            .row = nullptr,
            .c_stride = wide,
            .rows = rows - r < kTileRows ? rows - r : kTileRows,
            .columns = head_dim - first < kTileColumns ? head_dim - first : kTileColumns};
        tile_rows<kScoreStride>(scores + r * kScoreStride, value_panel + first * kKeyTile,
                                output + r * wide + first, shape, nullptr);
      }
    }
  }

  for (int64_t r = 0; r < rows; ++r) {
    float* to = in.out + r / in.group * in.out_stride + r % in.group * head_dim;
    const float factor = 1.0f / sums[r];
    const float* from = output + r * wide;
    for (int64_t i = 0; i < head_dim; ++i) to[i] = from[i] * factor;
  }
}

// Scores of one key for kHeads heads.
template <int kHeads, typename Row>
void scores_of_key(const float* query, const Row& key, int64_t head_dim, float scale, float* scores,
                   int64_t stride) {
  Vec sums[kHeads];
  for (int h = 0; h < kHeads; ++h) sums[h] = zero();
  int64_t i = 0;
  for (; i + kLanes <= head_dim; i += kLanes) {
    const Vec k = key.load(i);
    for (int h = 0; h < kHeads; ++h) sums[h] = fma(k, load(query + h * head_dim + i), sums[h]);
  }
  if (i < head_dim) {
    const Vec k = key.load_partial(i, head_dim - i);
    for (int h = 0; h < kHeads; ++h) {
      sums[h] = fma(k, load_partial(query + h * head_dim + i, head_dim - i), sums[h]);
    }
  }
  for (int h = 0; h < kHeads; ++h) scores[h * stride] = reduce_add(sums[h]) * scale;
}

// One vector of each of kHeads weighted sums of values.
template <int kHeads, CacheType kType>
void weighted_values(const AttentionPart& in, int64_t head, int64_t column, int64_t count) {
  const int64_t span = in.end - in.begin;
  const float* weights = in.scores + head * span;
  Vec sums[kHeads];
  for (int h = 0; h < kHeads; ++h) sums[h] = zero();
  for (int64_t position = in.begin; position < in.end; ++position) {
    const CacheRow<kType> value(in.value_tiles[position / kKeyTile], position % kKeyTile, in.head_dim);
    const Vec v = count == kLanes ? value.load(column) : value.load_partial(column, count);
    for (int h = 0; h < kHeads; ++h) sums[h] = fma(set1(weights[h * span + position - in.begin]), v, sums[h]);
  }
  for (int h = 0; h < kHeads; ++h) {
    float* to = in.weighted + (head + h) * in.head_dim + column;
    if (count == kLanes) {
      store(to, sums[h]);
    } else {
      store_partial(to, sums[h], count);
    }
  }
}

template <CacheType kType>
void part_scores(const AttentionPart& in) {
  const int64_t span = in.end - in.begin;
  for (int64_t position = in.begin; position < in.end; ++position) {
    const CacheRow<kType> key(in.key_tiles[position / kKeyTile], position % kKeyTile, in.head_dim);
    int64_t h = 0;
    for (; h + 4 <= in.group; h += 4) {
      scores_of_key<4>(in.query + h * in.head_dim, key, in.head_dim, in.scale,
                       in.scores + h * span + position - in.begin, span);
    }
    const float* query = in.query + h * in.head_dim;
    float* scores = in.scores + h * span + position - in.begin;
    switch (in.group - h) {
      case 3:
        scores_of_key<3>(query, key, in.head_dim, in.scale, scores, span);
        break;
      case 2:
        scores_of_key<2>(query, key, in.head_dim, in.scale, scores, span);
        break;
      case 1:
        scores_of_key<1>(query, key, in.head_dim, in.scale, scores, span);
        break;
      default:
        break;
    }
  }
}

template <CacheType kType>
void part_values(const AttentionPart& in) {
  for (int64_t column = 0; column < in.head_dim; column += kLanes) {
    const int64_t count = in.head_dim - column < kLanes ? in.head_dim - column : kLanes;
    int64_t h = 0;
    for (; h + 4 <= in.group; h += 4) weighted_values<4, kType>(in, h, column, count);
    switch (in.group - h) {
      case 3:
        weighted_values<3, kType>(in, h, column, count);
        break;
      case 2:
        weighted_values<2, kType>(in, h, column, count);
        break;
      case 1:
        weighted_values<1, kType>(in, h, column, count);
        break;
      default:
        break;
    }
  }
}

void attention_part(const AttentionPart& in) {
  const int64_t span = in.end - in.begin;
  switch (in.key_type) {
    case CacheType::kF32:
      part_scores<CacheType::kF32>(in);
      break;
    case CacheType::kF16:
      part_scores<CacheType::kF16>(in);
      break;
    case CacheType::kQ8:
      part_scores<CacheType::kQ8>(in);
      break;
    case CacheType::kQ4:
      part_scores<CacheType::kQ4>(in);
      break;
  }
  for (int64_t h = 0; h < in.group; ++h) {
    in.largest[h] = largest_of(in.scores + h * span, span);
    in.sum[h] = exponentials(in.scores + h * span, span, in.largest[h]);
  }
  switch (in.value_type) {
    case CacheType::kF32:
      return part_values<CacheType::kF32>(in);
    case CacheType::kF16:
      return part_values<CacheType::kF16>(in);
    case CacheType::kQ8:
      return part_values<CacheType::kQ8>(in);
    case CacheType::kQ4:
      return part_values<CacheType::kQ4>(in);
  }
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA
