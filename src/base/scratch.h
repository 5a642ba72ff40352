// A stack of temporary buffers for one forward pass. Memory is kept between uses, so a warmed-up pass
// allocates nothing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

namespace nibble {

class Scratch {
 public:
  // A 64-byte aligned buffer of `count` elements, uninitialised, valid until the enclosing Frame ends.
  template <typename T>
  T* take(size_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }
  size_t peak_bytes() const noexcept { return peak_; }

  // Gives back everything taken since its construction.
  class Frame {
   public:
    explicit Frame(Scratch& scratch) : scratch_(scratch), chunk_(scratch.chunk_), used_(scratch.used_) {}
    ~Frame() {
      scratch_.chunk_ = chunk_;
      scratch_.used_ = used_;
    }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Scratch& scratch_;
    size_t chunk_, used_;
  };

 private:
  void* take_bytes(size_t bytes);
  struct Free {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };
  struct Chunk {
    std::unique_ptr<std::byte, Free> memory;
    size_t size;
  };
  std::vector<Chunk> chunks_;
  size_t chunk_ = 0;  // index of the chunk in use
  size_t used_ = 0;   // bytes used in it
  size_t peak_ = 0;
};

}  // namespace nibble
