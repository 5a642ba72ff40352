#include "io/gguf_types.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "base/half.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = 32;  // weights per block of the types decoded here

float load_f16(const std::byte* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return f16_to_float(bits);
}

// Q8_0: f16 scale d, then 32 int8 q; w = q d.
void decode_q8_0(const std::byte* blocks, int64_t count, float* out) {
  for (int64_t block = 0; block < count; ++block, blocks += 34, out += kBlock) {
    const float scale = load_f16(blocks);
    for (int64_t i = 0; i < kBlock; ++i) {
      out[i] = static_cast<float>(static_cast<int8_t>(blocks[2 + i])) * scale;
    }
  }
}

// Q4_0: f16 scale d, then 16 bytes; byte j holds q of weight j in its low and of weight j + 16 in its high
// four bits; w = (q - 8) d.
void decode_q4_0(const std::byte* blocks, int64_t count, float* out) {
  for (int64_t block = 0; block < count; ++block, blocks += 18, out += kBlock) {
    const float scale = load_f16(blocks);
    for (int64_t j = 0; j < kBlock / 2; ++j) {
      const int codes = std::to_integer<int>(blocks[2 + j]);
      out[j] = static_cast<float>((codes & 15) - 8) * scale;
      out[j + kBlock / 2] = static_cast<float>((codes >> 4) - 8) * scale;
    }
  }
}

// Q4_1: f16 scale d, f16 minimum m, then 16 bytes packed as in Q4_0; w = q d + m.
void decode_q4_1(const std::byte* blocks, int64_t count, float* out) {
  for (int64_t block = 0; block < count; ++block, blocks += 20, out += kBlock) {
    const float scale = load_f16(blocks), minimum = load_f16(blocks + 2);
    for (int64_t j = 0; j < kBlock / 2; ++j) {
      const int codes = std::to_integer<int>(blocks[4 + j]);
      out[j] = static_cast<float>(codes & 15) * scale + minimum;
      out[j + kBlock / 2] = static_cast<float>(codes >> 4) * scale + minimum;
    }
  }
}

// Ids 4, 5, 31 to 33 and 36 to 38 were withdrawn from GGUF.
constexpr GgufType kTypes[] = {
    {0, "F32", 1, 4, DType::kF32, nullptr},          {1, "F16", 1, 2, DType::kF16, nullptr},
    {2, "Q4_0", 32, 18, std::nullopt, decode_q4_0},  {3, "Q4_1", 32, 20, std::nullopt, decode_q4_1},
    {6, "Q5_0", 32, 22, std::nullopt, nullptr},      {7, "Q5_1", 32, 24, std::nullopt, nullptr},
    {8, "Q8_0", 32, 34, std::nullopt, decode_q8_0},  {9, "Q8_1", 32, 36, std::nullopt, nullptr},
    {10, "Q2_K", 256, 84, std::nullopt, nullptr},    {11, "Q3_K", 256, 110, std::nullopt, nullptr},
    {12, "Q4_K", 256, 144, std::nullopt, nullptr},   {13, "Q5_K", 256, 176, std::nullopt, nullptr},
    {14, "Q6_K", 256, 210, std::nullopt, nullptr},   {15, "Q8_K", 256, 292, std::nullopt, nullptr},
    {16, "IQ2_XXS", 256, 66, std::nullopt, nullptr}, {17, "IQ2_XS", 256, 74, std::nullopt, nullptr},
    {18, "IQ3_XXS", 256, 98, std::nullopt, nullptr}, {19, "IQ1_S", 256, 50, std::nullopt, nullptr},
    {20, "IQ4_NL", 32, 18, std::nullopt, nullptr},   {21, "IQ3_S", 256, 110, std::nullopt, nullptr},
    {22, "IQ2_S", 256, 82, std::nullopt, nullptr},   {23, "IQ4_XS", 256, 136, std::nullopt, nullptr},
    {24, "I8", 1, 1, DType::kI8, nullptr},           {25, "I16", 1, 2, DType::kI16, nullptr},
    {26, "I32", 1, 4, DType::kI32, nullptr},         {27, "I64", 1, 8, DType::kI64, nullptr},
    {28, "F64", 1, 8, DType::kF64, nullptr},         {29, "IQ1_M", 256, 56, std::nullopt, nullptr},
    {30, "BF16", 1, 2, DType::kBF16, nullptr},       {34, "TQ1_0", 256, 54, std::nullopt, nullptr},
    {35, "TQ2_0", 256, 66, std::nullopt, nullptr},   {39, "MXFP4", 32, 17, std::nullopt, nullptr},
    {40, "NVFP4", 64, 36, std::nullopt, nullptr},    {41, "Q1_0", 128, 18, std::nullopt, nullptr},
};

}  // namespace

const GgufType* find_gguf_type(uint32_t id) {
  const auto* row =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const GgufType& type) { return type.id == id; });
  return row == std::end(kTypes) ? nullptr : row;
}

void decode_gguf_range(const GgufType& type, const std::byte* data, int64_t first, int64_t count,
                       float* out) {
  NIBBLE_CHECK(type.decode != nullptr && type.weights_per_block <= kMaxGgufBlockWeights);
  const int64_t width = type.weights_per_block;
  const std::byte* block = data + first / width * type.bytes_per_block;
  int64_t skip = first % width;  // weights of the first block that precede the range
  std::array<float, kMaxGgufBlockWeights> partial;
  while (count > 0) {
    if (skip == 0 && count >= width) {
      const int64_t blocks = count / width;
      type.decode(block, blocks, out);
      block += blocks * type.bytes_per_block;
      out += blocks * width;
      count -= blocks * width;
      continue;
    }
    const int64_t taken = std::min(width - skip, count);
    type.decode(block, 1, partial.data());
    std::copy_n(partial.data() + skip, taken, out);
    block += type.bytes_per_block;
    out += taken;
    count -= taken;
    skip = 0;
  }
}

}  // namespace nibble
