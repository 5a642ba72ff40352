// Products over a warp of quik's packed weights and codes, without a GPU: the registers of all lanes are
// taken from memory as the kernel takes them, the products computed from the instruction's operand maps, and
// the sums compared with plain loops.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>
#include <vector>

#include "formats/group_int_a8/cuda/few_tokens_layout.h"
#include "formats/quik/cuda/mma_layout.h"

namespace nibble::quik_cuda {
namespace {

using group_int_a8_cuda::FewTokensShape;

// One tile of 16 outputs by 8 tokens; every column of the slabs, beyond the linear's too.
struct TileCase {
  FewTokensShape shape;
  std::vector<int8_t> weights;  // [16, columns]
  std::vector<uint8_t> slots;
  std::vector<uint8_t> codes;  // [8, columns]

  TileCase(int columns, int weight_bits, int activation_bits) {
    shape.n = 16;
    shape.columns = columns;
    shape.weight_bits = weight_bits;
    std::mt19937 generator(columns + weight_bits);
    std::uniform_int_distribution<int> weight(-(1 << (weight_bits - 1)), (1 << (weight_bits - 1)) - 1);
    std::uniform_int_distribution<int> code(0, (1 << activation_bits) - 1);
    slots.resize(static_cast<size_t>(shape.bytes()));
    for (int row = 0; row < 16; ++row) {
      for (int c = 0; c < columns; ++c) weights.push_back(static_cast<int8_t>(weight(generator)));
      place_row(shape, row, weights.data() + row * columns, nullptr, slots.data());
    }
    for (int i = 0; i < 8 * columns; ++i) codes.push_back(static_cast<uint8_t>(code(generator)));
  }
  int columns() const { return static_cast<int>(shape.columns); }

  int sum(int row, int token) const {
    int total = 0;
    for (int c = 0; c < columns(); ++c)
      total += weights[static_cast<size_t>(row * columns() + c)] *
               codes[static_cast<size_t>(token * columns() + c)];
    return total;
  }
  // A lane's 16 bytes of weights.
  void vector(int number, int lane, uint32_t (&words)[4]) const {
    std::memcpy(words, slots.data() + 512 * number + 16 * lane, 16);
  }
};

using Tile = std::vector<std::vector<int>>;  // [16][8]

// d += a b of m16n8kK with numbers of kBits, from the registers of 32 lanes (PTX ISA, "mma").
template <int kBits>
void multiply(const std::vector<Registers>& a, const std::vector<std::array<uint32_t, 2>>& b, Tile* d) {
  constexpr int kPerWord = 32 / kBits;
  const auto number = [](uint32_t word, int i, bool is_signed) {
    const int value = static_cast<int>(word >> (kBits * i) & ((1u << kBits) - 1));
    return is_signed && value >= 1 << (kBits - 1) ? value - (1 << kBits) : value;
  };
  for (int g = 0; g < 8; ++g) {
    for (int token = 0; token < 8; ++token) {
      for (int q = 0; q < 4; ++q) {
        for (int half = 0; half < 2; ++half) {  // columns from 0, and from the middle of K
          for (int i = 0; i < kPerWord; ++i) {
            const int code =
                number(b[static_cast<size_t>(4 * token + q)][static_cast<size_t>(half)], i, false);
            const Registers& lane = a[static_cast<size_t>(4 * g + q)];
            (*d)[static_cast<size_t>(g)][static_cast<size_t>(token)] +=
                number(lane.word[2 * half], i, true) * code;
            (*d)[static_cast<size_t>(g + 8)][static_cast<size_t>(token)] +=
                number(lane.word[2 * half + 1], i, true) * code;
          }
        }
      }
    }
  }
}

Tile zeros() { return Tile(16, std::vector<int>(8, 0)); }

void expect_sums(const TileCase& tile, const Tile& sums, int divisor) {
  for (int row = 0; row < 16; ++row) {
    for (int token = 0; token < 8; ++token) {
      EXPECT_EQ(sums[static_cast<size_t>(row)][static_cast<size_t>(token)], divisor * tile.sum(row, token))
          << "row " << row << " token " << token;
    }
  }
}

class MmaLayout : public ::testing::TestWithParam<int> {};  // columns

TEST_P(MmaLayout, FourBitProductsOfPairedCodes) {
  const TileCase tile(GetParam(), 4, 4);
  const int bytes = paired_code_bytes(tile.columns());
  std::vector<uint8_t> paired(static_cast<size_t>(8 * bytes));
  for (int token = 0; token < 8; ++token) {
    for (int c = 0; c < tile.columns(); ++c) {
      paired[static_cast<size_t>(token * bytes + paired_code_byte(c))] |= static_cast<uint8_t>(
          tile.codes[static_cast<size_t>(token * tile.columns() + c)] << paired_code_shift(c));
    }
  }
  Tile sums = zeros();
  for (int slab = 0; slab < bytes / 64; ++slab) {
    for (int step = 0; step < 2; ++step) {
      std::vector<Registers> a;
      std::vector<std::array<uint32_t, 2>> b;
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t words[4], codes[4];
        tile.vector(2 * slab + step, lane, words);
        a.push_back(pair_codes(words));
        std::memcpy(codes, paired.data() + lane / 4 * bytes + 64 * slab + 16 * (lane % 4), 16);
        b.push_back({codes[2 * step], codes[2 * step + 1]});
      }
      multiply<4>(a, b, &sums);
    }
  }
  expect_sums(tile, sums, 1);
}

// Codes of one byte, rows padded with anything to 64 bytes.
std::vector<std::array<uint32_t, 2>> byte_operands(const TileCase& tile, int slab, int step) {
  std::vector<std::array<uint32_t, 2>> b;
  for (int lane = 0; lane < 32; ++lane) {
    uint8_t bytes[16];
    for (int i = 0; i < 16; ++i) {
      const int c = 64 * slab + 16 * (lane % 4) + i;
      bytes[i] = c < tile.columns() ? tile.codes[static_cast<size_t>(lane / 4 * tile.columns() + c)] : 0xAB;
    }
    std::array<uint32_t, 2> words;
    std::memcpy(words.data(), bytes + 8 * step, 8);
    b.push_back(words);
  }
  return b;
}

TEST_P(MmaLayout, BytesFromFourBitWeights) {
  const TileCase tile(GetParam(), 4, 8);
  Tile sums = zeros();
  for (int slab = 0; slab < (tile.columns() + 63) / 64; ++slab) {
    for (int step = 0; step < 2; ++step) {
      std::vector<Registers> a;
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t words[4];
        tile.vector(slab, lane, words);
        a.push_back(expand_codes(words, step));
      }
      multiply<8>(a, byte_operands(tile, slab, step), &sums);
    }
  }
  expect_sums(tile, sums, 16);
}

