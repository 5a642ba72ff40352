#include <algorithm>
#include <vector>

#include "base/error.h"
#include "calibration/blas.h"
#include "gradients/backward.h"
#include "gradients/group_weights.h"
#include "gradients/lanes.h"
#include "kernels/float_kernels.h"
#include "models/layers.h"
#include "models/rope.h"

namespace nibble {
namespace {

// Queries whose probabilities are computed at once, per head.
constexpr int64_t kQueryBlock = 64;
constexpr int64_t kRowsPerTask = 16;

// Probabilities are computed anew, block by block, as in forward(); nothing of size length^2 is kept.
class AttentionBackward final : public SubLayerBackward {
 public:
  AttentionBackward(const Model& model, const AttentionParts& parts, ThreadPool& pool)
      : spec_(model.spec()),
        rope_(model.rope()),
        parts_(parts),
        shape_(attention_shape(spec_, parts.layer)),
        kernels_(float_kernels()),
        query_key_value_(*parts.query_key_value, pool),
        output_(*parts.output, pool),
        work_(static_cast<size_t>(pool.size())) {}

  void recompute(const float* input, const SequenceBatch& batch, float* output, Scratch& scratch,
                 ThreadPool& pool) override {
    input_ = input;
    batch_ = batch;
    const int64_t tokens = batch.tokens(), hidden = spec_.hidden_size;
    normed_.resize(static_cast<size_t>(tokens * hidden));
    products_.resize(static_cast<size_t>(tokens * shape_.query_stride));
    queries_.resize(static_cast<size_t>(tokens * spec_.query_size()));
    attended_.resize(queries_.size());
    tiles_ = (batch.length + kKeyTile - 1) / kKeyTile;
    // Rows of the last tile behind the sequence's end are never written, and read only to be masked: 0.
    keys_.assign(static_cast<size_t>(batch.sequences * spec_.kv_heads * tile_rows() * spec_.head_dim), 0);
    values_.assign(keys_.size(), 0);

    apply_norm(spec_, parts_.norm, input, tokens, hidden, normed_.data(), pool);
    parts_.query_key_value->forward(normed_.data(), tokens, products_.data(), scratch, pool);
    if (spec_.rope.enabled) rope_.reserve(batch.length);
    for_rows(pool, [&](int64_t row, int64_t position) { split_token(row, position); });
    attend(scratch, pool);
    if (output == nullptr) return;
    parts_.output->forward(attended_.data(), tokens, output, scratch, pool);
    add_to_residual(input, tokens * hidden, output, pool);
  }

  void backward(float* gradient, const GradientTap& tap, ThreadPool& pool) override {
    const int64_t tokens = batch_.tokens(), hidden = spec_.hidden_size;
    tap(*parts_.output, attended_.data(), gradient);
    by_attended_.resize(attended_.size());
    output_.gradient_by_input(gradient, tokens, by_attended_.data(), pool);

    by_products_.assign(products_.size(), 0);
    pool.parallel_for(batch_.sequences * spec_.kv_heads, [&](int64_t task, int thread) {
      head_backward(task / spec_.kv_heads, task % spec_.kv_heads, work_[static_cast<size_t>(thread)]);
    });
    for_rows(pool, [&](int64_t row, int64_t position) { rotate_back(row, position); });
    tap(*parts_.query_key_value, normed_.data(), by_products_.data());

    by_normed_.resize(normed_.size());
    query_key_value_.gradient_by_input(by_products_.data(), tokens, by_normed_.data(), pool);
    add_norm_backward(spec_, parts_.norm, input_, by_normed_.data(), tokens, hidden, gradient, pool);
  }

 private:
  // Of one thread, for one block of queries of one head: [block, keys] each.
  struct Work {
    std::vector<float> probabilities, by_scores;
  };

  int64_t tile_rows() const { return tiles_ * kKeyTile; }
  // The keys (or values) of one head of one sequence: [tile_rows(), head_dim].
  template <typename Vector>
  auto* head_rows(Vector& all, int64_t sequence, int64_t kv_head) const {
    return all.data() + (sequence * spec_.kv_heads + kv_head) * tile_rows() * spec_.head_dim;
  }

