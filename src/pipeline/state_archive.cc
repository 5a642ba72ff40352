#include "pipeline/state_archive.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace nibble {
namespace {

// What one system call moves at most: the kernel stops short of 2 GiB.
constexpr size_t kPiece = size_t{1} << 30;

// Calls transfer(bytes done so far, bytes wanted) until `bytes` have moved; each returns how many it moved.
template <typename Transfer>
void move_all(size_t bytes, const std::filesystem::path& path, const char* what, Transfer&& transfer) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t moved = transfer(done, std::min(kPiece, bytes - done));
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) {
      fail("{}: calibration states cannot be {}: {}", path.string(), what,
           moved == 0 ? "the file is shorter than it was made" : std::strerror(errno));
    }
    done += static_cast<size_t>(moved);
  }
}

}  // namespace

StateArchive::StateArchive(int64_t blocks, int64_t tokens, int64_t width, const std::filesystem::path* folder)
    : tokens_(tokens), width_(width) {
  NIBBLE_CHECK(blocks > 0 && tokens > 0 && width > 0);
  if (folder == nullptr) {
    states_.resize(static_cast<size_t>(blocks));
    return;
  }
  path_ = *folder / "sensitivity-states";
  file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file_ < 0) fail("{}: cannot be made: {}", path_.string(), std::strerror(errno));
  unlink(path_.c_str());
  const int64_t bytes = blocks * tokens * width * static_cast<int64_t>(sizeof(float));
  const int status = posix_fallocate(file_, 0, bytes);
  if (status != 0) {
    close(file_);
    fail("{}: no room for {} of calibration states: {}", path_.string(),
         format_bytes(static_cast<double>(bytes)), std::strerror(status));
  }
}

StateArchive::~StateArchive() {
  if (file_ >= 0) close(file_);
}

void StateArchive::write(int64_t block, const float* states) {
  const int64_t elements = tokens_ * width_;
  if (file_ < 0) {
    Tensor& place = states_.at(static_cast<size_t>(block));
    place = Tensor::copy_of<float>({tokens_, width_}, {states, static_cast<size_t>(elements)});
    return;
  }
  const size_t bytes = static_cast<size_t>(elements) * sizeof(float);
  const char* from = reinterpret_cast<const char*>(states);
  move_all(bytes, path_, "written", [&](size_t done, size_t wanted) {
    return pwrite(file_, from + done, wanted, static_cast<off_t>(static_cast<size_t>(block) * bytes + done));
  });
}

const float* StateArchive::read(int64_t block, int64_t first, int64_t count, float* buffer) const {
  NIBBLE_CHECK(first >= 0 && count >= 0 && first + count <= tokens_);
  if (file_ < 0) return states_.at(static_cast<size_t>(block)).data<float>() + first * width_;
  const size_t row = static_cast<size_t>(width_) * sizeof(float);
  const size_t offset = static_cast<size_t>(block * tokens_ + first) * row;
  char* to = reinterpret_cast<char*>(buffer);
  move_all(static_cast<size_t>(count) * row, path_, "read", [&](size_t done, size_t wanted) {
    return pread(file_, to + done, wanted, static_cast<off_t>(offset + done));
  });
  return buffer;
}

}  // namespace nibble
