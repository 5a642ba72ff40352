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

// In recipes_squeezellm.cc.
extern const std::string_view kSqueezellm3b, kSqueezellm4b, kSqueezellm3bSparse, kSqueezellm4bSparse,
    kSqueezellm3bLnq;
// In recipes_uniform.cc.
extern const std::string_view kQuik4bSparse, kQuik8bSparse, kQuik4bGptaq, kRtnW4A16, kRtnW3A16, kGptqW4A16,
    kGptqW3A16;
// In recipes_w4a8.cc.
extern const std::string_view kFptq, kW4A8G128, kSmoothQuantW8A8;

}  // namespace nibble
