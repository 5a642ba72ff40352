// How activations of a segment become integers X = x 2^(23 - e) and back, for integer_products.h and
// word_products.h. Included only by *.isa.cc sources; everything has internal linkage.
#pragma once

#include "formats/group_int/row_products.h"

namespace nibble::NIBBLE_ISA {
namespace {

inline Vec power_of_two(int exponent) {
  return set1(bits_float(static_cast<uint32_t>(exponent + 127) << 23));
}

// e is biased - 126; not finite where the segment has such a number.
struct SegmentScale {
  int biased;
  bool finite;

  // X = x first second: in two factors, which are normal numbers.
  struct Factors {
    Vec first, second;
  };
  Factors factors() const {
    const int shift = finite ? 149 - biased : 0, half = shift >> 1;
    return {power_of_two(half), power_of_two(shift - half)};
  }
  // x = X 2^-21 exponent(): 2^(e - 2), subnormal for the smallest numbers.
  float exponent() const {
    return !finite      ? bits_float(0x7fc00000u)
           : biased < 2 ? bits_float(0x00200000u << biased)
                        : bits_float(static_cast<uint32_t>(biased - 1) << 23);
  }
};

}  // namespace
}  // namespace nibble::NIBBLE_ISA
