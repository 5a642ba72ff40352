#include "tokenizers/byte_level.h"

#include <array>

#include "tokenizers/unicode.h"

namespace nibble {
namespace {

constexpr int kFirstExtra = 0x100, kExtras = 68;

struct Alphabet {
  std::array<char16_t, 256> character{};
  std::array<int16_t, kFirstExtra + kExtras> byte{};
};

constexpr Alphabet make_alphabet() {
  Alphabet made;
  made.byte.fill(-1);
  int extras = 0;
  for (int i = 0; i < 256; ++i) {
    const bool printable = (i >= '!' && i <= '~') || (i >= 0xA1 && i <= 0xFF && i != 0xAD);
    const int code = printable ? i : kFirstExtra + extras++;
    made.character[static_cast<size_t>(i)] = static_cast<char16_t>(code);
    made.byte[static_cast<size_t>(code)] = static_cast<int16_t>(i);
  }
  return made;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

char32_t byte_level_character(uint8_t byte) noexcept { return kAlphabet.character[byte]; }

int byte_level_byte(char32_t code) noexcept {
  return code < kAlphabet.byte.size() ? kAlphabet.byte[code] : -1;
}

void append_byte_level(std::string& text, std::string_view bytes) {
  for (const char c : bytes) append_utf8(text, byte_level_character(static_cast<uint8_t>(c)));
}

void append_byte_level_bytes(std::string& bytes, std::string_view token) {
  const size_t start = bytes.size();
  for (size_t i = 0; i < token.size();) {
    const Utf8Character character = utf8_at(token, i);
    const int byte = byte_level_byte(character.code);
    if (byte < 0) {
      bytes.resize(start);
      bytes += token;
      return;
    }
    bytes += static_cast<char>(byte);
    i += character.length;
  }
}

}  // namespace nibble
