#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "kernels/attention.h"
#include "models/layers.h"

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 16;  // tokens that one task of an element-wise step handles

class AttentionLayer final : public SubLayer {
 public:
  AttentionLayer(const ModelSpec& spec, AttentionParts parts, std::shared_ptr<const RopeTable> rope)
      : spec_(spec),
        parts_(std::move(parts)),
        rope_(std::move(rope)),
        groups_{parts_.query_key_value.get(), parts_.output.get()},
        head_hadamard_(choose_hadamard_shape(spec.head_dim)),
        kernels_(float_kernels()),
        shape_(attention_shape(spec, parts_.layer)) {}

  std::span<LinearGroup* const> groups() override { return groups_; }
  const AttentionParts* attention_parts() const override { return &parts_; }

  void prepare(ThreadPool& pool) override {
    for (LinearGroup* group : groups_) group->prepare(pool);
  }

  NormWeights* norm_before(const LinearGroup& group) override {
    return &group == parts_.query_key_value.get() ? &parts_.norm : nullptr;
  }

  // Attention mixes the values of a head over positions only; query heads share the values of their group.
  ChannelSource linear_before(const LinearGroup& group) override {
    if (&group != parts_.output.get()) return {};
    ChannelSource source = {.group = parts_.query_key_value.get()};
    while (source.group->slots()[source.slot].role != LinearRole::kValue) ++source.slot;
    const int64_t sharing = spec_.heads / spec_.kv_heads;
    for (int64_t channel = 0; channel < spec_.query_size(); ++channel) {
      const int64_t head = channel / spec_.head_dim / sharing;
      source.rows.push_back(head * spec_.head_dim + channel % spec_.head_dim);
    }
    return source;
  }

  bool forward(float* residual, const RunContext& context, const InputTap* tap) const override {
    Scratch& scratch = *context.scratch;
    const Scratch::Frame frame(scratch);
    const int64_t tokens = context.tokens;
    float* x = scratch.take<float>(static_cast<size_t>(tokens * spec_.hidden_size));
    apply_norm(spec_, parts_.norm, residual, tokens, spec_.hidden_size, x, *context.pool);
    if (tap != nullptr && !(*tap)(*parts_.query_key_value, x, tokens)) return false;

    float* qkv = scratch.take<float>(static_cast<size_t>(tokens * shape_.query_stride));
    parts_.query_key_value->forward(x, tokens, qkv, scratch, *context.pool);
    rotate_and_store(qkv, context);

    float* attended = scratch.take<float>(static_cast<size_t>(tokens * shape_.out_stride));
    attend(qkv, attended, context);
    if (tap != nullptr && !(*tap)(*parts_.output, attended, tokens)) return false;

    parts_.output->forward(attended, tokens, x, scratch, *context.pool);
    add_to_residual(x, tokens * spec_.hidden_size, residual, *context.pool);
    return true;
  }

