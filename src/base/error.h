// Two kinds of fault. A bad file, option or request throws Error with one message that names the file, the
// tensor, the value and what was expected; the program prints it and exits with 1 (UsageError: 2,
// Interrupted: 130). A programmer's fault fails NIBBLE_CHECK and aborts with its place.
#pragma once

#include <stdexcept>
#include <string>

#include "base/format.h"

namespace nibble {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Wrong use of the command line or of an API option: exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

// The user asked to stop (Ctrl-C): exit code 130.
class Interrupted : public Error {
 public:
  Interrupted() : Error("interrupted") {}
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(format_arguments(text, fmt::make_format_args(args...)));
}

template <typename... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> text, Args&&... args) {
  throw UsageError(format_arguments(text, fmt::make_format_args(args...)));
}

[[noreturn]] void check_failed(const char* condition, const char* file, int line);

}  // namespace nibble

// An invariant of the program itself, kept in release builds; never for input.
#define NIBBLE_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::nibble::check_failed(#condition, __FILE__, __LINE__))
