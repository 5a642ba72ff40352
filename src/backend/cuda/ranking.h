// The best of a vocabulary's logits, so that a sampler on the host need not see all of them.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

inline constexpr int kRankedLogits = 128;

// A logit and its token as one number, larger for larger logits, of equal ones for lower tokens, and for NaN
// above all. Zeros of both signs are equal.
struct RankKey {
  uint64_t bits = 0;  // 0: none

  bool any() const { return bits != 0; }
  int32_t token() const { return static_cast<int32_t>(~static_cast<uint32_t>(bits)); }
  float logit() const;
};

// Device memory for ranking that many logits.
size_t ranking_bytes(int vocabulary);

// Enqueues the ranking of logits [vocabulary] and returns where in `workspace` the best kRankedLogits will
// lie, best first (fewer where the vocabulary is smaller, then RankKeys of none).
const RankKey* launch_ranking(const float* logits, int vocabulary, void* workspace, cudaStream_t stream);

}  // namespace nibble::cuda
