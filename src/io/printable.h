// Text from untrusted files, made safe to show in a message.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

// `text` with everything but printable ASCII as \xNN, so that a file cannot send control sequences to a
// terminal, and cut after `limit` characters of the original.
std::string printable(std::string_view text, size_t limit = 120);

}  // namespace nibble
