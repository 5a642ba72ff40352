// The limits of this machine, measured: what the benchmarks print their shares of.
#pragma once

#include "backend/cpu/cpu_path.h"
#include "base/thread_pool.h"

namespace nibble::bench {

// Integer multiply-adds per second, times two, of the widest 8-bit product of `path`, on all threads of the
// pool, from registers (AMX: from tiles). 0 for kScalar.
double peak_int8_ops(CpuPath path, ThreadPool& pool);

// Bytes per second read from a buffer of `bytes` per thread by all threads of the pool: the best of a few
// passes.
double read_bandwidth(size_t bytes, ThreadPool& pool);

}  // namespace nibble::bench
