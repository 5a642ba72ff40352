// Text formatting for messages: fmt's syntax, compiled once (format.cc) so that including this stays cheap.
#pragma once

#include <fmt/core.h>

#include <string>
#include <utility>

namespace nibble {

std::string format_arguments(fmt::string_view text, fmt::format_args args);

template <typename... Args>
std::string format_text(fmt::format_string<Args...> text, Args&&... args) {
  return nibble::format_arguments(text, fmt::make_format_args(args...));
}

// "1.25 GiB", "98.0 MiB", "17 B".
std::string format_bytes(double bytes);
// "0.4 s", "75 s", "12 min 05 s", "3 h 20 min".
std::string format_seconds(double seconds);

}  // namespace nibble
