// How ops that multiply strips of rows by tiles of quantized tokens (quik, group_int_a8) cut their work. The
// cut does not change what is computed for an output, and neither does the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/thread_pool.h"

namespace nibble {

// Activation codes of one chunk of tokens stay in the second-level cache while strips pass by.
inline constexpr int64_t kStripChunkBytes = int64_t{1} << 20;
// Quantizing fewer elements than this is done before another thread has woken up.
inline constexpr int64_t kInlineQuantize = 16384;

// Calls body(first token, last token, thread) for runs of tokens of `columns` elements each.
template <typename Body>
void for_quantize_tasks(int64_t tokens, int64_t columns, ThreadPool& pool, Body&& body) {
  if (tokens * columns <= kInlineQuantize) {
    body(int64_t{0}, tokens, 0);
    return;
  }
  const int64_t per_task = std::max<int64_t>(1, kInlineQuantize / columns);
  pool.parallel_for((tokens + per_task - 1) / per_task, [&](int64_t task, int thread) {
    body(task * per_task, std::min(tokens, (task + 1) * per_task), thread);
  });
}

// Calls body(first strip, last strip, first token, last token, thread); a chunk starts at a multiple of 32
// tokens.
template <typename Body>
void for_strip_tasks(int64_t strips, int64_t tokens, int64_t code_bytes, ThreadPool& pool, Body&& body) {
  const int64_t chunk = std::max<int64_t>(64, kStripChunkBytes / code_bytes / 32 * 32);
  const int64_t chunks = (tokens + chunk - 1) / chunk;
  // A few tasks per thread even out cores of different speed; a long run of strips per task lets prefetching
  // work.
  const int64_t per_task = std::max<int64_t>(1, strips / (int64_t{pool.size()} * 6));
  const int64_t tasks = (strips + per_task - 1) / per_task;
  pool.parallel_for(tasks * chunks, [&](int64_t task, int thread) {
    const int64_t first_strip = task % tasks * per_task, first = task / tasks * chunk;
    body(first_strip, std::min(strips, first_strip + per_task), first, std::min(tokens, first + chunk),
         thread);
  });
}

}  // namespace nibble
