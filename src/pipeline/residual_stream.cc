#include "pipeline/residual_stream.h"

#include <algorithm>

#include "base/interrupt.h"
#include "models/layers.h"

namespace nibble {
namespace {

// Enough rows for the matrix products to run at full speed, few enough for their results to stay in cache.
constexpr int64_t kTokensPerBatch = 2048;

}  // namespace

ResidualStream::ResidualStream(const Model& model, const CalibrationData& data)
    : sequences_(data.sequences),
      length_(data.length),
      hidden_size_(model.spec().hidden_size),
      sequences_per_batch_(std::clamp<int64_t>(kTokensPerBatch / data.length, 1, data.sequences)),
      hidden_(Tensor::empty(DType::kF32, {data.sequences * data.length, model.spec().hidden_size})) {
  model.embed(data.ids, hidden_.mutable_data<float>());
  next_block(model);
}

void ResidualStream::next_block(const Model& model) {
  caches_.clear();
  for (int64_t i = 0; i < sequences_per_batch_; ++i) caches_.push_back(model.make_cache(length_));
}

void ResidualStream::run(const SubLayer& sublayer, const InputTap* tap, ThreadPool& pool) {
  for (int64_t batch = 0; batch < batches(); ++batch) run_batch(batch, sublayer, tap, pool);
}

void ResidualStream::run_batch(int64_t batch, const SubLayer& sublayer, const InputTap* tap,
                               ThreadPool& pool) {
  throw_if_interrupted();
  const int64_t first = batch * sequences_per_batch_;
  const int64_t count = std::min(sequences_per_batch_, sequences_ - first);
  std::vector<SequenceSpan> spans;
  for (int64_t i = 0; i < count; ++i) {
    spans.push_back(
        {.cache = caches_[static_cast<size_t>(i)].get(), .first_row = i * length_, .count = length_});
  }
  const Scratch::Frame frame(scratch_);
  const RunContext context = {
      .sequences = spans, .tokens = count * length_, .scratch = &scratch_, .pool = &pool};
  sublayer.forward(hidden_.mutable_data<float>() + first * length_ * hidden_size_, context, tap);
}

void ResidualStream::finish(const LinearGroup& last, const float* x, ThreadPool& pool) {
  NIBBLE_CHECK(last.out_features() == hidden_size_);
  for (int64_t batch = 0; batch < batches(); ++batch) {
    throw_if_interrupted();
    const int64_t first = batch * sequences_per_batch_ * length_;
    const int64_t count = std::min(sequences_per_batch_ * length_, tokens() - first);
    const Scratch::Frame frame(scratch_);
    float* y = scratch_.take<float>(static_cast<size_t>(count * hidden_size_));
    last.forward(x + first * last.in_features(), count, y, scratch_, pool);
    add_to_residual(y, count * hidden_size_, hidden_.mutable_data<float>() + first * hidden_size_, pool);
  }
}

}  // namespace nibble
