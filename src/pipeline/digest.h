// SHA-256, for provenance.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace nibble {

std::string sha256_hex(std::span<const std::byte> bytes);
// Throws Error when the file cannot be read.
std::string sha256_hex_of_file(const std::filesystem::path& path);

}  // namespace nibble
