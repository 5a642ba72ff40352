// The texts of the built-in recipes.
#pragma once

#include <span>
#include <string_view>

namespace nibble {

struct BuiltinRecipe {
  std::string_view name;  // equals the "name" in the text
  std::string_view text;  // JSON with comments
};

std::span<const BuiltinRecipe> builtin_recipes();

}  // namespace nibble
