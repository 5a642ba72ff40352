// JSON from files we do not trust: bounded size and depth, no duplicate keys, and errors that name file and
// key.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

using Json = nlohmann::json;

struct JsonLimits {
  size_t max_bytes = size_t{256} << 20;
  int max_depth = 64;
  size_t max_values =
      size_t{1} << 24;  // scalars, arrays and objects; bounds the memory that a short text can ask for
  bool allow_comments = false;  // recipe files
};

// Throws Error "<source>: ..." for malformed text, too deep nesting, too many values, duplicate keys in one
// object, invalid UTF-8.
Json parse_json(std::string_view text, const std::string& source, const JsonLimits& limits = {});
Json read_json_file(const std::filesystem::path& path, const JsonLimits& limits = {});

// Typed access: the value at `key`, `otherwise` when missing or null, Error "<source>: 'key' is ..., expected
// ..." when of another type or out of range.
int64_t json_int(const Json& object, const std::string& key, std::optional<int64_t> otherwise,
                 const std::string& source);
double json_number(const Json& object, const std::string& key, std::optional<double> otherwise,
                   const std::string& source);
bool json_bool(const Json& object, const std::string& key, std::optional<bool> otherwise,
               const std::string& source);
std::string json_string(const Json& object, const std::string& key, std::optional<std::string> otherwise,
                        const std::string& source);

}  // namespace nibble
