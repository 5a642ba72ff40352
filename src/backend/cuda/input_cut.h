// How rows are cut over threads by the kernels of input_rows.cuh.
#pragma once

namespace nibble::cuda::rows {

inline constexpr int kMaximumThreads = 512, kMaximumBlocks = 8, kMaximumVectors = 8;
// The widest row: 8 vectors of 8 columns per thread.
inline constexpr int kMaximumColumns = 8 * kMaximumVectors * kMaximumThreads;

// Of blocks with so many vectors: registers of a multiprocessor are enough for two of four.
constexpr int most_threads(int vectors) { return vectors == 4 ? 448 : kMaximumThreads; }

// How rows are cut: `vectors` (1, 2, 4 or 8) times 8 columns per thread, `blocks` blocks per row.
struct Cut {
  int vectors, threads, blocks;
};
// `spread`: over several blocks where that is faster. Of few rows, whose columns are then not read by one
// multiprocessor alone; and of wide ones, half of which leaves registers for a second block.
inline Cut cut_rows(int columns, int tokens, bool spread) {
  const int eights = columns / 8, few = 8;
  Cut cut = {1, 0, 1};
  if (spread && tokens <= few) {
    while (cut.blocks < kMaximumBlocks && eights > 384 * cut.blocks) cut.blocks *= 2;
  } else if (spread && eights > 4 * most_threads(4)) {
    cut.blocks = 2;
  }
  const int share = (eights + cut.blocks - 1) / cut.blocks;
  // Of many tokens several blocks share a multiprocessor; of few, latency counts.
  const int small = tokens <= few ? kMaximumThreads : kMaximumThreads / 2;
  while (cut.vectors < kMaximumVectors &&
         share > cut.vectors * (cut.vectors < 4 ? small : most_threads(cut.vectors)))
    cut.vectors *= 2;
  cut.threads = ((share + cut.vectors - 1) / cut.vectors + 31) / 32 * 32;
  return cut;
}

}  // namespace nibble::cuda::rows
