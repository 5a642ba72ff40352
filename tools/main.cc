// The program `nibble`: one subcommand per file, and what holds for all of them: exit codes, messages,
// signals.
#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <new>
#include <string_view>
#include <vector>

#include "backend/cpu/cpu_path.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "command.h"
#include "nibble/nibble.h"

namespace nibble {
namespace {

struct Command {
  const char* name;
  const char* description;
  AddCommand add;
};

constexpr std::array kCommands = {
    Command{"quantize", "Quantize a model with a recipe", add_quantize},
    Command{"run", "Continue a prompt", add_run},
    Command{"perplexity", "Measure how well a model predicts a text, and its distance from another",
            add_perplexity},
    Command{"logits", "Write a model's logits for given tokens to a file", add_logits},
    Command{"tokenize", "Turn text into token ids or back", add_tokenize},
    Command{"inspect", "Show what a model consists of and which kernels run it", add_inspect},
    Command{"bench", "Measure tokens per second", add_bench},
    Command{"compare", "Quantize with several recipes, measure all, and write one report", add_compare},
    Command{"evaluate", "Measure accuracy on multiple-choice and cloze tasks", add_evaluate},
    Command{"doctor", "Show what this machine offers and what would run", add_doctor},
};

// A closed descriptor 0, 1 or 2 would be handed to the next file opened, and messages would be written into
// it.
void keep_standard_descriptors() {
  for (int descriptor = 0; descriptor <= 2; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) == -1 &&
        open("/dev/null", descriptor == 0 ? O_WRONLY : O_RDONLY) != descriptor) {
      _exit(kExitFailed);
    }
  }
}

int report(const char* message, int code) {
  std::fflush(stdout);
  std::fprintf(stderr, "nibble: %s\n", message);
  return code;
}

int run_program(int argc, char** argv) {
  CLI::App app("Quantize language models with the methods of research papers and run them fast on CPUs.",
               "nibble");
  app.set_version_flag("--version", "nibble " + std::string(version()));
  app.require_subcommand(1);
  set_examples(app, {"nibble quantize MODEL -o OUT --recipe quik-4b --calib text.txt",
                     "nibble run OUT -p 'Once upon a time'",
                     "nibble perplexity OUT -f text.txt --reference MODEL", "nibble COMMAND --help"});
  std::array<std::pair<CLI::App*, Action>, kCommands.size()> actions;
  for (size_t i = 0; i < kCommands.size(); ++i) {
    CLI::App* command = app.add_subcommand(kCommands[i].name, kCommands[i].description);
    actions[i] = {command, kCommands[i].add(*command)};
  }
  // llama.cpp's spelling of two options: more than one letter behind one dash is beyond the parser.
  std::vector<const char*> arguments(argv, argv + argc);
  for (const char*& argument : arguments) {
    if (std::string_view(argument) == "-ctk") argument = "--cache-type-k";
    if (std::string_view(argument) == "-ctv") argument = "--cache-type-v";
  }
  try {
    app.parse(argc, arguments.data());
  } catch (const CLI::Success& success) {  // --help, --version
    std::ostringstream text;
    app.exit(success, text, text);
    write_output(text.str());
    flush_output();
    return kExitDone;
  } catch (const CLI::ParseError& error) {
    const std::vector<std::string> unknown = app.remaining();
    if (app.get_subcommands().empty() && !unknown.empty() && !unknown.front().starts_with('-')) {
      fail_usage("there is no command '{}'.\nSee 'nibble --help'.", unknown.front());
    }
    std::string command = "nibble";
    for (const auto& [parsed, action] : actions) {
      if (parsed->parsed()) command += " " + parsed->get_name();
    }
    fail_usage("{}\nSee '{} --help'.", error.what(), command);
  }
  active_cpu_path();  // a wrong NIBBLE_CPU is refused whatever the command
  for (const auto& [command, action] : actions) {
    if (!command->parsed()) continue;
    const int code = action();
    flush_output();
    return code;
  }
  return kExitUsage;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;
#if defined(__GLIBC__)
  // Whole matrices go back to the system when they are freed. Left to itself the allocator takes them from
  // its heap after the first few and keeps the holes: a third more memory than the quantizer's forecast.
  mallopt(M_MMAP_THRESHOLD, 256 << 10);
#endif
  keep_standard_descriptors();
  std::signal(SIGPIPE,
              SIG_IGN);  // writing to a closed pipe is an error like others, and ends the program in order
  install_interrupt_handler();
  try {
    return run_program(argc, argv);
  } catch (const OutputClosed&) {
    return kExitDone;  // the reader has what it wanted
  } catch (const Interrupted& error) {
    return report(error.what(), kExitInterrupted);
  } catch (const UsageError& error) {
    return report(error.what(), kExitUsage);
  } catch (const Error& error) {
    return report(error.what(), kExitFailed);
  } catch (const std::bad_alloc&) {
    return report(
        "out of memory: the model, its context or the batch does not fit into what this machine has left",
        kExitFailed);
  } catch (const std::exception& error) {
    return report(error.what(), kExitFailed);
  }
}
