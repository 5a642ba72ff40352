#include "base/scratch.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace nibble {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

void* Scratch::take_bytes(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].size) {
    ++chunk_;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    // Large chunks ask for huge pages: rows of a batch are kilobytes apart, so that each would cost a
    // translation miss.
    const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    const size_t size = std::max<size_t>((bytes + alignment - 1) / alignment * alignment, size_t{1} << 20);
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, size) != 0) throw std::bad_alloc();
    if (alignment == kHugePage) madvise(memory, size, MADV_HUGEPAGE);  // a hint: failing costs only speed
    chunks_.push_back({std::unique_ptr<std::byte, Free>(static_cast<std::byte*>(memory)), size});
    peak_ += size;
    used_ = 0;
  }
  std::byte* result = chunks_[chunk_].memory.get() + used_;
  used_ += bytes;
  return result;
}

}  // namespace nibble
