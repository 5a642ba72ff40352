#include "program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace nibble::e2e {
namespace {

constexpr int kTimeoutSeconds = 300;

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
    read = ends[0];
    write = ends[1];
  }
};

void close_descriptor(int* descriptor) {
  if (*descriptor >= 0) close(*descriptor);
  *descriptor = -1;
}

}  // namespace

Running::Running(const std::vector<std::string>& arguments, const Surroundings& surroundings)
    : input_text_(surroundings.input) {
  std::vector<std::string> all = {NIBBLE_PROGRAM};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);

  Pipe output, error, input;
  process_ = fork();
  if (process_ < 0) throw std::runtime_error("fork failed");
  if (process_ == 0) {
    dup2(input.read, STDIN_FILENO);
    dup2(error.write, STDERR_FILENO);
    if (surroundings.close_output) {
      close(STDOUT_FILENO);
    } else if (!surroundings.output_path.empty()) {
      dup2(open(surroundings.output_path.c_str(), O_WRONLY | O_CREAT, 0644), STDOUT_FILENO);
    } else {
      dup2(output.write, STDOUT_FILENO);
    }
    for (const std::string& variable : surroundings.environment) {
      const size_t equals = variable.find('=');
      setenv(variable.substr(0, equals).c_str(), variable.substr(equals + 1).c_str(), 1);
    }
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(output.write);
  close(error.write);
  close(input.read);
  output_ = output.read;
  error_ = error.read;
  input_ = input.write;
  // The texts given to the program fit into a pipe's buffer.
  if (write(input_, input_text_.data(), input_text_.size()) != static_cast<ssize_t>(input_text_.size())) {
    ADD_FAILURE() << "cannot write the input";
  }
  close_descriptor(&input_);
}

Running::~Running() {
  if (process_ > 0) {
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  close_descriptor(&output_);
  close_descriptor(&error_);
  close_descriptor(&input_);
}

std::string Running::read_some() {
  char buffer[4096];
  const ssize_t count = read(output_, buffer, sizeof buffer);
  const std::string text(buffer, static_cast<size_t>(std::max<ssize_t>(count, 0)));
  result_.out += text;
  return text;
}

void Running::wait_for_error_text(const std::string& text) {
  while (result_.err.find(text) == std::string::npos) {
    char buffer[4096];
    const ssize_t count = read(error_, buffer, sizeof buffer);
    if (count <= 0) {
      ADD_FAILURE() << "never printed '" << text << "' but: " << result_.err;
      return;
    }
    result_.err.append(buffer, static_cast<size_t>(count));
  }
}

void Running::close_output() { close_descriptor(&output_); }
void Running::send(int signal) { kill(process_, signal); }

Result Running::finish() {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(kTimeoutSeconds);
  while (output_ >= 0 || error_ >= 0) {
    pollfd streams[2] = {{output_, POLLIN, 0}, {error_, POLLIN, 0}};
    poll(streams, 2, 1000);
    for (int i = 0; i < 2; ++i) {
      int* descriptor = i == 0 ? &output_ : &error_;
      if (*descriptor < 0 || streams[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t count = read(*descriptor, buffer, sizeof buffer);
      if (count <= 0) {
        close_descriptor(descriptor);
      } else {
        (i == 0 ? result_.out : result_.err).append(buffer, static_cast<size_t>(count));
      }
    }
    if (std::chrono::steady_clock::now() > deadline) {
      ADD_FAILURE() << "the program did not end within " << kTimeoutSeconds << " s";
      kill(process_, SIGKILL);
      break;
    }
  }
  int status = 0;
  waitpid(process_, &status, 0);
  process_ = -1;
  result_.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result_;
}

Result nibble(const std::vector<std::string>& arguments, const Surroundings& surroundings) {
  return Running(arguments, surroundings).finish();
}

Json nibble_json(std::vector<std::string> arguments, const Surroundings& surroundings) {
  arguments.push_back("--json");
  const Result result = nibble(arguments, surroundings);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(result.out.ends_with("\n"));
  Json json = Json::parse(result.out, nullptr, false);
  EXPECT_TRUE(json.is_object()) << "not one JSON object: " << result.out;
  return json;
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "nibble-e2e-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::string fixture(const std::string& name) { return std::string(NIBBLE_TEST_DATA) + "/" + name; }

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

Json read_json(const std::filesystem::path& path) { return Json::parse(read_file(path)); }

}  // namespace nibble::e2e
