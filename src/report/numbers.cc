#include "report/numbers.h"

#include <algorithm>
#include <vector>

#include "base/format.h"

namespace nibble {

std::string short_number(double value, int digits) {
  if (!std::isfinite(value)) return kNoNumber;
  const double magnitude = std::fabs(value);
  if (magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e7))
    return format_text("{:.{}e}", value, digits - 1);
  const int before = magnitude >= 1 ? static_cast<int>(std::floor(std::log10(magnitude))) + 1 : 0;
  if (before >= 1 || magnitude == 0)
    return format_text("{:.{}f}", value, std::max(0, digits - std::max(1, before)));
  const int zeros = -static_cast<int>(std::floor(std::log10(magnitude))) - 1;
  return format_text("{:.{}f}", value, digits + zeros);
}

std::string fixed_number(double value, int decimals) {
  return std::isfinite(value) ? format_text("{:.{}f}", value, decimals) : kNoNumber;
}

std::string percent_text(double share) {
  return std::isfinite(share) ? format_text("{:.1f} %", 100 * share) : kNoNumber;
}

std::string percent_with_error(const Measured& measured) {
  if (!std::isfinite(measured.value)) return kNoNumber;
  if (!std::isfinite(measured.standard_error)) return percent_text(measured.value);
  return format_text("{:.1f} +- {:.1f} %", 100 * measured.value, 100 * measured.standard_error);
}

std::string bytes_text(double bytes) { return std::isfinite(bytes) ? format_bytes(bytes) : kNoNumber; }
std::string seconds_text(double seconds) {
  return std::isfinite(seconds) ? format_seconds(seconds) : kNoNumber;
}

std::string shares_text(const std::map<std::string, double>& shares) {
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [name, share] : shares) order.emplace_back(-share, name);
  std::sort(order.begin(), order.end());
  std::string text;
  for (const auto& [share, name] : order)
    text += format_text("{}{} {:.1f} %", text.empty() ? "" : ", ", name, -100 * share);
  return text.empty() ? kNoNumber : text;
}

}  // namespace nibble
