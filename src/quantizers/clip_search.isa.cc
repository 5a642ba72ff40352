// The clip search on one instruction set (NIBBLE_ISA names it and its namespace). Vectors of the native
// width, arranged so that every path adds the same numbers in the same order: results are equal bit for bit.
#include "quantizers/clip_search.h"

namespace nibble::NIBBLE_ISA {
namespace {

#if defined(NIBBLE_ISA_avx512vnni)
constexpr int kWidth = 16;
#elif defined(NIBBLE_ISA_avx2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kVectors = static_cast<int>(kClipLanes) / kWidth;
// Values between two looks at the partial sum.
constexpr int64_t kValuesPerLook = 128;
// Every kCoarse-th factor is tried first: the others then meet a good bound early and most are dropped
// half-way.
constexpr int kCoarse = 8;

typedef float FloatVector __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t IntVector __attribute__((vector_size(kWidth * sizeof(float))));

inline FloatVector load(const float* from) {
  FloatVector vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}

inline FloatVector rounded(FloatVector value) {
  // Adding 1.5 * 2^23 leaves no bits for a fraction; exact for |value| < 2^22, ties to even.
  constexpr float kMagic = 12582912.0f;
  return (value + kMagic) - kMagic;
}

// x^norm for x in [0, 1]. log2 and exp2 by polynomials (Chebyshev nodes): log2 is within 1.2e-7 absolute,
// exp2 within 1e-7 relative, so the power is within 1e-6 relative for norm <= 4 and x > 1e-3; smaller errors
// do not move the sum.
inline FloatVector power(FloatVector x, float norm) {
  // x = 2^exponent * (1 + f) with f in [-1/3, 1/3].
  const IntVector bits = (IntVector)x;
  const IntVector exponent = (bits - 0x3f2aaaab) >> 23;
  const FloatVector f = (FloatVector)(bits - (exponent << 23)) - 1.0f;
  FloatVector log = f * -0.2169923523517616f + 0.24672696020035734f;
  log = log * f - 0.23779967653906497f;
  log = log * f + 0.2856044631343988f;
  log = log * f - 0.36073357715264365f;
  log = log * f + 0.4809645811117105f;
  log = log * f - 0.7213473121407361f;
  log = log * f + 1.4426948102497994f;
  log = log * f + __builtin_convertvector(exponent, FloatVector);

  FloatVector y = log * norm;
  const FloatVector lowest = {};
  y = y > lowest - 126.0f ? y : lowest - 126.0f;
  const FloatVector whole = rounded(y);
  const FloatVector g = y - whole;
  FloatVector power = g * 0.0013390863364616103f + 0.009676031918324871f;
  power = power * g + 0.05550357114219194f;
  power = power * g + 0.24022107485308267f;
  power = power * g + 0.6931471880262287f;
  power = power * g + 1.0000000754548972f;
  const IntVector shifted = (IntVector)power + (__builtin_convertvector(whole, IntVector) << 23);
  // 0 stays 0: its logarithm is only a large negative number here.
  return (FloatVector)(shifted & (x > lowest));
}

// The error of a factor, or anything above `bound` when it is above that.
inline double error_of_step(const ClipStretch& stretch, int step, double bound) {
  const FloatVector zero = {};
  const FloatVector low = zero + stretch.lowest_code, high = zero + stretch.highest_code;
  const float scale = clip_factor(step) / stretch.levels;
  const float inverse = stretch.levels / clip_factor(step);
  double total = 0;
  for (int64_t begin = 0; begin < stretch.padded_count && total <= bound; begin += kValuesPerLook) {
    const int64_t left = stretch.padded_count - begin;
    const int64_t end = begin + (left < kValuesPerLook ? left : kValuesPerLook);
    FloatVector sums[kVectors] = {};
    for (int64_t i = begin; i < end; i += kClipLanes) {
      for (int v = 0; v < kVectors; ++v) {
        const FloatVector value = load(stretch.values + i + v * kWidth);
        FloatVector code = value * inverse;
        code = code > low ? code : low;
        code = code < high ? code : high;
        const FloatVector error = value - rounded(code) * scale;
        const FloatVector magnitude = (FloatVector)((IntVector)error & 0x7fffffff);
        sums[v] += power(magnitude, stretch.norm);
      }
    }
    float lanes[kClipLanes];
    __builtin_memcpy(lanes, sums, sizeof(lanes));
    for (int half = kClipLanes / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    total += static_cast<double>(lanes[0]);
  }
  return total;
}

}  // namespace

int find_clip_step(const ClipStretch& stretch) {
  int best_step = 0;
  double best = error_of_step(stretch, 0, __builtin_inf());
  const auto try_step = [&](int step) {
    const double error = error_of_step(stretch, step, best);
    if (error < best || (error == best && step < best_step)) {
      best = error;
      best_step = step;
    }
  };
  for (int step = kCoarse; step < stretch.steps; step += kCoarse) try_step(step);
  for (int step = 1; step < stretch.steps; ++step) {
    if (step % kCoarse != 0) try_step(step);
  }
  return best_step;
}

}  // namespace nibble::NIBBLE_ISA
