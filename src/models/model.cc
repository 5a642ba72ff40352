#include "models/model.h"

#include <atomic>

#include "base/error.h"
#include "kernels/float_kernels.h"
#include "models/layers.h"
#include "models/model_builder.h"

namespace nibble {

std::unique_ptr<Model> Model::load(const Checkpoint& checkpoint, ThreadPool& pool,
                                   const BuildOptions& options) {
  ModelBuilder builder{.checkpoint = checkpoint, .pool = pool, .prepare = options.prepare};
  std::unique_ptr<Model> model = builder.build_shell(options);
  builder.build_blocks(*model);
  model->checkpoint_ = nullptr;
  return model;
}

std::unique_ptr<Model> Model::load_shell(const Checkpoint& checkpoint, ThreadPool& pool,
                                         const BuildOptions& options) {
  return ModelBuilder{.checkpoint = checkpoint, .pool = pool, .check_finite = true}.build_shell(options);
}

Block Model::load_block(int64_t layer, ThreadPool& pool) const {
  NIBBLE_CHECK(checkpoint_ != nullptr && layer >= 0 && layer < spec_.layers);
  return ModelBuilder{.checkpoint = *checkpoint_, .pool = pool, .check_finite = true}.build_block(
      spec_, rope_, layer);
}

void Model::embed(std::span<const int32_t> ids, float* hidden) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= spec_.vocabulary) {
      fail("token id {} at position {} is outside the vocabulary of {}", ids[i], i, spec_.vocabulary);
    }
    embedding_->format->dequantize_rows(*embedding_, ids[i], 1,
                                        hidden + static_cast<int64_t>(i) * spec_.hidden_size);
  }
}

void Model::run_blocks(float* hidden, const RunContext& context) const {
  NIBBLE_CHECK(static_cast<int64_t>(blocks_.size()) == spec_.layers);
  for (const Block& block : blocks_) {
    for (const std::unique_ptr<SubLayer>& sublayer : block.sublayers)
      sublayer->forward(hidden, context, nullptr);
  }
}

void Model::logits(const float* hidden, std::span<const int64_t> rows, int64_t tokens, float* out,
                   Scratch& scratch, ThreadPool& pool) const {
  const Scratch::Frame frame(scratch);
  const int64_t count = rows.empty() ? tokens : static_cast<int64_t>(rows.size());
  float* x = scratch.take<float>(static_cast<size_t>(count * spec_.hidden_size));
  if (rows.empty()) {
    apply_norm(spec_, final_norm_, hidden, count, spec_.hidden_size, x, pool);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = rows[static_cast<size_t>(i)];
      NIBBLE_CHECK(row >= 0 && row < tokens);
      apply_norm(spec_, final_norm_, hidden + row * spec_.hidden_size, 1, spec_.hidden_size,
                 x + i * spec_.hidden_size, pool);
    }
  }
  head_->forward(x, count, out, scratch, pool);
  std::atomic<bool> finite{true};
  pool.parallel_for(count, [&](int64_t row, int) {
    if (!float_kernels().all_finite(WeightType::kF32, out + row * spec_.vocabulary, spec_.vocabulary))
      finite = false;
  });
  if (!finite) fail_not_finite();
}

void Model::fail_not_finite() const {
  const auto check = [&](const PackedLinear& linear) {
    std::vector<float> row(static_cast<size_t>(linear.in_features));
    for (int64_t i = 0; i < linear.out_features; ++i) {
      linear.format->dequantize_rows(linear, i, 1, row.data());
      if (!float_kernels().all_finite(WeightType::kF32, row.data(), linear.in_features)) {
        fail("{}: the logits are not finite: tensor '{}.weight' has NaN or infinity in row {}", source_,
             linear.name, i);
      }
    }
  };
  check(*embedding_);
  for (const Block& block : blocks_) {
    for (const std::unique_ptr<SubLayer>& sublayer : block.sublayers) {
      for (LinearGroup* group : sublayer->groups()) {
        for (const LinearSlot& slot : group->slots()) check(*slot.packed);
      }
    }
  }
  for (const LinearSlot& slot : head_->slots()) check(*slot.packed);
  fail("{}: the logits are not finite, though the weights are: an intermediate value overflowed", source_);
}

void Model::for_each_group(const std::function<void(LinearGroup&)>& visit) {
  for (Block& block : blocks_) {
    for (const std::unique_ptr<SubLayer>& sublayer : block.sublayers) {
      for (LinearGroup* group : sublayer->groups()) visit(*group);
    }
  }
}

size_t Model::prepared_bytes() const {
  size_t bytes = head_->prepared_bytes();
  for (const Block& block : blocks_) {
    for (const std::unique_ptr<SubLayer>& sublayer : block.sublayers) {
      for (const LinearGroup* group : sublayer->groups()) bytes += group->prepared_bytes();
    }
  }
  return bytes;
}

std::unique_ptr<SequenceCache> Model::make_cache(int64_t capacity, CacheTypes types) const {
  return make_contiguous_cache(spec_.layers, spec_.kv_heads, spec_.head_dim, capacity, types);
}

}  // namespace nibble
