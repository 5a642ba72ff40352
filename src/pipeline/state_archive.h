// The hidden states of all calibration tokens at the input of every block, for the backward pass: in memory,
// or in a file where they would take too much of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/tensor.h"

namespace nibble {

class StateArchive {
 public:
  // Places for `blocks` states of [tokens, width] floats. With a folder they go to a file in it that has no
  // name any more once it is open, so that it ends with the process, however that ends; its space is reserved
  // here. Throws Error naming the folder when the disk has no room.
  StateArchive(int64_t blocks, int64_t tokens, int64_t width, const std::filesystem::path* folder);
  ~StateArchive();
  StateArchive(const StateArchive&) = delete;
  StateArchive& operator=(const StateArchive&) = delete;

  void write(int64_t block, const float* states);
  // Rows [first, first + count): where they are in memory, or read into `buffer` [count, width].
  const float* read(int64_t block, int64_t first, int64_t count, float* buffer) const;

 private:
  int64_t tokens_, width_;
  std::vector<Tensor> states_;  // per block, where they are in memory
  int file_ = -1;
  std::filesystem::path path_;  // for messages
};

}  // namespace nibble
