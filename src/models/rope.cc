#include "models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace nibble {
namespace {

// Llama 3.1's scaling: long wavelengths are slowed by `factor`, short ones kept, those between blended.
double llama3_frequency(const RopeSpec& rope, double frequency) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  const double low_wavelength = rope.original_context / rope.low_frequency_factor;
  const double high_wavelength = rope.original_context / rope.high_frequency_factor;
  if (wavelength < high_wavelength) return frequency;
  if (wavelength > low_wavelength) return frequency / rope.factor;
  const double blend = (rope.original_context / wavelength - rope.low_frequency_factor) /
                       (rope.high_frequency_factor - rope.low_frequency_factor);
  return (1.0 - blend) * frequency / rope.factor + blend * frequency;
}

}  // namespace

std::vector<float> rope_frequencies(const RopeSpec& rope, int64_t head_dim, std::span<const float> factors) {
  const int64_t rotary = rope.rotary_dim == 0 ? head_dim : rope.rotary_dim;
  std::vector<float> frequencies(static_cast<size_t>(rotary / 2));
  NIBBLE_CHECK(factors.empty() || factors.size() == frequencies.size());
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double frequency = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotary));
    if (rope.scaling == RopeSpec::Scaling::kLinear) frequency /= rope.factor;
    if (rope.scaling == RopeSpec::Scaling::kLlama3) frequency = llama3_frequency(rope, frequency);
    if (!factors.empty()) frequency /= factors[i];
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

RopeTable::RopeTable(std::vector<float> frequencies, int64_t context_length)
    : frequencies_(std::move(frequencies)),
      half_(static_cast<int64_t>(frequencies_.size())),
      context_length_(context_length),
      chunks_(static_cast<size_t>((context_length + kChunk - 1) / kChunk)) {}

void RopeTable::reserve(int64_t end) const {
  if (end <= filled_.load(std::memory_order_acquire)) return;
  if (end > context_length_) {
    fail("position {} is beyond the model's context of {} tokens", end - 1, context_length_);
  }
  const std::lock_guard lock(mutex_);
  for (int64_t first = filled_.load(std::memory_order_relaxed); first < end; first += kChunk) {
    std::unique_ptr<float[]> chunk(new float[static_cast<size_t>(kChunk * 2 * half_)]);
    for (int64_t t = 0; t < kChunk; ++t) {
      float* row = chunk.get() + t * 2 * half_;
      for (int64_t i = 0; i < half_; ++i) {
        // The angle as models are trained with it: a product of floats.
        const float angle = static_cast<float>(first + t) * frequencies_[static_cast<size_t>(i)];
        row[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
        row[half_ + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
    chunks_[static_cast<size_t>(first / kChunk)] = std::move(chunk);
    filled_.store(first + kChunk, std::memory_order_release);
  }
}

}  // namespace nibble
