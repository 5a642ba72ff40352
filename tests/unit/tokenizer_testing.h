// Small tokenizers made in code, for the tests of the tokenizers.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "temporary_folder.h"
#include "tokenizers/byte_level.h"
#include "tokenizers/tokenizer.h"
#include "tokenizers/unicode.h"

namespace nibble {

inline void write_file(const std::filesystem::path& path, std::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  ASSERT_TRUE(file.good()) << path;
}

inline Json byte_level(bool use_regex = false, bool add_prefix_space = false) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

// A byte-level BPE: 256 bytes (ids 0 to 255, id = byte), then one token per merge.
inline Json byte_level_tokenizer(const std::vector<std::pair<std::string, std::string>>& merges = {}) {
  Json vocab = Json::object(), list = Json::array();
  for (int byte = 0; byte < 256; ++byte) {
    std::string text;
    append_utf8(text, byte_level_character(static_cast<uint8_t>(byte)));
    vocab[text] = byte;
  }
  int next = 256;
  for (const auto& [left, right] : merges) {
    list.push_back({left, right});
    if (!vocab.contains(left + right)) vocab[left + right] = next++;
  }
  return {{"version", "1.0"},
          {"added_tokens", Json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level()},
          {"post_processor", nullptr},
          {"decoder", byte_level()},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}};
}

inline std::unique_ptr<Tokenizer> load(const Json& tokenizer, const Json& config = nullptr) {
  const testing::TemporaryFolder folder;
  write_file(folder.path() / "tokenizer.json", tokenizer.dump());
  if (!config.is_null()) write_file(folder.path() / "tokenizer_config.json", config.dump());
  return Tokenizer::from_folder(folder.path());
}

inline std::vector<int32_t> encode_plain(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(text, {.add_special = false, .parse_special = true});
}

// Random text: ASCII, white space, letters of several scripts, marks, symbols beyond the first plane.
inline std::string random_text(std::mt19937& random, size_t characters) {
  static constexpr char32_t kOdd[] = {' ',    ' ',    '\n',   '\t',   0xA0,   0x3000, 0x2581, 0x301,   0x323,
                                      0x17F,  0x130,  0xDF,   0x4F60, 0x597D, 0xD55C, 0xE44,  0x1F642, 0x200D,
                                      0xFB01, 0x2162, 0x0660, 0xFFFD, 0x0,    0x7F,   0xAD,   0x10FFFF};
  std::string text;
  for (size_t i = 0; i < characters; ++i) {
    const uint32_t pick = static_cast<uint32_t>(random());
    if (pick % 4 == 0) {
      append_utf8(text, kOdd[random() % std::size(kOdd)]);
    } else if (pick % 4 == 1) {
      append_utf8(text, static_cast<char32_t>(random() % 0x3000));
    } else {
      text += static_cast<char>('a' + random() % 8);
    }
  }
  return text;
}

inline std::string read_fixture(const std::string& name) {
  const std::filesystem::path path = std::filesystem::path(NIBBLE_TEST_DATA) / name;
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace nibble
