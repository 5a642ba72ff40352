// The strings of a vocabulary and their ids.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// Larger ids are refused: no model has them, and a table of that size is what a broken file asks for.
inline constexpr int64_t kMaxVocabulary = int64_t{1} << 22;
// Longer tokens are refused.
inline constexpr size_t kMaxTokenBytes = size_t{1} << 16;

// Ids may have gaps; a string has one id and an id one string.
class Vocabulary {
 public:
  // Throws Error "<source>: ..." for an id outside [0, kMaxVocabulary), a string or id that is there already,
  // an empty or overlong string, or invalid UTF-8.
  void add(std::string_view text, int64_t id, const std::string& source);
  void reserve(size_t tokens);

  int32_t find(std::string_view text) const noexcept;  // -1 when there is none
  // The string of an id; empty for a gap or an id outside the vocabulary.
  std::string_view text(int32_t id) const noexcept;
  int64_t size() const noexcept {
    return static_cast<int64_t>(spans_.size());
  }                                                     // one more than the largest id
  size_t longest() const noexcept { return longest_; }  // bytes of the longest token

 private:
  struct Span {
    uint64_t offset = 0;
    uint32_t length = 0;  // 0: a gap
  };
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;
  };
  void grow(size_t slots);
  std::string bytes_;
  std::vector<Span> spans_;  // by id
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  size_t used_ = 0;
  size_t longest_ = 0;
};

// What two neighbouring symbols merge into.
struct PairMerge {
  uint32_t rank = kNone;  // lower merges first
  int32_t id = -1;
  static constexpr uint32_t kNone = UINT32_MAX;
};

// (left id, right id) -> merge.
class PairTable {
 public:
  void reserve(size_t pairs);
  // A pair added twice keeps the later merge, as in the `tokenizers` library.
  void set(int32_t left, int32_t right, PairMerge merge);
  PairMerge find(int32_t left, int32_t right) const noexcept {
    if (slots_.empty()) return {};
    const uint64_t key = key_of(left, right);
    for (size_t i = index_of(key);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].merge.id < 0) return {};
      if (slots_[i].key == key) return slots_[i].merge;
    }
  }

 private:
  struct Slot {
    uint64_t key = 0;
    PairMerge merge;  // id -1: free
  };
  static uint64_t key_of(int32_t left, int32_t right) noexcept {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  // Ids come in regular patterns, which a single multiplication would map to a few crowded places.
  size_t index_of(uint64_t key) const noexcept {
    key = (key ^ key >> 32) * 0xD6E8FEB86659FD93u;
    key = (key ^ key >> 32) * 0xD6E8FEB86659FD93u;
    return static_cast<size_t>(key ^ key >> 32) & (slots_.size() - 1);
  }
  void grow(size_t slots);
  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t used_ = 0;
};

}  // namespace nibble
