// The version of the program and its library.
#pragma once

namespace nibble {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace nibble
