// GPT-2's alphabet: every byte as a printable character, so that vocabularies are text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// '!'..'~', U+00A1..U+00AC and U+00AE..U+00FF stand for themselves; the other 68 bytes, in order, for U+0100
// and up.
char32_t byte_level_character(uint8_t byte) noexcept;
// -1 for a character outside the alphabet.
int byte_level_byte(char32_t code) noexcept;

// Appends the characters of the bytes.
void append_byte_level(std::string& text, std::string_view bytes);
// Appends the bytes of a token, or the token as it is when some character is outside the alphabet.
void append_byte_level_bytes(std::string& bytes, std::string_view token);

}  // namespace nibble
