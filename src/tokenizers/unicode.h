// UTF-8 and the few Unicode properties that tokenizers are defined by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

inline constexpr char32_t kReplacementCharacter = 0xFFFD;

// The character at `position` of valid UTF-8 and its length in bytes (1 to 4).
struct Utf8Character {
  char32_t code;
  uint32_t length;
};
Utf8Character utf8_at(std::string_view text, size_t position) noexcept;

// Bytes of the character that starts with this byte, for valid UTF-8.
inline uint32_t utf8_length(char lead) noexcept {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1u : byte < 0xE0 ? 2u : byte < 0xF0 ? 3u : 4u;
}

// Appends one character; surrogates and values beyond U+10FFFF become U+FFFD.
void append_utf8(std::string& text, char32_t code);

bool is_valid_utf8(std::string_view text) noexcept;
// Every maximal invalid part becomes one U+FFFD (Unicode 15, section 3.9, table 3-8; the same as Rust's lossy
// decoding).
std::string sanitize_utf8(std::string_view text);

// Turns a stream of bytes into whole characters, holding back an unfinished one.
class Utf8Assembler {
 public:
  // What an invalid sequence turns into: one U+FFFD in all, or one for each of its bytes.
  enum class Invalid { kOnePerSequence, kOnePerByte };
  explicit Utf8Assembler(Invalid invalid) : invalid_(invalid) {}

  void push(std::string_view bytes, std::string& out);
  // Ends the stream: an unfinished character is invalid.
  void finish(std::string& out);

 private:
  void reject(std::string& out);
  Invalid invalid_;
  char pending_[4] = {};
  uint32_t count_ = 0;   // bytes in pending_
  uint32_t needed_ = 0;  // length of the character they begin
};

bool is_white_space(char32_t code) noexcept;  // property White_Space
bool is_numeric(char32_t code) noexcept;      // general category N
bool is_punctuation(char32_t code) noexcept;  // general category P, or ASCII punctuation
bool is_mark(char32_t code) noexcept;         // general category M
// Letters, marks, decimal digits, connector punctuation: what a word consists of.
bool is_word_character(char32_t code) noexcept;
void append_lowercase(std::string& text, char32_t code);  // full, context-free mapping

enum class NormalizationForm { kNfc, kNfd, kNfkc, kNfkd };
// Of valid UTF-8. Linear but for sorting runs of combining marks.
std::string normalize_utf8(std::string_view text, NormalizationForm form);

}  // namespace nibble
