#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"

namespace nibble {
namespace {

// Query rows (tokens * heads of a group) of one block: large enough that converting a tile of keys costs
// little beside its products, small enough for the scores to stay in the second-level cache.
constexpr int64_t kBlockRows = 192;
// Keys that one task of a single token reads.
constexpr int64_t kPartKeys = 256;

void attend_block(const FloatKernels& kernels, const AttentionShape& shape, const AttentionSpan& span,
                  int64_t kv_head, int64_t first, int64_t tokens, float* scratch) {
  const int64_t group = shape.heads / shape.kv_heads;
  kernels.attention_block(
      {.query = span.query + first * shape.query_stride + kv_head * group * shape.head_dim,
       .query_stride = shape.query_stride,
       .out = span.out + first * shape.out_stride + kv_head * group * shape.head_dim,
       .out_stride = shape.out_stride,
       .head_dim = shape.head_dim,
       .group = group,
       .tokens = tokens,
       .first_position = span.first_position + first,
       .window = shape.window,
       .scale = shape.scale,
       .key_type = span.key_type,
       .value_type = span.value_type,
       .key_tiles = span.key_tiles + kv_head * span.tiles,
       .value_tiles = span.value_tiles + kv_head * span.tiles,
       .scratch = scratch});
}

// One part of the keys of a span of one token.
struct Part {
  const AttentionSpan* span;
  int64_t kv_head, begin, end;
  float *largest, *sum, *weighted;  // [group], [group], [group, head_dim]
};

// Joins the parts of one KV head, in order, into its outputs.
void merge_parts(const AttentionShape& shape, std::span<const Part> parts) {
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t h = 0; h < group; ++h) {
    float largest = parts[0].largest[h];
    for (const Part& part : parts) largest = std::max(largest, part.largest[h]);
    float* out = parts[0].span->out + (parts[0].kv_head * group + h) * shape.head_dim;
    std::fill_n(out, shape.head_dim, 0.0f);
    float sum = 0;
    for (const Part& part : parts) {
      const float weight = std::exp(part.largest[h] - largest);
      sum += weight * part.sum[h];
      const float* weighted = part.weighted + h * shape.head_dim;
      for (int64_t i = 0; i < shape.head_dim; ++i) out[i] += weight * weighted[i];
    }
    const float factor = 1.0f / sum;
    for (int64_t i = 0; i < shape.head_dim; ++i) out[i] *= factor;
  }
}

void attend_single_tokens(const FloatKernels& kernels, const AttentionShape& shape,
                          std::span<const AttentionSpan> spans, Scratch& scratch, ThreadPool& pool) {
  const int64_t group = shape.heads / shape.kv_heads;
  std::vector<Part> parts;
  std::vector<size_t> firsts;  // of each (span, KV head)
  for (const AttentionSpan& span : spans) {
    if (span.tokens != 1) continue;
    const int64_t end = span.first_position + 1;
    const int64_t start = shape.window > 0 ? std::max<int64_t>(0, end - shape.window) : 0;
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      firsts.push_back(parts.size());
      for (int64_t begin = start; begin < end;) {
        const int64_t stop = std::min(end, (begin / kPartKeys + 1) * kPartKeys);
        parts.push_back({&span, head, begin, stop, nullptr, nullptr, nullptr});
        begin = stop;
      }
    }
  }
  if (parts.empty()) return;
  firsts.push_back(parts.size());
  for (Part& part : parts) {
    part.largest = scratch.take<float>(static_cast<size_t>(group));
    part.sum = scratch.take<float>(static_cast<size_t>(group));
    part.weighted = scratch.take<float>(static_cast<size_t>(group * shape.head_dim));
  }
  float* scores = scratch.take<float>(static_cast<size_t>(pool.size() * group * kPartKeys));
  pool.parallel_for(static_cast<int64_t>(parts.size()), [&](int64_t task, int thread) {
    const Part& part = parts[static_cast<size_t>(task)];
    kernels.attention_part({.query = part.span->query + part.kv_head * group * shape.head_dim,
                            .head_dim = shape.head_dim,
                            .group = group,
                            .begin = part.begin,
                            .end = part.end,
                            .scale = shape.scale,
                            .key_type = part.span->key_type,
                            .value_type = part.span->value_type,
                            .key_tiles = part.span->key_tiles + part.kv_head * part.span->tiles,
                            .value_tiles = part.span->value_tiles + part.kv_head * part.span->tiles,
                            .scores = scores + thread * group * kPartKeys,
                            .largest = part.largest,
                            .sum = part.sum,
                            .weighted = part.weighted});
  });
  for (size_t i = 0; i + 1 < firsts.size(); ++i) {
    merge_parts(shape, std::span(parts).subspan(firsts[i], firsts[i + 1] - firsts[i]));
  }
}

}  // namespace

void attention(const FloatKernels& kernels, const AttentionShape& shape, std::span<const AttentionSpan> spans,
               Scratch& scratch, ThreadPool& pool) {
  NIBBLE_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0);
  const Scratch::Frame frame(scratch);
  attend_single_tokens(kernels, shape, spans, scratch, pool);

  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t block_tokens = std::max<int64_t>(1, kBlockRows / group);
  struct Block {
    const AttentionSpan* span;
    int64_t kv_head, first, tokens;
  };
  std::vector<Block> blocks;
  for (const AttentionSpan& span : spans) {
    if (span.tokens <= 1) continue;
    for (int64_t first = 0; first < span.tokens; first += block_tokens) {
      for (int64_t head = 0; head < shape.kv_heads; ++head) {
        blocks.push_back({&span, head, first, std::min(block_tokens, span.tokens - first)});
      }
    }
  }
  if (blocks.empty()) return;
  // Late blocks see the most keys: begin with them, so that the last ones to finish are short.
  std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) {
    return a.span->first_position + a.first > b.span->first_position + b.first;
  });
  const int64_t floats = (kernels.attention_scratch(block_tokens * group, shape.head_dim) + 15) / 16 * 16;
  float* memory = scratch.take<float>(static_cast<size_t>(pool.size() * floats));
  pool.parallel_for(static_cast<int64_t>(blocks.size()), [&](int64_t task, int thread) {
    const Block& block = blocks[static_cast<size_t>(task)];
    attend_block(kernels, shape, *block.span, block.kv_head, block.first, block.tokens,
                 memory + thread * floats);
  });
}

}  // namespace nibble
