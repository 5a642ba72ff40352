#ifndef FMT_HEADER_ONLY
#define FMT_HEADER_ONLY
#endif
#ifndef SPDLOG_FMT_EXTERNAL
#define SPDLOG_FMT_EXTERNAL
#endif
#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>

namespace nibble {
namespace {

spdlog::logger& logger() {
  static const auto instance = [] {
    const bool colour = std::getenv("NO_COLOR") == nullptr;
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(colour ? spdlog::color_mode::automatic
                                                                             : spdlog::color_mode::never);
    auto made = std::make_shared<spdlog::logger>("nibble", std::move(sink));
    made->set_pattern("%^%v%$");
    made->set_level(spdlog::level::info);
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *instance;
}

bool stderr_is_terminal() {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  return terminal;
}

std::string& progress_scope() {
  static std::string text;
  return text;
}

}  // namespace

void set_log_level(LogLevel level) {
  static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                          spdlog::level::warn, spdlog::level::err};
  logger().set_level(kLevels[static_cast<int>(level)]);
}

void log_message(LogLevel level, const std::string& text) {
  switch (level) {
    case LogLevel::kDebug:
      logger().debug("{}", text);
      break;
    case LogLevel::kInfo:
      logger().info("{}", text);
      break;
    case LogLevel::kWarning:
      logger().warn("warning: {}", text);
      break;
    case LogLevel::kError:
      logger().error("error: {}", text);
      break;
  }
}

double monotonic_seconds() noexcept {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

ProgressScope::ProgressScope(std::string text) { progress_scope() = std::move(text) + " "; }
ProgressScope::~ProgressScope() { progress_scope().clear(); }

Progress::Progress(std::string label, double total)
    : label_(progress_scope() + std::move(label)), total_(total), started_(monotonic_seconds()) {}

Progress::~Progress() {
  if (!finished_ && stderr_is_terminal() && last_printed_ > 0) std::fputc('\n', stderr);
}

void Progress::update(double done, const std::string& detail) {
  const double now = monotonic_seconds();
  const double interval = stderr_is_terminal() ? 0.1 : 5.0;
  if (now - last_printed_ < interval) return;
  last_printed_ = now;
  print(done, detail, false);
}

void Progress::finish(const std::string& detail) {
  if (finished_) return;
  finished_ = true;
  print(total_, detail, true);
}

void Progress::print(double done, const std::string& detail, bool last) {
  if (!logger().should_log(spdlog::level::info)) return;
  const double elapsed = monotonic_seconds() - started_;
  std::string line = format_text("{} {:3.0f} %", label_, total_ > 0 ? 100.0 * done / total_ : 100.0);
  if (last) {
    line += ", took " + format_seconds(elapsed);
  } else if (done > 0) {
    line += ", " + format_seconds(elapsed * (total_ - done) / done) + " left";
  }
  if (!detail.empty()) line += ", " + detail;
  if (stderr_is_terminal()) {
    std::fprintf(stderr, "\r%s\033[K%s", line.c_str(), last ? "\n" : "");
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

}  // namespace nibble
