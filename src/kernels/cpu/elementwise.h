// Conversions, norms, rotary embedding, activations. Included only by float_kernels.isa.cc.
#pragma once

#include "kernels/cpu/vec.h"

namespace nibble::NIBBLE_ISA {
namespace {

void f16_to_f32(const uint16_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load_f16(in + i));
  if (i < count) store_partial(out + i, load_f16_partial(in + i, count - i), count - i);
}

void bf16_to_f32(const uint16_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load_bf16(in + i));
  if (i < count) store_partial(out + i, load_bf16_partial(in + i, count - i), count - i);
}

void f32_to_f16(const float* in, int64_t count, uint16_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_f16(out + i, load(in + i));
  if (i < count) {
    uint16_t last[kLanes];
    store_f16(last, load_partial(in + i, count - i));
    for (int64_t j = 0; i + j < count; ++j) out[i + j] = last[j];
  }
}

// Plain integer code: the compiler vectorises it for whatever this file is compiled for.
void f32_to_bf16(const float* in, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = float_bits(in[i]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40u;
    out[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
  }
}

bool all_finite(WeightType type, const void* values, int64_t count) {
  // A block is finite when no exponent field is all ones.
  constexpr int64_t kBlock = 1024;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t last = first + kBlock < count ? first + kBlock : count;
    uint32_t bad = 0;
    if (type == WeightType::kF32) {
      const char* p = static_cast<const char*>(values);
      for (int64_t i = first; i < last; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, p + i * 4, 4);
        bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
      }
    } else {
      const uint16_t* p = static_cast<const uint16_t*>(values);
      const uint16_t exponent = type == WeightType::kF16 ? 0x7c00u : 0x7f80u;
      for (int64_t i = first; i < last; ++i) bad |= static_cast<uint32_t>((p[i] & exponent) == exponent);
    }
    if (bad != 0) return false;
  }
  return true;
}

// Sum of squared differences to `center`.
float sum_of_squares(const float* x, int64_t size, float center) {
  const Vec c = set1(center);
  Vec even = zero(), odd = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    const Vec a = sub(load(x + i), c), b = sub(load(x + i + kLanes), c);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  float total = reduce_add(add(even, odd));
  for (; i < size; ++i) total += (x[i] - center) * (x[i] - center);
  return total;
}

float square_root(float value) { return __builtin_sqrtf(value); }

void rms_norm(const float* x, const float* weight, int64_t size, float epsilon, float* out) {
  const float mean = sum_of_squares(x, size, 0.0f) / static_cast<float>(size);
  const float inverse = 1.0f / square_root(mean + epsilon);
  const Vec factor = set1(inverse);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(out + i, mul(mul(load(x + i), factor), load(weight + i)));
  for (; i < size; ++i) out[i] = x[i] * inverse * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t size, float epsilon,
                float* out) {
  Vec sums = zero();
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) sums = add(sums, load(x + i));
  float total = reduce_add(sums);
  for (; i < size; ++i) total += x[i];
  const float mean = total / static_cast<float>(size);
  const float variance = sum_of_squares(x, size, mean) / static_cast<float>(size);
  const float inverse = 1.0f / square_root(variance + epsilon);
  const Vec center = set1(mean), factor = set1(inverse);
  for (i = 0; i + kLanes <= size; i += kLanes) {
    const Vec normal = mul(sub(load(x + i), center), factor);
    store(out + i, fma(normal, load(weight + i), bias == nullptr ? zero() : load(bias + i)));
  }
  for (; i < size; ++i) {
    out[i] = (x[i] - mean) * inverse * weight[i] + (bias == nullptr ? 0.0f : bias[i]);
  }
}

void rope(float* head, const float* cosines, const float* sines, int64_t half, bool interleaved) {
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = head[2 * i], b = head[2 * i + 1];
      head[2 * i] = a * cosines[i] - b * sines[i];
      head[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
    return;
  }
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(head + i), b = load(head + half + i), c = load(cosines + i), s = load(sines + i);
    store(head + i, sub(mul(a, c), mul(b, s)));
    store(head + half + i, fma(b, c, mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[half + i] = b * cosines[i] + a * sines[i];
  }
}

inline Vec silu(Vec x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

void silu_mul(const float* gate, const float* up, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, mul(silu(load(gate + i)), load(up + i)));
  if (i < count) {
    const int64_t rest = count - i;
    store_partial(out + i, mul(silu(load_partial(gate + i, rest)), load_partial(up + i, rest)), rest);
  }
}

void add_to(const float* x, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, add(load(y + i), load(x + i)));
  for (; i < count; ++i) y[i] += x[i];
}

void exp_all(const float* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, exp(load(x + i)));
  if (i < count) store_partial(out + i, exp(load_partial(x + i, count - i)), count - i);
}

// Largest of count >= 1 values.
float largest_of(const float* x, int64_t count) {
  float largest = x[0];
  int64_t i = 0;
  if (count >= kLanes) {
    Vec vector = load(x);
    for (i = kLanes; i + kLanes <= count; i += kLanes) vector = max(vector, load(x + i));
    largest = reduce_max(vector);
  }
  for (; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// x = exp(x - largest); returns the sum.
float exponentials(float* x, int64_t count, float largest) {
  const Vec shift = set1(largest);
  Vec sums = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec e = exp(sub(load(x + i), shift));
    store(x + i, e);
    sums = add(sums, e);
  }
  float total = reduce_add(sums);
  if (i < count) {
    store_partial(x + i, exp(sub(load_partial(x + i, count - i), shift)), count - i);
    for (; i < count; ++i) total += x[i];
  }
  return total;
}

void scale_all(float* x, int64_t count, float factor) {
  const Vec f = set1(factor);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, mul(load(x + i), f));
  for (; i < count; ++i) x[i] *= factor;
}

void softmax(float* x, int64_t count) {
  const float total = exponentials(x, count, largest_of(x, count));
  scale_all(x, count, 1.0f / total);
}

}  // namespace
}  // namespace nibble::NIBBLE_ISA
