// Cosines and sines of rotary position embedding (Su et al., arXiv 2104.09864), computed as positions are
// first used.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "models/model_spec.h"

namespace nibble {

// The frequency of each pair of a head, scaled as `rope` says: [rotary_dim / 2]. `factors` (empty, or as
// many) divide them (GGUF's rope_freqs.weight).
std::vector<float> rope_frequencies(const RopeSpec& rope, int64_t head_dim, std::span<const float> factors);

class RopeTable {
 public:
  RopeTable(std::vector<float> frequencies, int64_t context_length);
  RopeTable(const RopeTable&) = delete;
  RopeTable& operator=(const RopeTable&) = delete;

  int64_t half() const { return half_; }  // pairs per head
  std::span<const float> frequencies() const { return frequencies_; }
  int64_t context_length() const { return context_length_; }
  // Makes rows [0, end) available. Throws Error for positions beyond the context length.
  void reserve(int64_t end) const;
  // [half()] each; the position must have been reserved.
  const float* cosines(int64_t position) const { return row(position); }
  const float* sines(int64_t position) const { return row(position) + half_; }

 private:
  static constexpr int64_t kChunk = 256;  // positions filled at once
  const float* row(int64_t position) const {
    return chunks_[static_cast<size_t>(position / kChunk)].get() + position % kChunk * 2 * half_;
  }
  std::vector<float> frequencies_;
  int64_t half_, context_length_;
  mutable std::vector<std::unique_ptr<float[]>> chunks_;  // of fixed length
  mutable std::atomic<int64_t> filled_{0};                // positions
  mutable std::mutex mutex_;
};

}  // namespace nibble
