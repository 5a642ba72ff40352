#include "io/atomic_output.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTemporaryMark = ".tmp-nibble-";
constexpr const char* kPartialMark = ".partial";

[[noreturn]] void fail_errno(const fs::path& path, const char* what, int code) {
  if (code == ENOSPC || code == EDQUOT) fail("{}: cannot {}: no space left on the disk", path.string(), what);
  fail("{}: cannot {}: {}", path.string(), what, std::strerror(code));
}

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : value_(::open(path.c_str(), flags | O_CLOEXEC)) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }
  int release() { return std::exchange(value_, -1); }

 private:
  int value_;
};

// Locks live exactly as long as their process, across containers and reused process ids.
bool locked_by_another(const fs::path& path) {
  const Descriptor descriptor(path, O_RDONLY | O_NONBLOCK);
  return descriptor.get() >= 0 && ::flock(descriptor.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

bool process_is_gone(const std::string& pid_text) {
  if (pid_text.empty() || pid_text.size() > 9 ||
      pid_text.find_first_not_of("0123456789") != std::string::npos) {
    return false;
  }
  const pid_t pid = std::stoi(pid_text);
  return pid > 0 && pid != ::getpid() && ::kill(pid, 0) != 0 && errno == ESRCH;
}

// Removes what killed runs left beside `final_path`.
void remove_stale(const fs::path& final_path) {
  const std::string prefix = final_path.filename().string() + kTemporaryMark;
  std::error_code error;
  for (fs::directory_iterator entry(final_path.parent_path(), error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(prefix) || !process_is_gone(name.substr(prefix.size())) ||
        locked_by_another(entry->path())) {
      continue;
    }
    std::error_code ignored;  // what cannot be removed only wastes space
    fs::remove_all(entry->path(), ignored);
  }
}

// "--force" with a mistyped path must not delete somebody's home: a folder is replaced only when it is empty
// or a model folder, which has a config.json and no folders inside.
void check_replaceable(const fs::path& folder) {
  bool empty = true;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    empty = false;
    if (entry.is_directory()) {
      fail("{}: not replaced, because it holds the folder '{}' and so is no model folder", folder.string(),
           entry.path().filename().string());
    }
  }
  if (!empty && !fs::exists(folder / "config.json")) {
    fail("{}: not replaced, because it has no config.json and so is no model folder", folder.string());
  }
}

void sync_path(const fs::path& path) {
  const Descriptor descriptor(path, O_RDONLY | O_NONBLOCK);
  if (descriptor.get() < 0) fail_errno(path, "open for flushing", errno);
  // Some file systems have nothing to flush and say EINVAL.
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL && errno != EROFS)
    fail_errno(path, "flush to the disk", errno);
}

void sync_tree(const fs::path& path) {
  if (fs::is_directory(fs::symlink_status(path))) {
    for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
      if (!entry.is_symlink()) sync_tree(entry.path());
    }
  }
  sync_path(path);
}

// Not every file system knows the flags of renameat2.
bool is_unsupported(int code) { return code == EINVAL || code == ENOSYS || code == ENOTSUP; }

int rename_with(const fs::path& from, const fs::path& to, unsigned flags) {
  return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0 ? 0 : errno;
}

// Where no exchange is possible: the old target steps aside under a name that no later run removes, so that a
// kill in between loses nothing.
void replace_in_two_steps(const fs::path& temporary, const fs::path& final_path) {
  fs::path aside = final_path;
  aside += ".old-nibble-" + std::to_string(::getpid());
  if (::rename(final_path.c_str(), aside.c_str()) != 0) fail_errno(final_path, "move aside", errno);
  if (::rename(temporary.c_str(), final_path.c_str()) != 0) {
    const int code = errno;
    if (::rename(aside.c_str(), final_path.c_str()) != 0) {
      fail("{}: cannot rename into place: {}; what was there is now '{}'", final_path.string(),
           std::strerror(code), aside.string());
    }
    fail_errno(final_path, "rename into place", code);
  }
  std::error_code ignored;
  fs::remove_all(aside, ignored);
}

// A path with a name to append to: absolute, symbolic links followed, no trailing slash.
fs::path resolve(const fs::path& given) {
  if (given.empty()) fail("an empty path was given for the output");
  std::error_code error;
  fs::path resolved = fs::weakly_canonical(fs::absolute(given), error);
  if (error) fail("{}: cannot resolve: {}", given.string(), error.message());
  if (!resolved.has_filename()) resolved = resolved.parent_path();
  if (!resolved.has_filename()) fail("{}: not a possible output", given.string());
  return resolved;
}

