// The table of architectures. A family is one file that declares its rows, and their lines here.
#include <array>

#include "base/error.h"
#include "io/printable.h"
#include "models/model_spec.h"

namespace nibble {

extern const Architecture kLlama, kMistral, kQwen2, kQwen3;

std::span<const Architecture* const> all_architectures() {
  static constexpr std::array kArchitectures = {&kLlama, &kMistral, &kQwen2, &kQwen3};
  return kArchitectures;
}

const Architecture& find_architecture(const Json& config, const std::string& source) {
  const std::string type = json_string(config, "model_type", std::nullopt, source);
  for (const Architecture* architecture : all_architectures()) {
    if (type == architecture->model_type) return *architecture;
  }
  std::string known;
  for (const Architecture* architecture : all_architectures()) {
    known += (known.empty() ? "" : ", ") + std::string(architecture->model_type);
  }
  fail("{}: 'model_type' is '{}', which is not supported; known are {}", source, printable(type), known);
}

}  // namespace nibble
