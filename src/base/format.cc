#ifndef FMT_HEADER_ONLY
#define FMT_HEADER_ONLY  // the one translation unit that carries fmt's code, so that no shared libfmt is
                         // needed
#endif
#include "base/format.h"

#include <fmt/format.h>

#include <cmath>

namespace nibble {

std::string format_arguments(fmt::string_view text, fmt::format_args args) {
  return fmt::vformat(text, args);
}

std::string format_bytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (std::fabs(bytes) >= 1024.0 && unit < 4) {
    bytes /= 1024.0;
    ++unit;
  }
  if (unit == 0) return format_text("{:.0f} B", bytes);
  return bytes < 10 ? format_text("{:.2f} {}", bytes, kUnits[unit])
                    : format_text("{:.1f} {}", bytes, kUnits[unit]);
}

std::string format_seconds(double seconds) {
  if (seconds < 10) return format_text("{:.1f} s", seconds);
  if (seconds < 120) return format_text("{:.0f} s", seconds);
  const auto whole = static_cast<long long>(std::llround(seconds));
  if (whole < 3600) return format_text("{} min {:02} s", whole / 60, whole % 60);
  return format_text("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace nibble
