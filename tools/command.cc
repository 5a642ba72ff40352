#include "command.h"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "models/kv_cache.h"

namespace nibble {

std::shared_ptr<CommonOptions> add_common_options(CLI::App& command) {
  auto options = std::make_shared<CommonOptions>();
  command.add_flag("--json", options->json, "Print one JSON object on standard output");
  command
      .add_option("-t,--threads", options->threads,
                  "Threads to compute with (default: the cores this process may use)")
      ->check(whole_number(1, 1024))
      ->type_name("N");
  command.add_option("--device", options->device, "cpu, cuda[:N] or auto (default)")->type_name("DEVICE");
  command.add_flag("--strict", options->strict, "On a GPU: fail where something has to run on a slower path");
  command.add_flag("-v,--verbose", options->verbose, "Say more about what is going on");
  return options;
}

void CommonOptions::apply(bool uses_gpu) const {
  set_log_level(verbose ? LogLevel::kDebug : LogLevel::kInfo);
  const int gpu = parse_device(device);
  if (gpu < 0) return;
  if (!uses_gpu) fail_usage("--device {}: this command runs on the CPU", device);
  require_device(gpu);
}

EngineDevice CommonOptions::engine_device() const { return {.gpu = parse_device(device), .strict = strict}; }

CLI::Option* add_model_argument(CLI::App& command, std::filesystem::path* model) {
  return command.add_option("MODEL", *model, "Hugging Face folder, GGUF file or nibble folder")
      ->required()
      ->type_name("");
}

void add_cache_options(CLI::App& command, std::string* keys, std::string* values) {
  const auto check = CLI::Validator(
      [](std::string& name) -> std::string {
        try {
          cache_type_from_name(name, "the type");
        } catch (const UsageError& error) {
          return error.what();
        }
        return "";
      },
      "");
  command
      .add_option_function<std::string>(
          "--cache-type", [keys, values](const std::string& name) { *keys = *values = name; },
          "How keys and values are kept: f32, f16, q8 or q4 (default: " + *keys + ")")
      ->check(check)
      ->type_name("TYPE");
  command.add_option("--cache-type-k", *keys, "The same for keys only, also -ctk")
      ->check(check)
      ->type_name("TYPE");
  command.add_option("--cache-type-v", *values, "The same for values only, also -ctv")
      ->check(check)
      ->type_name("TYPE");
}

CLI::Validator whole_number(int64_t least, int64_t most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    int64_t value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && stop == text.data() + text.size() && value >= least && value <= most)
      return "";
    return format_text("'{}' is no whole number from {} to {}", text, least, most);
  };
  return CLI::Validator(check, "");
}

void set_examples(CLI::App& command, std::initializer_list<const char*> lines, const std::string& note) {
  std::string text = note.empty() ? "Examples:" : note + "\n\nExamples:";
  for (const char* line : lines) text += std::string("\n  ") + line;
  command.footer(text);
}

void write_output(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return;
  const int reason = errno;
  if (reason == EPIPE) throw OutputClosed();
  fail("standard output: cannot write: {}", std::strerror(reason));
}

void flush_output() {
  if (std::fflush(stdout) == 0) return;
  const int reason = errno;
  if (reason == EPIPE) throw OutputClosed();
  fail("standard output: cannot write: {}", std::strerror(reason));
}

std::string read_text(const std::filesystem::path& path) {
  if (path == "-") {
    std::ostringstream text;
    text << std::cin.rdbuf();
    throw_if_interrupted();
    if (std::cin.bad()) fail("standard input: cannot read");
    return std::move(text).str();
  }
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    fail("{}: is a folder, expected a text file", path.string());
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("{}: cannot open: {}", path.string(), std::strerror(errno));
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) fail("{}: cannot read", path.string());
  return std::move(text).str();
}

}  // namespace nibble
