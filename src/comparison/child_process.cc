#include "comparison/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/interrupt.h"
#include "io/printable.h"

extern char** environ;

namespace nibble {
namespace {

class Pipe {
 public:
  Pipe() {
    if (::pipe2(ends_.data(), O_CLOEXEC) != 0) fail("cannot make a pipe: {}", std::strerror(errno));
  }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int read_end() const { return ends_[0]; }
  int write_end() const { return ends_[1]; }
  void close_end(int which) {
    if (ends_[static_cast<size_t>(which)] >= 0) ::close(ends_[static_cast<size_t>(which)]);
    ends_[static_cast<size_t>(which)] = -1;
  }

 private:
  std::array<int, 2> ends_ = {-1, -1};
};

// A child that is ended, and waited for, whatever happens here.
class Child {
 public:
  explicit Child(pid_t id) : id_(id) {}
  ~Child() {
    if (id_ <= 0) return;
    ::kill(id_, SIGKILL);
    wait();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  int wait() {
    int status = 0;
    while (::waitpid(id_, &status, 0) < 0 && errno == EINTR) {
    }
    id_ = -1;
    return status;
  }

 private:
  pid_t id_;
};

// Reads what is there; false at the end.
bool read_some(int descriptor, std::string* text) {
  std::array<char, 4096> buffer;
  const ssize_t count = ::read(descriptor, buffer.data(), buffer.size());
  if (count < 0) return errno == EINTR || errno == EAGAIN;
  text->append(buffer.data(), static_cast<size_t>(count));
  return count > 0;
}

std::string last_line(const std::string& text) {
  const size_t end = text.find_last_not_of("\n\r ");
  if (end == std::string::npos) return "it said nothing";
  const size_t before = text.rfind('\n', end);
  const size_t start = before == std::string::npos ? 0 : before + 1;
  return printable(text.substr(start, end + 1 - start), 400);
}

}  // namespace

std::string run_program(const std::filesystem::path& program, const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {program.string()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);

  Pipe output, error;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, output.write_end(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, error.write_end(), STDERR_FILENO);
  pid_t id = -1;
  const int code = ::posix_spawn(&id, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (code != 0) fail("{}: cannot be started: {}", program.string(), std::strerror(code));
  Child child(id);
  output.close_end(1);
  error.close_end(1);

  std::string out, err;
  std::array<pollfd, 2> waiting = {
      {{.fd = output.read_end(), .events = POLLIN}, {.fd = error.read_end(), .events = POLLIN}}};
  while (waiting[0].fd >= 0 || waiting[1].fd >= 0) {
    throw_if_interrupted();
    if (::poll(waiting.data(), waiting.size(), 200) <= 0) continue;
    if (waiting[0].revents != 0 && !read_some(waiting[0].fd, &out)) waiting[0].fd = -1;
    if (waiting[1].revents != 0 && !read_some(waiting[1].fd, &err)) waiting[1].fd = -1;
  }
  const int status = child.wait();
  throw_if_interrupted();
  if (WIFSIGNALED(status)) {
    fail("'{} {}' was ended by signal {}", program.filename().string(), arguments.empty() ? "" : arguments[0],
         WTERMSIG(status));
  }
  if (WEXITSTATUS(status) != 0) {
    fail("'{} {}' ended with exit code {}: {}", program.filename().string(),
         arguments.empty() ? "" : arguments[0], WEXITSTATUS(status), last_line(err));
  }
  return out;
}

}  // namespace nibble
