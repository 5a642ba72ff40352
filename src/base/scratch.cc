#include "base/scratch.h"

#include <algorithm>
#include <cstdint>

namespace nibble {

void* Scratch::take_bytes(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].size) {
    ++chunk_;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    const size_t size = std::max<size_t>(bytes, size_t{1} << 20);
    std::unique_ptr<std::byte[]> memory(new std::byte[size + 64]);
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    std::byte* aligned = memory.get() + (64 - address % 64) % 64;
    chunks_.push_back({std::move(memory), aligned, size});
    peak_ += size;
    used_ = 0;
  }
  std::byte* result = chunks_[chunk_].aligned + used_;
  used_ += bytes;
  return result;
}

}  // namespace nibble
