// The hidden states of all calibration sequences between two sub-layers: what flows from one quantized block
// into the next.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/tensor.h"
#include "models/model.h"
#include "pipeline/calibration_data.h"

namespace nibble {

class ResidualStream {
 public:
  // Starts as the embeddings of the calibration tokens: F32 [sequences * length, hidden].
  ResidualStream(const Model& model, const CalibrationData& data);

  // Runs `sublayer` over all sequences, a few at a time. With a tap that stops, the states stay as they are;
  // without, they move on through the sub-layer. Polls for Ctrl-C between batches.
  void run(const SubLayer& sublayer, const InputTap* tap, ThreadPool& pool);
  // The same for one batch of sequences, of batches(): two streams over the same data have the same batches.
  void run_batch(int64_t batch, const SubLayer& sublayer, const InputTap* tap, ThreadPool& pool);
  // The rest of a sub-layer that run() was stopped in at its last group, from that group's inputs x
  // [tokens(), in_features]: the states take up its outputs. The same bits as running the sub-layer once
  // more.
  void finish(const LinearGroup& last, const float* x, ThreadPool& pool);
  int64_t batches() const { return (sequences_ + sequences_per_batch_ - 1) / sequences_per_batch_; }
  // Fresh caches for the next block: their memory is touched only for the layer that runs.
  void next_block(const Model& model);

  int64_t tokens() const { return sequences_ * length_; }
  const float* states() const { return hidden_.data<float>(); }
  // Hands the states over; the stream is of no use any more.
  Tensor take_states() { return std::move(hidden_); }
  size_t bytes() const { return hidden_.bytes(); }

 private:
  int64_t sequences_, length_, hidden_size_, sequences_per_batch_;
  Tensor hidden_;
  std::vector<std::unique_ptr<SequenceCache>> caches_;  // one per sequence of a batch
  Scratch scratch_;
};

}  // namespace nibble
