#include "pipeline/digest.h"

#include <openssl/evp.h>

#include <array>

#include "base/error.h"
#include "io/mapped_file.h"

namespace nibble {

std::string sha256_hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, 32> digest{};
  unsigned int length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr) != 1 ||
      length != digest.size()) {
    fail("SHA-256 is not available in this build of libcrypto");
  }
  std::string text;
  for (const unsigned char byte : digest) text += format_text("{:02x}", byte);
  return text;
}

std::string sha256_hex_of_file(const std::filesystem::path& path) {
  return sha256_hex(MappedFile::open(path)->bytes());
}

}  // namespace nibble
