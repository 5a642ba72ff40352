// A tile of the matrix product of floats: kTileRows x kTileColumns accumulators held in registers; per step
// of k it loads one row of the panel (two vectors) and broadcasts one element of each packed row. 24 of 32
// registers on AVX-512, 12 of 16 on AVX2 are accumulators, enough to hide the latency of the multiply-adds.
// Included only by *.isa.cc sources; everything has internal linkage.
#pragma once

#include "kernels/cpu/vec.h"

namespace nibble::NIBBLE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileColumns = 2 * kLanes;

inline void load_columns(const float* p, int64_t columns, Vec* low, Vec* high) {
  if (columns == kTileColumns) {
    *low = load(p), *high = load(p + kLanes);
  } else if (columns > kLanes) {
    *low = load(p), *high = load_partial(p + kLanes, columns - kLanes);
  } else {
    *low = columns == kLanes ? load(p) : load_partial(p, columns), *high = zero();
  }
}

inline void store_columns(float* p, int64_t columns, Vec low, Vec high) {
  if (columns == kTileColumns) {
    store(p, low), store(p + kLanes, high);
  } else if (columns > kLanes) {
    store(p, low), store_partial(p + kLanes, high, columns - kLanes);
  } else if (columns == kLanes) {
    store(p, low);
  } else {
    store_partial(p, low, columns);
  }
}

enum class Start { kZero, kRow, kContinue };  // accumulators begin at 0, at one row for all (the bias), at c

// Memory that a later tile will read, fetched a little at a time between the multiply-adds: all at once would
// fill the processor's miss buffers and stall it.
struct Fetch {
  const char* weight;    // rows of the next panel: the next line to fetch, nullptr when there is none left
  int64_t row_bytes;     // of one row of the panel
  int64_t stride_bytes;  // between rows
  int64_t offset;        // within the row
  int64_t rows;          // left
  int64_t lines;         // per step
  const float* c;        // the next tile's rows of the result
  int64_t c_stride, c_rows, c_columns;
};

constexpr int64_t kFetchStep = 16;  // depth between two fetches

inline void fetch_some(Fetch& fetch) {
  for (int64_t i = 0; i < fetch.lines && fetch.rows > 0; ++i) {
    prefetch_to_l2(fetch.weight + fetch.offset);
    fetch.offset += 64;
    if (fetch.offset >= fetch.row_bytes) {
      fetch.offset = 0;
      fetch.weight += fetch.stride_bytes;
      --fetch.rows;
    }
  }
  if (fetch.c_rows > 0) {
    prefetch(fetch.c);
    prefetch(fetch.c + fetch.c_columns - 1);
    fetch.c += fetch.c_stride;
    --fetch.c_rows;
  }
}

struct TileShape {
  int64_t depth;
  Start start;
  const float* row;  // for Start::kRow
  int64_t c_stride;
  int64_t rows, columns;
};

// c[r][j] = start + sum over i of a[r * kStride + i] * panel[i][j], for r < rows <= kRows and j < columns.
// All kRows rows of a must be readable.
template <int kRows, int kStride>
void tile(const float* a, const float* panel, float* c, const TileShape& shape, Fetch* fetch) {
  Vec low[kRows], high[kRows];
  if (shape.start == Start::kContinue) {
    for (int r = 0; r < kRows; ++r) {
      if (r < shape.rows) {
        load_columns(c + r * shape.c_stride, shape.columns, &low[r], &high[r]);
      } else {
        low[r] = zero(), high[r] = zero();
      }
    }
  } else {
    Vec first_low = zero(), first_high = zero();
    if (shape.start == Start::kRow) load_columns(shape.row, shape.columns, &first_low, &first_high);
    for (int r = 0; r < kRows; ++r) low[r] = first_low, high[r] = first_high;
  }
  for (int64_t step = 0; step < shape.depth; step += kFetchStep) {
    if (fetch != nullptr) fetch_some(*fetch);
    const int64_t end = step + kFetchStep < shape.depth ? step + kFetchStep : shape.depth;
    for (int64_t i = step; i < end; ++i) {
      const Vec b_low = load(panel + i * kTileColumns), b_high = load(panel + i * kTileColumns + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Vec x = set1(a[r * kStride + i]);
        low[r] = fma(x, b_low, low[r]);
        high[r] = fma(x, b_high, high[r]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    if (r < shape.rows) store_columns(c + r * shape.c_stride, shape.columns, low[r], high[r]);
  }
}

// The smallest tile that holds the rows.
template <int kStride>
void tile_rows(const float* a, const float* panel, float* c, const TileShape& shape, Fetch* fetch) {
  if (shape.rows > kTileRows * 2 / 3) {
    tile<kTileRows, kStride>(a, panel, c, shape, fetch);
  } else if (shape.rows > kTileRows / 3) {
    tile<kTileRows * 2 / 3, kStride>(a, panel, c, shape, fetch);
  } else {
    tile<(kTileRows + 2) / 3, kStride>(a, panel, c, shape, fetch);
  }
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA
