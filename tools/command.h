// What the program's subcommands share. A subcommand is one file with an add_<name>() and one line in
// main.cc's table.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/thread_pool.h"
#include "runtime/engine.h"

namespace nibble {

// Exit codes of the contract. Failures throw Error; main() turns them into kExitFailed, UsageError into
// kExitUsage and Interrupted into kExitInterrupted.
inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

// Runs a subcommand after its options were parsed; returns the exit code.
using Action = std::function<int()>;

// Adds a subcommand's options to its CLI::App. Values live in what the returned action captures.
using AddCommand = Action (*)(CLI::App& command);

// Options that every command has.
struct CommonOptions {
  bool json = false;  // results as one JSON object on standard output
  int threads = 0;    // 0: available_cores()
  std::string device = "auto";
  bool verbose = false;

  bool strict = false;

  // Sets the log level and checks the device: to be called first by an action, which says whether it can use
  // a GPU. Throws Error for a device that this program cannot use.
  void apply(bool uses_gpu = false) const;
  // For Engine::open().
  EngineDevice engine_device() const;
};
std::shared_ptr<CommonOptions> add_common_options(CLI::App& command);
// The positional MODEL, required.
CLI::Option* add_model_argument(CLI::App& command, std::filesystem::path* model);
// --cache-type, --cache-type-k and --cache-type-v (-ctk and -ctv as in llama.cpp). The two texts hold the
// default, which the help says.
void add_cache_options(CLI::App& command, std::string* keys, std::string* values);
// The end of a help text: examples, one command line each, after an optional note.
void set_examples(CLI::App& command, std::initializer_list<const char*> lines, const std::string& note = "");
// A check for options: a whole number from `least` to `most`, told as such when it is not.
CLI::Validator whole_number(int64_t least, int64_t most = int64_t{1} << 40);

// Standard output. A reader that went away (a closed pipe) ends the program quietly: OutputClosed passes
// through main().
class OutputClosed {};
// Throws OutputClosed, or Error when writing fails for another reason (a full disk).
void write_output(std::string_view text);
void flush_output();

// The whole content of a file, or of standard input for "-". Throws Error naming it.
std::string read_text(const std::filesystem::path& path);

Action add_quantize(CLI::App& command);
Action add_run(CLI::App& command);
Action add_perplexity(CLI::App& command);
Action add_logits(CLI::App& command);
Action add_tokenize(CLI::App& command);
Action add_inspect(CLI::App& command);
Action add_bench(CLI::App& command);
Action add_compare(CLI::App& command);
Action add_evaluate(CLI::App& command);
Action add_doctor(CLI::App& command);

}  // namespace nibble
