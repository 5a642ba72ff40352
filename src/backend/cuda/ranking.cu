// A tournament: blocks sort 1024 keys each and keep the best 128, until one block is enough.
#include <bit>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/ranking.h"

namespace nibble::cuda {
namespace {

constexpr int kSorted = 1024, kThreads = kSorted / 2;
constexpr uint32_t kSign = 0x80000000u, kAboveAll = 0xFFFFFFFFu;

__device__ inline uint64_t key_of(float logit, uint32_t token) {
  const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
  const uint32_t ordered = isnan(logit) ? kAboveAll : (bits & kSign) != 0 ? ~bits : bits | kSign;
  return uint64_t{ordered} << 32 | ~token;
}
__device__ inline uint64_t key_of(RankKey key, uint32_t) { return key.bits; }

// From `count` logits or keys; block b writes kRankedLogits keys to to[b kRankedLogits].
template <typename From>
__global__ void __launch_bounds__(kThreads) rank_kernel(const From* from, int count, RankKey* to) {
  __shared__ uint64_t keys[kSorted];
  const int thread = threadIdx.x, first = blockIdx.x * kSorted;
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  for (int i = thread; i < kSorted; i += kThreads)
    keys[i] = first + i < count ? key_of(from[first + i], static_cast<uint32_t>(first + i)) : 0;
  // Bitonic (Batcher 1968): pairs at a distance of `stride`, runs of `size` alternately down and up.
  for (int size = 2; size <= kSorted; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      const int at = 2 * thread - (thread & (stride - 1));
      const uint64_t a = keys[at], b = keys[at + stride];
      if ((a < b) == ((at & size) == 0)) {
        keys[at] = b;
        keys[at + stride] = a;
      }
    }
  }
  __syncthreads();
  if (thread < kRankedLogits) to[blockIdx.x * kRankedLogits + thread].bits = keys[thread];
}

int blocks_for(int count) { return (count + kSorted - 1) / kSorted; }

}  // namespace

float RankKey::logit() const {
  const auto ordered = static_cast<uint32_t>(bits >> 32);
  return std::bit_cast<float>((ordered & kSign) != 0 ? ordered ^ kSign : ~ordered);
}

size_t ranking_bytes(int vocabulary) {
  const size_t first = sizeof(RankKey) * kRankedLogits * static_cast<size_t>(blocks_for(vocabulary));
  return 2 * first;
}

const RankKey* launch_ranking(const float* logits, int vocabulary, void* workspace, cudaStream_t stream) {
  const char* const what = "ranking logits";
  int blocks = blocks_for(vocabulary);
  RankKey* to = static_cast<RankKey*>(workspace);
  RankKey* other = to + blocks * kRankedLogits;
  launch_dependent(rank_kernel<float>, blocks, kThreads, 0, stream, what, logits, vocabulary, to);
  while (blocks > 1) {
    const int count = blocks * kRankedLogits;
    blocks = blocks_for(count);
    launch_dependent(rank_kernel<RankKey>, blocks, kThreads, 0, stream, what, to, count, other);
    std::swap(to, other);
  }
  return to;
}

}  // namespace nibble::cuda
