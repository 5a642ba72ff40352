#include "tokenizers/vocabulary.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/error.h"
#include "io/printable.h"
#include "tokenizers/unicode.h"

namespace nibble {
namespace {

uint32_t hash_of(std::string_view text) noexcept {
  const uint64_t hash = std::hash<std::string_view>{}(text);
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

}  // namespace

void Vocabulary::reserve(size_t tokens) {
  spans_.reserve(tokens);
  bytes_.reserve(tokens * 8);
  grow(std::bit_ceil(tokens * 2 + 16));
}

void Vocabulary::grow(size_t slots) {
  if (slots <= slots_.size()) return;
  slots_.assign(slots, Slot{});
  for (size_t id = 0; id < spans_.size(); ++id) {
    if (spans_[id].length == 0) continue;
    const uint32_t hash = hash_of(text(static_cast<int32_t>(id)));
    size_t i = hash & (slots - 1);
    while (slots_[i].id >= 0) i = (i + 1) & (slots - 1);
    slots_[i] = {hash, static_cast<int32_t>(id)};
  }
}

void Vocabulary::add(std::string_view text, int64_t id, const std::string& source) {
  if (id < 0 || id >= kMaxVocabulary) {
    fail("{}: token '{}' has id {}, expected 0 to {}", source, printable(text, 64), id, kMaxVocabulary - 1);
  }
  if (text.empty()) fail("{}: token {} is empty", source, id);
  if (text.size() > kMaxTokenBytes) {
    fail("{}: token {} is {} bytes long, at most {} are allowed", source, id, text.size(), kMaxTokenBytes);
  }
  if (!is_valid_utf8(text)) fail("{}: token {} is not valid UTF-8", source, id);
  if (const int32_t other = find(text); other >= 0) {
    fail("{}: token '{}' has two ids, {} and {}", source, printable(text, 64), other, id);
  }
  const auto index = static_cast<size_t>(id);
  if (index < spans_.size() && spans_[index].length > 0) {
    fail("{}: id {} belongs to two tokens, '{}' and '{}'", source, id,
         printable(this->text(static_cast<int32_t>(id)), 64), printable(text, 64));
  }
  if (index >= spans_.size()) spans_.resize(index + 1);
  spans_[index] = {bytes_.size(), static_cast<uint32_t>(text.size())};
  bytes_ += text;
  longest_ = std::max(longest_, text.size());
  ++used_;
  if (used_ * 2 > slots_.size()) {
    grow(std::max<size_t>(64, slots_.size() * 2));
    return;
  }
  const uint32_t hash = hash_of(text);
  size_t i = hash & (slots_.size() - 1);
  while (slots_[i].id >= 0) i = (i + 1) & (slots_.size() - 1);
  slots_[i] = {hash, static_cast<int32_t>(id)};
}

int32_t Vocabulary::find(std::string_view wanted) const noexcept {
  if (slots_.empty()) return -1;
  const uint32_t hash = hash_of(wanted);
  for (size_t i = hash & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].id < 0) return -1;
    if (slots_[i].hash == hash && text(slots_[i].id) == wanted) return slots_[i].id;
  }
}

std::string_view Vocabulary::text(int32_t id) const noexcept {
  if (id < 0 || static_cast<size_t>(id) >= spans_.size()) return {};
  const Span& span = spans_[static_cast<size_t>(id)];
  return std::string_view(bytes_).substr(span.offset, span.length);
}

void PairTable::reserve(size_t pairs) { grow(std::bit_ceil(pairs * 2 + 16)); }

void PairTable::grow(size_t slots) {
  if (slots <= slots_.size()) return;
  std::vector<Slot> old(slots);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.merge.id < 0) continue;
    size_t i = index_of(slot.key);
    while (slots_[i].merge.id >= 0) i = (i + 1) & (slots - 1);
    slots_[i] = slot;
  }
}

void PairTable::set(int32_t left, int32_t right, PairMerge merge) {
  NIBBLE_CHECK(merge.id >= 0);
  if ((used_ + 1) * 2 > slots_.size()) grow(std::max<size_t>(64, slots_.size() * 2));
  const uint64_t key = key_of(left, right);
  size_t i = index_of(key);
  while (slots_[i].merge.id >= 0 && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
  if (slots_[i].merge.id < 0) ++used_;
  slots_[i] = {key, merge};
}

}  // namespace nibble