  template <typename Body>
  void for_rows(ThreadPool& pool, Body&& body) const {
    const int64_t tokens = batch_.tokens();
    pool.parallel_for((tokens + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
      const int64_t last = std::min(tokens, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < last; ++row) body(row, row % batch_.length);
    });
  }

  // Norm and rotation of one token's heads, from products_ (which stays as it is) into queries_ and keys_,
  // and its values into values_.
  void split_token(int64_t row, int64_t position) {
    const int64_t d = spec_.head_dim, sequence = row / batch_.length;
    const float* from = products_.data() + row * shape_.query_stride;
    const auto place = [&](const float* head, const NormWeights& norm, float* to) {
      if (spec_.query_key_norm) {
        kernels_.rms_norm(head, norm.weight.data<float>(), d, static_cast<float>(spec_.norm_epsilon), to);
      } else {
        std::copy_n(head, d, to);
      }
      if (spec_.rope.enabled) {
        kernels_.rope(to, rope_.cosines(position), rope_.sines(position), rope_.half(),
                      spec_.rope.interleaved);
      }
    };
    for (int64_t head = 0; head < spec_.heads; ++head) {
      place(from + head * d, parts_.query_norm, queries_.data() + row * spec_.query_size() + head * d);
    }
    from += spec_.query_size();
    for (int64_t head = 0; head < spec_.kv_heads; ++head) {
      place(from + head * d, parts_.key_norm, head_rows(keys_, sequence, head) + position * d);
      std::copy_n(from + spec_.kv_size() + head * d, d, head_rows(values_, sequence, head) + position * d);
    }
  }

  void attend(Scratch& scratch, ThreadPool& pool) {
    const int64_t d = spec_.head_dim, per_sequence = spec_.kv_heads * tiles_;
    std::vector<const void*> key_tiles, value_tiles;
    for (int64_t tile = 0; tile < batch_.sequences * per_sequence; ++tile) {
      key_tiles.push_back(keys_.data() + tile * kKeyTile * d);
      value_tiles.push_back(values_.data() + tile * kKeyTile * d);
    }
    std::vector<AttentionSpan> spans;
    for (int64_t sequence = 0; sequence < batch_.sequences; ++sequence) {
      const int64_t first = sequence * batch_.length;
      spans.push_back({.query = queries_.data() + first * spec_.query_size(),
                       .out = attended_.data() + first * spec_.query_size(),
                       .tokens = batch_.length,
                       .key_type = CacheType::kF32,
                       .value_type = CacheType::kF32,
                       .key_tiles = key_tiles.data() + sequence * per_sequence,
                       .value_tiles = value_tiles.data() + sequence * per_sequence,
                       .tiles = tiles_});
    }
    AttentionShape shape = shape_;
    shape.query_stride = spec_.query_size();
    attention(kernels_, shape, spans, scratch, pool);
  }

  // One KV head of one sequence with the query heads that share it, from by_attended_ to by_products_. With P
  // = softmax(S), S = scale Q K^T, O = P V and dP = dO V^T: dS = P (dP - sum_j P dP), dQ = scale dS K, dK =
  // scale dS^T Q, dV = P^T dO.
  void head_backward(int64_t sequence, int64_t kv_head, Work& work) {
    const int64_t d = spec_.head_dim, length = batch_.length, group = spec_.heads / spec_.kv_heads;
    const int64_t q_stride = spec_.query_size(), out_stride = shape_.query_stride;
    const int64_t first_row = sequence * length;
    const float* keys = head_rows(keys_, sequence, kv_head);
    const float* values = head_rows(values_, sequence, kv_head);
    float* by_keys = by_products_.data() + first_row * out_stride + spec_.query_size() + kv_head * d;
    float* by_values = by_keys + spec_.kv_size();
    work.probabilities.resize(static_cast<size_t>(kQueryBlock * length));
    work.by_scores.resize(work.probabilities.size());
    float* p = work.probabilities.data();
    float* ds = work.by_scores.data();

    for (int64_t first = 0; first < length; first += kQueryBlock) {
      const int64_t rows = std::min(kQueryBlock, length - first);
      const int64_t low = first_key(first), count = first + rows - low;
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        const float* q = queries_.data() + (first_row + first) * q_stride + h * d;
        const float* by_out = by_attended_.data() + (first_row + first) * q_stride + h * d;
        gemm<float>(false, true, rows, count, d, shape_.scale, q, q_stride, keys + low * d, d, 0.0f, p,
                    count);
        gemm<float>(false, true, rows, count, d, 1.0f, by_out, q_stride, values + low * d, d, 0.0f, ds,
                    count);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t begin = first_key(first + r) - low, end = first + r + 1 - low;
          softmax_backward(p + r * count, ds + r * count, begin, end, count);
        }
        gemm<float>(true, false, count, d, rows, 1.0f, p, count, by_out, q_stride, 1.0f,
                    by_values + low * out_stride, out_stride);
        gemm<float>(false, false, rows, d, count, 1.0f, ds, count, keys + low * d, d, 0.0f,
                    by_products_.data() + (first_row + first) * out_stride + h * d, out_stride);
        gemm<float>(true, false, count, d, rows, 1.0f, ds, count, q, q_stride, 1.0f,
                    by_keys + low * out_stride, out_stride);
      }
    }
  }