TEST_P(MmaLayout, BytesFromBytes) {
  const TileCase tile(GetParam(), 8, 8);
  Tile sums = zeros();
  for (int slab = 0; slab < (tile.columns() + 63) / 64; ++slab) {
    for (int step = 0; step < 2; ++step) {
      std::vector<Registers> a;
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t words[4];
        tile.vector(2 * slab + step, lane, words);
        a.push_back({{words[0], words[1], words[2], words[3]}});
      }
      multiply<8>(a, byte_operands(tile, slab, step), &sums);
    }
  }
  expect_sums(tile, sums, 1);
}

INSTANTIATE_TEST_SUITE_P(Columns, MmaLayout, ::testing::Values(1, 16, 63, 64, 65, 128, 200, 256, 300, 1030));

TEST(MmaPlaces, PairedPlacesAreDistinctAndFillUnits) {
  std::vector<int> taken(kPairedUnit, 0);
  for (int c = 0; c < kPairedUnit; ++c) {
    ASSERT_LT(paired_code_byte(c), kPairedUnit / 2);
    ++taken[static_cast<size_t>(2 * paired_code_byte(c) + paired_code_shift(c) / 4)];
    EXPECT_EQ(paired_code_byte(c + kPairedUnit), paired_code_byte(c) + kPairedUnit / 2);
  }
  for (const int count : taken) EXPECT_EQ(count, 1);
}

// How the quantization kernel makes a lane's 16 bytes from codes of one byte each.
TEST(MmaPlaces, PairsOfWordsAreTheirPlaces) {
  std::vector<uint8_t> codes(kPairedUnit), expected(kPairedUnit / 2);
  for (int c = 0; c < kPairedUnit; ++c) {
    codes[static_cast<size_t>(c)] = static_cast<uint8_t>(c * 7 % 16);
    expected[static_cast<size_t>(paired_code_byte(c))] |=
        static_cast<uint8_t>(codes[static_cast<size_t>(c)] << paired_code_shift(c));
  }
  for (int at = 0; at < kPairedUnit / 2; at += 16) {
    uint32_t first[4], second[4], made[4];
    std::memcpy(first, codes.data() + at, 16);
    std::memcpy(second, codes.data() + at + 64, 16);
    made[0] = pair_low_nibbles(first[0], first[1]);
    made[1] = pair_low_nibbles(first[2], first[3]);
    made[2] = pair_low_nibbles(second[0], second[1]);
    made[3] = pair_low_nibbles(second[2], second[3]);
    EXPECT_EQ(std::memcmp(made, expected.data() + at, 16), 0) << "byte " << at;
  }
}

}  // namespace
}  // namespace nibble::quik_cuda