// Runs `body` with what std::filesystem throws turned into an Error.
template <typename Body>
void with_errors(const Body& body) {
  try {
    body();
  } catch (const fs::filesystem_error& error) {
    fail("{}: {}", error.path1().string(), error.code().message());
  }
}

}  // namespace

AtomicOutput::AtomicOutput(fs::path final_path, bool is_folder, bool replace)
    : AtomicOutput(std::move(final_path), is_folder, replace, /*resumable=*/false) {}

AtomicOutput AtomicOutput::resumable_folder(fs::path final_path, bool replace) {
  return AtomicOutput(std::move(final_path), /*is_folder=*/true, replace, /*resumable=*/true);
}

AtomicOutput::AtomicOutput(fs::path final_path, bool is_folder, bool replace, bool resumable)
    : final_(resolve(final_path)), is_folder_(is_folder), replace_(replace), resumable_(resumable) {
  with_errors([&] { prepare(final_path); });
}

void AtomicOutput::prepare(const fs::path& given) {
  const fs::path parent = final_.parent_path();
  const fs::file_status status = fs::symlink_status(final_);
  if (fs::is_symlink(status)) fail("{}: a symbolic link that leads nowhere", given.string());
  if (fs::exists(status)) {
    if (!replace_) fail("{}: exists already", given.string());
    if (fs::is_directory(status) != is_folder_ || (!is_folder_ && !fs::is_regular_file(status))) {
      fail("{}: cannot be replaced, it is not a {}", given.string(), is_folder_ ? "folder" : "regular file");
    }
    if (is_folder_) check_replaceable(final_);
  }
  if (!fs::is_directory(parent)) {
    fail("{}: the folder '{}' does not exist", given.string(), parent.string());
  }
  if (::access(parent.c_str(), W_OK | X_OK) != 0) fail_errno(parent, "write here", errno);

  remove_stale(final_);
  temporary_ = final_;
  temporary_ += resumable_ ? kPartialMark : kTemporaryMark + std::to_string(::getpid());
  if (resumable_ && fs::exists(fs::symlink_status(temporary_))) {
    if (!fs::is_directory(fs::symlink_status(temporary_))) {
      fail("{}: is in the way, expected a folder", temporary_.string());
    }
    if (!try_lock()) fail("{}: another process is writing it", given.string());
    return;
  }
  if (fs::exists(fs::symlink_status(temporary_))) {
    // Of a process with our id: one of another container that is at it, or one that is gone.
    if (locked_by_another(temporary_)) fail("{}: another process is writing it", given.string());
    fs::remove_all(temporary_);
  }
  if (is_folder_) {
    if (::mkdir(temporary_.c_str(), 0777) != 0) fail_errno(temporary_, "create", errno);
    try_lock();
  }
}

bool AtomicOutput::try_lock() {
  Descriptor descriptor(temporary_, O_RDONLY | O_DIRECTORY);
  if (descriptor.get() < 0 || ::flock(descriptor.get(), LOCK_EX | LOCK_NB) != 0) return false;
  lock_ = descriptor.release();
  return true;
}

AtomicOutput::~AtomicOutput() {
  if (!committed_ && !resumable_) {
    std::error_code ignored;
    fs::remove_all(temporary_, ignored);
  }
  if (lock_ >= 0) ::close(lock_);
}

void AtomicOutput::commit() {
  NIBBLE_CHECK(!committed_);
  with_errors([&] { put_in_place(); });
  committed_ = true;
  sync_path(final_.parent_path());
}

void AtomicOutput::put_in_place() {
  sync_tree(temporary_);
  const bool exists = fs::exists(fs::symlink_status(final_));
  if (!exists || !replace_) {
    // Something may have appeared there since the start; it stays.
    int code = rename_with(temporary_, final_, RENAME_NOREPLACE);
    if (is_unsupported(code)) code = exists ? EEXIST : rename_with(temporary_, final_, 0);
    if (code == EEXIST) fail("{}: exists already, made by something else meanwhile", final_.string());
    if (code != 0) fail_errno(final_, "rename into place", code);
  } else if (!is_folder_) {
    const int code = rename_with(temporary_, final_, 0);
    if (code != 0) fail_errno(final_, "rename into place", code);
  } else {
    const int code = rename_with(temporary_, final_, RENAME_EXCHANGE);
    if (is_unsupported(code)) {
      replace_in_two_steps(temporary_, final_);
    } else if (code != 0) {
      fail_errno(final_, "exchange with the new output", code);
    } else {
      // The new output is in place; what cannot be removed of the old only wastes space, and the next run
      // tries again.
      std::error_code ignored;
      fs::remove_all(temporary_, ignored);
    }
  }
}

}  // namespace nibble
