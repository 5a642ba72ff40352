#include "base/system_info.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace nibble {
namespace {

// The value of "Key:   123 kB" in a /proc file, in bytes; 0 when absent.
uint64_t proc_kilobytes(const char* file, const std::string& key) {
  std::ifstream stream(file);
  std::string word;
  while (stream >> word) {
    if (word == key) {
      uint64_t kilobytes = 0;
      stream >> kilobytes;
      return kilobytes * 1024;
    }
    stream.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

uint64_t read_number(const char* file, uint64_t otherwise) {
  std::ifstream stream(file);
  uint64_t value = 0;
  return stream >> value ? value : otherwise;  // "max" is no number: no limit
}

}  // namespace

uint64_t available_memory_bytes() {
  uint64_t available = proc_kilobytes("/proc/meminfo", "MemAvailable:");
  constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();
  const uint64_t limit = read_number("/sys/fs/cgroup/memory.max", kNoLimit);
  if (limit != kNoLimit) {
    const uint64_t used = read_number("/sys/fs/cgroup/memory.current", 0);
    available = std::min(available, limit - std::min(limit, used));
  }
  return available;
}

uint64_t peak_memory_bytes() { return proc_kilobytes("/proc/self/status", "VmHWM:"); }

uint64_t free_disk_bytes(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::path existing = std::filesystem::absolute(path, error);
  while (!existing.empty() && !std::filesystem::exists(existing, error) && existing != existing.root_path()) {
    existing = existing.parent_path();
  }
  const std::filesystem::space_info space = std::filesystem::space(existing, error);
  return error ? 0 : space.available;
}

}  // namespace nibble