 private:
  // Norm of each head and rotation of q and k in place, then keys and values into the caches.
  void rotate_and_store(float* qkv, const RunContext& context) const {
    struct Piece {
      const SequenceSpan* span;
      int64_t first, count;
    };
    std::vector<Piece> pieces;
    for (const SequenceSpan& span : context.sequences) {
      NIBBLE_CHECK(span.cache != nullptr && span.first_row >= 0 && span.count >= 0);
      NIBBLE_CHECK(span.first_row + span.count <= context.tokens);
      const int64_t end = span.first_position + span.count;
      if (end > span.cache->capacity()) {
        fail("position {} is beyond the cache of {} positions", end - 1, span.cache->capacity());
      }
      if (spec_.rope.enabled) rope_->reserve(end);
      for (int64_t first = 0; first < span.count; first += kRowsPerTask) {
        pieces.push_back({&span, first, std::min(kRowsPerTask, span.count - first)});
      }
    }
    const Scratch::Frame frame(*context.scratch);
    const int64_t floats = (head_hadamard_.scratch_floats() + 15) / 16 * 16;
    float* memory = context.scratch->take<float>(static_cast<size_t>(context.pool->size() * floats));
    context.pool->parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t task, int thread) {
      const Piece& piece = pieces[static_cast<size_t>(task)];
      float* first_row = qkv + (piece.span->first_row + piece.first) * shape_.query_stride;
      const int64_t first_position = piece.span->first_position + piece.first;
      for (int64_t t = 0; t < piece.count; ++t)
        rotate_token(first_row + t * shape_.query_stride, first_position + t);
      if (piece.span->cache->types().keys == CacheType::kQ4) {
        flatten(first_row, piece.count, memory + thread * floats);
      }
      const float* keys = first_row + spec_.query_size();
      piece.span->cache->write(parts_.layer, first_position, piece.count, keys, keys + spec_.kv_size(),
                               shape_.query_stride);
    });
  }

  // Heads of queries and keys of a piece for a cache of 4-bit keys.
  void flatten(float* qkv, int64_t tokens, float* memory) const {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t head = 0; head < spec_.heads + spec_.kv_heads; ++head) {
        head_hadamard_.apply(kernels_, qkv + t * shape_.query_stride + head * spec_.head_dim, memory);
      }
    }
  }

  void rotate_token(float* qkv, int64_t position) const {
    const float epsilon = static_cast<float>(spec_.norm_epsilon);
    for (int64_t head = 0; head < spec_.heads + spec_.kv_heads; ++head) {
      float* values = qkv + head * spec_.head_dim;
      if (spec_.query_key_norm) {
        const NormWeights& norm = head < spec_.heads ? parts_.query_norm : parts_.key_norm;
        kernels_.rms_norm(values, norm.weight.data<float>(), spec_.head_dim, epsilon, values);
      }
      if (spec_.rope.enabled) {
        kernels_.rope(values, rope_->cosines(position), rope_->sines(position), rope_->half(),
                      spec_.rope.interleaved);
      }
    }
  }

  void attend(const float* qkv, float* attended, const RunContext& context) const {
    Scratch& scratch = *context.scratch;
    const Scratch::Frame frame(scratch);
    std::vector<AttentionSpan> spans;
    spans.reserve(context.sequences.size());
    for (const SequenceSpan& sequence : context.sequences) {
      if (sequence.count == 0) continue;
      const int64_t tiles = (sequence.first_position + sequence.count + kKeyTile - 1) / kKeyTile;
      const auto count = static_cast<size_t>(tiles * spec_.kv_heads);
      const void** keys = scratch.take<const void*>(count);
      const void** values = scratch.take<const void*>(count);
      for (int64_t head = 0; head < spec_.kv_heads; ++head) {
        sequence.cache->tiles(parts_.layer, head, tiles, keys + head * tiles, values + head * tiles);
      }
      spans.push_back({.query = qkv + sequence.first_row * shape_.query_stride,
                       .out = attended + sequence.first_row * shape_.out_stride,
                       .tokens = sequence.count,
                       .first_position = sequence.first_position,
                       .key_type = sequence.cache->types().keys,
                       .value_type = sequence.cache->types().values,
                       .key_tiles = keys,
                       .value_tiles = values,
                       .tiles = tiles});
    }
    attention(kernels_, shape_, spans, scratch, *context.pool);
  }

  ModelSpec spec_;
  AttentionParts parts_;
  std::shared_ptr<const RopeTable> rope_;
  std::array<LinearGroup*, 2> groups_;
  // Spreads the large channels that keys have over their heads before 4 bits are to hold them; queries go
  // through the same, so the products stay what they were.
  Hadamard head_hadamard_;
  const FloatKernels& kernels_;
  AttentionShape shape_;
};

}  // namespace

AttentionShape attention_shape(const ModelSpec& spec, int64_t layer) {
  return {.heads = spec.heads,
          .kv_heads = spec.kv_heads,
          .head_dim = spec.head_dim,
          .window = spec.sliding_window.empty() ? 0 : spec.sliding_window.at(static_cast<size_t>(layer)),
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim))),
          .query_stride = spec.query_size() + 2 * spec.kv_size(),
          .out_stride = spec.query_size()};
}

std::unique_ptr<SubLayer> make_attention_layer(const ModelSpec& spec, AttentionParts parts,
                                               std::shared_ptr<const RopeTable> rope) {
  return std::make_unique<AttentionLayer>(spec, std::move(parts), std::move(rope));
}

void apply_norm(const ModelSpec& spec, const NormWeights& norm, const float* x, int64_t tokens, int64_t size,
                float* out, ThreadPool& pool) {
  const FloatKernels& kernels = float_kernels();
  const float* weight = norm.weight.data<float>();
  const float* bias = norm.bias.defined() ? norm.bias.data<float>() : nullptr;
  const float epsilon = static_cast<float>(spec.norm_epsilon);
  pool.parallel_for((tokens + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t last = std::min(tokens, (task + 1) * kRowsPerTask);
    for (int64_t t = task * kRowsPerTask; t < last; ++t) {
      if (spec.norm == NormKind::kRms) {
        kernels.rms_norm(x + t * size, weight, size, epsilon, out + t * size);
      } else {
        kernels.layer_norm(x + t * size, weight, bias, size, epsilon, out + t * size);
      }
    }
  });
}

void add_to_residual(const float* x, int64_t count, float* y, ThreadPool& pool) {
  constexpr int64_t kPiece = 16384;
  const FloatKernels& kernels = float_kernels();
  pool.parallel_for((count + kPiece - 1) / kPiece, [&](int64_t task, int) {
    const int64_t first = task * kPiece;
    kernels.add(x + first, std::min(kPiece, count - first), y + first);
  });
}

}  // namespace nibble
