// Runs a fuzz target without libFuzzer: every seed, every truncation of the short ones, then mutations drawn
// from a fixed random seed, so that each run does the same.
//
//   fuzz_gguf [--mutations N] [--seed S]      run (default 20000 mutations, seed 1)
//   fuzz_gguf --write-corpus FOLDER           write the seeds as files, for libFuzzer
//   fuzz_gguf FILE...                         run these inputs
//
// On a failure the input is written to <program>.failed in the working directory.
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "fuzz/fuzz_target.h"

// Provided by AddressSanitizer where it is linked in.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

constexpr size_t kLargestInput = 1 << 16;

const std::string* current_input = nullptr;
std::string failed_path;

// Keeps the input that broke the target. Only async-signal-safe calls.
void save_current_input() {
  if (current_input == nullptr) return;
  const int file = open(failed_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return;
  const bool saved = write(file, current_input->data(), current_input->size()) >= 0;
  close(file);
  current_input = nullptr;
  constexpr char kNote[] = "fuzz replay: the failing input is in <program>.failed\n";
  if (saved && write(STDERR_FILENO, kNote, sizeof(kNote) - 1) < 0) return;
}

void on_signal(int signal_number) {
  save_current_input();
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

void run(const std::string& input) {
  current_input = &input;
  // An exact heap copy, so that AddressSanitizer sees reads beyond the end.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  current_input = nullptr;
}

class Mutator {
 public:
  Mutator(const std::vector<std::string>& seeds, uint64_t seed) : seeds_(seeds), random_(seed) {}

  std::string next() {
    std::string input = seeds_[below(seeds_.size())];
    for (size_t change = 0, changes = 1 + below(4); change < changes; ++change) mutate(input);
    if (input.size() > kLargestInput) input.resize(kLargestInput);
    return input;
  }

 private:
  size_t below(size_t count) { return static_cast<size_t>(random_() % count); }

  // A number that tends to break length checks, of 1, 2, 4 or 8 bytes.
  std::string interesting() {
    static constexpr uint64_t kValues[] = {
        0,           1,          2,          3,          7,          8,          31,
        32,          33,         63,         64,         100,        127,        128,
        255,         256,        0x7fff,     0xffff,     0x7fffffff, 0x80000000, 0xffffffff,
        0x100000000, 1ull << 60, 1ull << 62, 1ull << 63, ~0ull,      ~0ull - 1,  ~0ull - 31};
    const uint64_t value = kValues[below(std::size(kValues))];
    std::string bytes(size_t{1} << below(4), '\0');
    std::memcpy(bytes.data(), &value, bytes.size());
    return bytes;
  }

  void mutate(std::string& input) {
    if (input.empty()) input.push_back(static_cast<char>(random_()));
    const size_t at = below(input.size());
    switch (below(8)) {
      case 0:
        input[at] = static_cast<char>(input[at] ^ (1 << below(8)));
        return;
      case 1:
        input[at] = static_cast<char>(random_());
        return;
      case 2:
        input[at] = static_cast<char>(input[at] + (below(2) == 0 ? 1 : -1));
        return;
      case 3: {
        const std::string bytes = interesting();
        input.replace(at, std::min(bytes.size(), input.size() - at), bytes);
        return;
      }
      case 4:
        input.resize(at);
        return;
      case 5:
        input.erase(at, 1 + below(16));
        return;
      case 6: {  // repeat a part of it elsewhere
        const std::string part = input.substr(at, 1 + below(64));
        input.insert(below(input.size() + 1), part);
        return;
      }
      default: {  // continue as another seed does
        const std::string& other = seeds_[below(seeds_.size())];
        input = input.substr(0, at) + (other.empty() ? other : other.substr(below(other.size())));
        return;
      }
    }
  }

  const std::vector<std::string>& seeds_;
  std::mt19937_64 random_;
};

int write_corpus(const std::vector<std::string>& seeds, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  for (size_t i = 0; i < seeds.size(); ++i) {
    std::ofstream file(folder / ("seed-" + std::to_string(i)), std::ios::binary);
    if (!(file << seeds[i])) {
      std::cerr << folder.string() << ": cannot write\n";
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  failed_path = std::filesystem::path(argv[0]).filename().string() + ".failed";
  for (const int signal_number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL})
    std::signal(signal_number, on_signal);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(save_current_input);

  const std::vector<std::string> seeds = nibble::fuzz::fuzz_seeds();
  size_t mutations = 20000;
  uint64_t seed = 1;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--write-corpus" && i + 1 < argc) return write_corpus(seeds, argv[i + 1]);
    if (argument == "--mutations" && i + 1 < argc) {
      mutations = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (!argument.starts_with("--")) {  // options of GoogleTest are for the other test programs
      files.push_back(argument);
    }
  }
  if (!files.empty()) {
    for (const std::string& path : files) {
      std::ifstream file(path, std::ios::binary);
      run(std::string(std::istreambuf_iterator<char>(file), {}));
    }
    return 0;
  }

  size_t runs = 0;
  for (const std::string& input : seeds) {
    run(input);
    ++runs;
    if (input.size() > 4096) continue;
    for (size_t size = 0; size < input.size(); ++size, ++runs) run(input.substr(0, size));
  }
  Mutator mutator(seeds, seed);
  for (size_t i = 0; i < mutations; ++i, ++runs) run(mutator.next());
  std::cout << seeds.size() << " seeds, " << runs << " inputs, no findings\n";
  return 0;
}
