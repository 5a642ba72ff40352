// A table of inputs that must be refused: each row becomes one test case.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "base/error.h"

namespace nibble {

struct BadCase {
  std::string name;     // of the test: letters and digits
  std::string bytes;    // the broken input
  std::string message;  // what the refusal must say
};

inline void PrintTo(const BadCase& bad, std::ostream* out) { *out << bad.name; }
inline std::string bad_case_name(const testing::TestParamInfo<BadCase>& info) { return info.param.name; }

// Runs `body`, which must throw Error with `message` in its text. Any other exception ends the test by
// itself.
template <typename Body>
void expect_error(const std::string& message, const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos)
        << "said: " << error.what() << "\nexpected: " << message;
    return;
  }
  ADD_FAILURE() << "accepted; expected a refusal that says: " << message;
}

}  // namespace nibble
