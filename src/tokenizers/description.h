// One part of a tokenizer.json, with typed access and errors that name the file and the part.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/json.h"

namespace nibble {

// {"String": "..."} or {"Regex": "..."}.
struct DescribedPattern {
  std::string text;
  bool is_regex = false;
};

class Description {
 public:
  // `json` must outlive this. Throws Error when it is no object. `place` is, for example,
  // "decoder.decoders[2]".
  Description(const Json& json, const std::string& source, const std::string& place);

  const std::string& name() const { return name_; }  // "<file>: <place>", how messages begin
  std::string type() const;                          // the "type" every part has
  // The value at `key`; null counts as missing. Throws Error for another type, or when missing without
  // `otherwise`.
  std::string string(const std::string& key, std::optional<std::string> otherwise = std::nullopt) const;
  bool boolean(const std::string& key, std::optional<bool> otherwise = std::nullopt) const;
  int64_t integer(const std::string& key, int64_t least, int64_t most) const;
  DescribedPattern pattern(const std::string& key) const;
  // The objects in the array at `key`.
  std::vector<Description> children(const std::string& key) const;
  // Null when missing or null.
  const Json* find(const std::string& key) const;

  [[noreturn]] void unsupported(const std::string& type) const;

 private:
  const Json& json_;
  std::string source_, place_, name_;
};

}  // namespace nibble
