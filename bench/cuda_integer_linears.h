// Synthetic weights for the benchmarks of integer activations.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/probes.h"
#include "cuda_decoder_linears.h"
#include "formats/group_int_a8/cuda/few_tokens.h"

namespace nibble::integer_bench {

using cuda::Buffer;
using namespace group_int_a8_cuda;

using cuda_bench::Block;
using cuda_bench::blocks;
using cuda_bench::Linear;

template <typename T>
Buffer constants(size_t count, T value) {
  Buffer buffer(count * sizeof(T));
  const std::vector<T> values(count, value);
  buffer.upload(values.data(), buffer.bytes());
  return buffer;
}

inline Buffer random_half(size_t count, float scale, const cuda::Stream& stream) {
  Buffer buffer(count * sizeof(__half));
  cuda::check(cuda::fill_random_half(buffer.as<__half>(), count, scale, 3, stream.get()), "filling");
  return buffer;
}

// Random codes, plausible scales (`scale` in every two bytes) and outlier weights.
inline Buffer synthetic_slots(const FewTokensShape& shape, const cuda::Stream& stream,
                              uint16_t scale = 0x0040) {
  Buffer slots(static_cast<size_t>(shape.bytes()));
  cuda::check(cuda::fill_random_bytes(slots.data(), slots.bytes() / 4 * 4, 5, stream.get()), "filling");
  const auto copy = [&](size_t at, size_t pitch, const Buffer& from, size_t width, int64_t rows) {
    cuda::check(cudaMemcpy2DAsync(slots.as<uint8_t>() + at, pitch, from.data(), width, width,
                                  static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, stream.get()),
                "filling");
    stream.synchronize();
  };
  if (shape.group > 0) {  // no outliers: slots follow each other through all tiles
    const auto width = static_cast<size_t>(shape.slot_bytes() - kSlotCodeBytes);
    const int64_t rows = shape.tiles() * shape.integer_slots();
    copy(kSlotCodeBytes, static_cast<size_t>(shape.slot_bytes()),
         constants<uint16_t>(width / 2 * static_cast<size_t>(rows), scale), width, rows);
  }
  if (shape.outliers > 0) {
    const auto width = static_cast<size_t>(shape.outlier_slots() * kSlotCodeBytes);
    copy(static_cast<size_t>(shape.integer_slots() * shape.slot_bytes()),
         static_cast<size_t>(shape.tile_bytes()),
         random_half(width / 2 * static_cast<size_t>(shape.tiles()), 0.05f, stream), width, shape.tiles());
  }
  return slots;
}

}  // namespace nibble::integer_bench
