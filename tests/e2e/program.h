// Running the program from a test.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibble::e2e {

using Json = nlohmann::json;

struct Result {
  int code = -1;    // exit code; 128 + n when a signal n ended it
  std::string out;  // standard output
  std::string err;  // standard error
};

// What a run may set beside its arguments.
struct Surroundings {
  std::vector<std::string> environment;  // "NIBBLE_CPU=scalar", added to the test's own
  std::string input;                     // on standard input
  std::string output_path;               // where standard output goes instead of being captured
  bool close_output = false;             // start without a standard output
};

// Runs `nibble arguments...` to its end; fails the test and kills it after five minutes.
Result nibble(const std::vector<std::string>& arguments, const Surroundings& surroundings = {});

// The same, expecting exit code 0 and a single JSON object on standard output, which is returned.
Json nibble_json(std::vector<std::string> arguments, const Surroundings& surroundings = {});

// A running program whose standard output can be read bit by bit.
class Running {
 public:
  explicit Running(const std::vector<std::string>& arguments, const Surroundings& surroundings = {});
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  // Blocks until at least one more byte of output came (empty at its end).
  std::string read_some();
  // Blocks until `text` was seen on standard error.
  void wait_for_error_text(const std::string& text);
  void close_output();
  void send(int signal);
  Result finish();

 private:
  pid_t process_ = -1;
  int output_ = -1, error_ = -1, input_ = -1;
  std::string input_text_;
  Result result_;
};

// A folder of this test alone, removed at its end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

std::string fixture(const std::string& name);
Json read_json(const std::filesystem::path& path);
std::string read_file(const std::filesystem::path& path);

}  // namespace nibble::e2e
