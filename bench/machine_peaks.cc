// Probes of the machine's limits. Each function is compiled for its own instruction set and runs only where
// that exists.
#include "machine_peaks.h"

#include <immintrin.h>

#include <algorithm>
#include <vector>

#include "base/log.h"
#include "base/tensor.h"

namespace nibble::bench {
namespace {

// Each runs `rounds` rounds and returns the operations done. `sink` keeps results alive.
__attribute__((target("avx2"))) int64_t spin_avx2(int64_t rounds, int* sink) {
  __m256i sums[12];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(static_cast<char>(*sink & 1));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (__m256i& sum : sums) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b));
  }
  for (const __m256i& sum : sums) *sink += _mm256_extract_epi32(sum, 0);
  return rounds * 12 * 32 * 2;
}

__attribute__((target("avx2,avxvnni"))) int64_t spin_avxvnni(int64_t rounds, int* sink) {
  __m256i sums[12];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(static_cast<char>(*sink & 1));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (__m256i& sum : sums) sum = _mm256_dpbusd_avx_epi32(sum, a, b);
  }
  for (const __m256i& sum : sums) *sink += _mm256_extract_epi32(sum, 0);
  return rounds * 12 * 32 * 2;
}

__attribute__((target("avx512f,avx512vnni"))) int64_t spin_avx512(int64_t rounds, int* sink) {
  __m512i sums[16];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(static_cast<char>(*sink & 1));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  }
  alignas(64) int32_t out[16];
  for (const __m512i& sum : sums) {
    _mm512_store_si512(out, sum);
    *sink += out[0];
  }
  return rounds * 16 * 64 * 2;
}

__attribute__((target("amx-tile,amx-int8"))) int64_t spin_amx(int64_t rounds, int* sink) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) int32_t out[16 * 16];
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbusd(0, 4, 5);
    _tile_dpbusd(1, 4, 5);
    _tile_dpbusd(2, 4, 5);
    _tile_dpbusd(3, 4, 5);
  }
  _tile_stored(0, out, 64);
  _tile_release();
  *sink += out[0];
  return rounds * 4 * 16 * 16 * 64 * 2;
}

__attribute__((target("avx2"))) uint64_t read_all(const uint64_t* data, int64_t words) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (int64_t i = 0; i + 16 <= words; i += 16) {
    const auto* from = reinterpret_cast<const __m256i*>(data + i);
    a = _mm256_xor_si256(a, _mm256_loadu_si256(from));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(from + 1));
    c = _mm256_xor_si256(c, _mm256_loadu_si256(from + 2));
    d = _mm256_xor_si256(d, _mm256_loadu_si256(from + 3));
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0));
}

}  // namespace

double peak_int8_ops(CpuPath path, ThreadPool& pool) {
  int64_t (*spin)(int64_t, int*) = nullptr;
  switch (path) {
    case CpuPath::kScalar:
      return 0;
    case CpuPath::kAvx2:
      spin = spin_avx2;
      break;
    case CpuPath::kAvxVnni:
      spin = spin_avxvnni;
      break;
    case CpuPath::kAvx512Vnni:
    case CpuPath::kAvx512Vbmi:
      spin = spin_avx512;
      break;
    case CpuPath::kAmx:
      spin = spin_amx;
      break;
  }
  double best = 0;
  for (int pass = 0; pass < 40; ++pass) {
    std::vector<int> sinks(static_cast<size_t>(pool.size()) * 16);
    std::vector<double> operations(static_cast<size_t>(pool.size()));
    const double start = monotonic_seconds();
    pool.parallel_for(pool.size(), [&](int64_t task, int) {
      operations[task] = static_cast<double>(spin(20000, &sinks[task * 16]));
    });
    const double seconds = monotonic_seconds() - start;
    double total = 0;
    for (const double count : operations) total += count;
    best = std::max(best, total / seconds);
  }
  return best;
}

double read_bandwidth(size_t bytes, ThreadPool& pool) {
  const auto words = static_cast<int64_t>(bytes / sizeof(uint64_t));
  const Tensor buffer = Tensor::zeros(DType::kU64, {pool.size(), words});
  const auto repeat = std::max<size_t>(1, (size_t{64} << 20) / bytes);
  std::vector<uint64_t> sinks(static_cast<size_t>(pool.size()) * 8);
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    const double start = monotonic_seconds();
    pool.parallel_for(pool.size(), [&](int64_t task, int) {
      const uint64_t* data = buffer.data<uint64_t>() + task * words;
      for (size_t round = 0; round < repeat; ++round) sinks[task * 8] ^= read_all(data, words);
    });
    best = std::max(best, static_cast<double>(bytes) * static_cast<double>(repeat) * pool.size() /
                              (monotonic_seconds() - start));
  }
  return best;
}

}  // namespace nibble::bench
