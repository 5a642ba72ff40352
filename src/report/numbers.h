// Numbers as readers want them.
#pragma once

#include <map>
#include <string>

#include "report/comparison.h"

namespace nibble {

inline constexpr const char* kNoNumber = "-";

// All give kNoNumber for what is not finite.
// About `digits` significant digits, no exponent between 1e-4 and 1e7: "50.81", "0.1574", "1454", "3.1e-05".
std::string short_number(double value, int digits = 4);
std::string fixed_number(double value, int decimals);
std::string percent_text(double share);  // "75.4 %"
std::string percent_with_error(const Measured& measured);
std::string bytes_text(double bytes);
std::string seconds_text(double seconds);
// "int4xint4->int32 71.0 %, 16-bit weights 3.0 %", the largest first.
std::string shares_text(const std::map<std::string, double>& shares);

}  // namespace nibble
