// Messages for people, on standard error. Results go to standard output and never through here.
#pragma once

#include <string>
#include <utility>

#include "base/format.h"

namespace nibble {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Messages below this level are dropped; kInfo by default, kDebug with -v.
void set_log_level(LogLevel level);
void log_message(LogLevel level, const std::string& text);

template <typename... Args>
void log_debug(fmt::format_string<Args...> text, Args&&... args) {
  log_message(LogLevel::kDebug, format_arguments(text, fmt::make_format_args(args...)));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> text, Args&&... args) {
  log_message(LogLevel::kInfo, format_arguments(text, fmt::make_format_args(args...)));
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> text, Args&&... args) {
  log_message(LogLevel::kWarning, format_arguments(text, fmt::make_format_args(args...)));
}

// One line that says how far long work is, with the time left. On a terminal it redraws in place; elsewhere
// it prints a plain line at most every few seconds and at the end.
class Progress {
 public:
  Progress(std::string label, double total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // `done` in the units of total; `detail` is appended (for example "block 3/30, error 1.2e-3").
  void update(double done, const std::string& detail = "");
  // Prints the final line once; the destructor does nothing after it.
  void finish(const std::string& detail = "");

 private:
  void print(double done, const std::string& detail, bool last);
  std::string label_;
  double total_;
  double started_;
  double last_printed_ = 0;
  bool finished_ = false;
};

// While it lives, the labels of progress lines begin with its text ("[2/7 quik-4b] quantizing"): work of many
// steps says which one speaks. One at a time.
class ProgressScope {
 public:
  explicit ProgressScope(std::string text);
  ~ProgressScope();
  ProgressScope(const ProgressScope&) = delete;
  ProgressScope& operator=(const ProgressScope&) = delete;
};

// Seconds of a steady clock, for measuring.
double monotonic_seconds() noexcept;

}  // namespace nibble
