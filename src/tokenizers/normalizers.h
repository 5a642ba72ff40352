// What happens to text before it is cut: the normalizers of tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/json.h"

namespace nibble {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // `text` is valid UTF-8 before and after. `at_start` becomes false when the first characters are removed
  // (see Piece).
  virtual void apply(std::string& text, bool& at_start) const = 0;
};

using Normalizers = std::vector<std::unique_ptr<Normalizer>>;

// "Prepend": `prefix` before any text that is not empty.
std::unique_ptr<Normalizer> make_prepend_normalizer(std::string prefix);
// "Replace" with a string pattern.
std::unique_ptr<Normalizer> make_replace_normalizer(std::string pattern, std::string content);
// "NFC".
std::unique_ptr<Normalizer> make_nfc_normalizer();

// The "normalizer" of tokenizer.json (null: none), sequences flattened. Throws Error "<source>: normalizer
// ...".
Normalizers parse_normalizers(const Json& description, const std::string& source);

}  // namespace nibble