  // The first position that `position` sees.
  int64_t first_key(int64_t position) const {
    return shape_.window > 0 ? std::max<int64_t>(0, position - shape_.window + 1) : 0;
  }

  // One row over `count` keys of which the token sees [begin, end): p, the scores, becomes the probabilities,
  // and ds, the gradient by them, becomes scale times the gradient by the scores.
  void softmax_backward(float* p, float* ds, int64_t begin, int64_t end, int64_t count) const {
    std::fill(p, p + begin, 0.0f);
    std::fill(p + end, p + count, 0.0f);
    std::fill(ds, ds + begin, 0.0f);
    std::fill(ds + end, ds + count, 0.0f);
    p += begin;
    ds += begin;
    kernels_.softmax(p, end - begin);
    const float mean = lane_sum(end - begin, [&](int64_t i) { return p[i] * ds[i]; });
    const float scale = shape_.scale;
    lane_loop(end - begin, [&](int64_t i) { ds[i] = scale * p[i] * (ds[i] - mean); });
  }

  // by_products_ of one token from the rotated and normed heads back to what the linears gave.
  void rotate_back(int64_t row, int64_t position) {
    const int64_t d = spec_.head_dim;
    std::vector<float> sines;
    if (spec_.rope.enabled) {
      // The transpose of a rotation is the one by the opposite angle.
      const float* forward = rope_.sines(position);
      sines.resize(static_cast<size_t>(rope_.half()));
      std::transform(forward, forward + rope_.half(), sines.begin(), [](float sine) { return -sine; });
    }
    for (int64_t head = 0; head < spec_.heads + spec_.kv_heads; ++head) {
      const int64_t offset = row * shape_.query_stride + head * d;
      float* dy = by_products_.data() + offset;
      if (spec_.rope.enabled) {
        kernels_.rope(dy, rope_.cosines(position), sines.data(), rope_.half(), spec_.rope.interleaved);
      }
      if (spec_.query_key_norm) {
        const NormWeights& norm = head < spec_.heads ? parts_.query_norm : parts_.key_norm;
        rms_norm_backward(products_.data() + offset, norm.weight.data<float>(), dy, d, spec_.norm_epsilon,
                          dy);
      }
    }
  }

  const ModelSpec& spec_;
  const RopeTable& rope_;
  const AttentionParts& parts_;
  AttentionShape shape_;
  const FloatKernels& kernels_;
  GroupWeights query_key_value_, output_;
  const float* input_ = nullptr;
  SequenceBatch batch_;
  int64_t tiles_ = 0;                     // of one sequence
  std::vector<float> normed_, products_;  // [tokens, hidden], [tokens, q + k + v] as the linears gave them
  std::vector<float> queries_;            // [tokens, q], normed and rotated
  std::vector<float> keys_, values_;  // [sequences, kv_heads, tile_rows, head_dim], keys normed and rotated
  std::vector<float> attended_;       // [tokens, q]
  std::vector<float> by_attended_, by_products_, by_normed_;
  std::vector<Work> work_;  // per thread
};

}  // namespace

std::unique_ptr<SubLayerBackward> make_attention_backward(const Model& model, const AttentionParts& parts,
                                                          ThreadPool& pool) {
  return std::make_unique<AttentionBackward>(model, parts, pool);
}

}  // namespace nibble
