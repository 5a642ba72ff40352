#include "tokenizers/description.h"

#include "base/error.h"
#include "io/printable.h"

namespace nibble {

Description::Description(const Json& json, const std::string& source, const std::string& place)
    : json_(json), source_(source), place_(place), name_(source + ": " + place) {
  if (!json.is_object()) fail("{}: expected an object, found {}", name_, json.type_name());
}

const Json* Description::find(const std::string& key) const {
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

std::string Description::type() const { return string("type"); }

std::string Description::string(const std::string& key, std::optional<std::string> otherwise) const {
  return json_string(json_, key, std::move(otherwise), name_);
}

bool Description::boolean(const std::string& key, std::optional<bool> otherwise) const {
  return json_bool(json_, key, otherwise, name_);
}

int64_t Description::integer(const std::string& key, int64_t least, int64_t most) const {
  const int64_t value = json_int(json_, key, std::nullopt, name_);
  if (value < least || value > most)
    fail("{}: '{}' is {}, expected {} to {}", name_, key, value, least, most);
  return value;
}

DescribedPattern Description::pattern(const std::string& key) const {
  const Json* value = find(key);
  if (value != nullptr && value->is_object() && value->size() == 1) {
    const auto item = value->begin();
    const bool is_regex = item.key() == "Regex";
    if ((is_regex || item.key() == "String") && item->is_string())
      return {item->get<std::string>(), is_regex};
  }
  fail("{}: '{}' must be {{\"String\": text}} or {{\"Regex\": text}}", name_, key);
}

std::vector<Description> Description::children(const std::string& key) const {
  const Json* list = find(key);
  if (list == nullptr || !list->is_array()) fail("{}: '{}' must be an array", name_, key);
  std::vector<Description> all;
  all.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    all.emplace_back((*list)[i], source_, format_text("{}.{}[{}]", place_, key, i));
  }
  return all;
}

void Description::unsupported(const std::string& type) const {
  fail("{}: type '{}' is not supported", name_, printable(type));
}

}  // namespace nibble
