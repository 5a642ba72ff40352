#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "base/scratch.h"
#include "base/tensor.h"
#include "base/thread_pool.h"

namespace nibble {
namespace {

TEST(Half, F16RoundTripsEveryFinitePattern) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(float_to_f16(value), bits);
#if defined(__FLT16_MAX__)
    ASSERT_EQ(value, static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(bits))));
#endif
  }
}

TEST(Half, F16RoundsToNearestEven) {
  EXPECT_EQ(float_to_f16(1.0f + 0x1p-11f), 0x3c00);      // tie, even below
  EXPECT_EQ(float_to_f16(1.0f + 3 * 0x1p-11f), 0x3c02);  // tie, even above
  EXPECT_EQ(float_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);  // rounds to infinity
  EXPECT_EQ(float_to_f16(0x1p-25f), 0x0000);  // tie with zero
  EXPECT_EQ(float_to_f16(1.5f * 0x1p-25f), 0x0001);
}

TEST(Half, Bf16RoundsToNearestEven) {
  EXPECT_EQ(float_to_bf16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(float_to_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::nanf("")))));
}

TEST(Tensor, RefusesShapesThatOverflow) {
  EXPECT_THROW(element_count({int64_t{1} << 40, int64_t{1} << 40}), Error);
  EXPECT_THROW(element_count({-1, 4}), Error);
  EXPECT_EQ(element_count({3, 0, 5}), 0);
  EXPECT_EQ(element_count({}), 1);
}

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int64_t tasks : {0, 1, 2, 3, 100, 1000}) {
      std::vector<std::atomic<int>> counts(static_cast<size_t>(tasks));
      pool.parallel_for(tasks, [&](int64_t task, int thread) {
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, threads);
        counts[static_cast<size_t>(task)]++;
      });
      for (const auto& count : counts) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, NestedLoopsAndExceptions) {
  ThreadPool pool(3);
  std::atomic<int> total{0};
  pool.parallel_for(8, [&](int64_t, int outer) {
    pool.parallel_for(4, [&](int64_t, int inner) {
      EXPECT_EQ(inner, outer);  // per-thread scratch of the outer loop stays private
      total++;
    });
  });
  EXPECT_EQ(total.load(), 32);
  EXPECT_THROW(pool.parallel_for(16,
                                 [&](int64_t task, int) {
                                   if (task == 7) fail("task {}", task);
                                 }),
               Error);
  pool.parallel_for(4, [&](int64_t, int) { total++; });  // still usable
  EXPECT_EQ(total.load(), 36);
}

TEST(Scratch, FramesNestAndMemoryIsReused) {
  Scratch scratch;
  float* first = nullptr;
  {
    const Scratch::Frame frame(scratch);
    first = scratch.take<float>(1000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
    {
      const Scratch::Frame inner(scratch);
      scratch.take<float>(3u << 20);
    }
  }
  const size_t peak = scratch.peak_bytes();
  const Scratch::Frame frame(scratch);
  EXPECT_EQ(scratch.take<float>(1000), first);
  EXPECT_EQ(scratch.peak_bytes(), peak);
}

}  // namespace
}  // namespace nibble
