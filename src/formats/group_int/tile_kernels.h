// What AMX offers to group_int: products of many tokens through bf16 tiles, exact in their operands. Defined
// in tile_kernels.isa.cc and driven by cpu.cc.
//
// A code minus its integer zero point is an integer of magnitude at most 256, which bf16 holds exactly; an
// FP32 activation is the exact sum of three bf16 numbers. Three tile products with FP32 accumulation per
// operand pair therefore give what FP32 FMAs give, at several times their speed. Scales enter in FP32 after
// every span of columns.
#pragma once

#include <cstdint>

#include "formats/group_int/layout.h"

namespace nibble {

inline constexpr int64_t kGroupIntStep = 32;        // columns of one tile; groups are multiples of it
inline constexpr int64_t kGroupIntTileTokens = 16;  // tokens of one tile
inline constexpr int64_t kGroupIntTileBytes = 1024;
inline constexpr int64_t kGroupIntTileRows = 64;  // rows that multiply() decodes at once
// Columns that multiply() decodes at once: a panel of 128 KiB.
inline constexpr int64_t kGroupIntTileDepth = 1024;

// Scratch of multiply(): the panel, its scales, sums of 64 rows by 32 tokens, and one result of 32 by 32.
inline constexpr int64_t kGroupIntTileScratch = kGroupIntTileRows * kGroupIntTileDepth * 2 +
                                                kGroupIntTileRows * (kGroupIntTileDepth / kGroupIntStep) * 4 +
                                                kGroupIntTileRows * 2 * kGroupIntTileTokens * 4 +
                                                4 * kGroupIntTileBytes;

struct GroupIntTileKernels {
  // Packs up to 16 tokens of x [tokens, k] for multiply(); missing tokens are zero. packed: [steps of
  // k][3][1024] bytes, scales: 16 floats, buffer: 16 * (k rounded up to steps) floats, all 64-byte aligned.
  void (*pack_tokens)(int bits, const float* x, int64_t tokens, int64_t k, uint8_t* packed, float* scales,
                      float* buffer);
  // y[t * y_stride + r] for rows [first, first + rows), at most kGroupIntTileRows, and tokens packed one tile
  // after the other. scratch: kGroupIntTileScratch bytes, 64-byte aligned.
  void (*multiply)(const GroupIntLayout& layout, int64_t first, int64_t rows, const uint8_t* packed,
                   const float* scales, int64_t tokens, uint8_t* scratch, float* y, int64_t y_stride);
};

namespace amx {
extern const GroupIntTileKernels kGroupIntTileKernels;
}

}  // namespace nibble
