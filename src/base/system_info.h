// What the operating system says about memory and disk.
#pragma once

#include <cstdint>
#include <filesystem>

namespace nibble {

// Memory this process could still take without swapping: MemAvailable, limited by its cgroup.
uint64_t available_memory_bytes();
// Largest resident set so far (VmHWM).
uint64_t peak_memory_bytes();
// Space an unprivileged user has left on the file system of `path` (or of its nearest existing parent).
uint64_t free_disk_bytes(const std::filesystem::path& path);

}  // namespace nibble
