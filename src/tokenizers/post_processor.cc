#include "tokenizers/post_processor.h"

#include "base/error.h"
#include "io/printable.h"
#include "tokenizers/description.h"

namespace nibble {
namespace {

int32_t checked_id(const Json& value, const Vocabulary& vocabulary, const Description& where) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= vocabulary.size()) {
    fail("{}: id {} is outside the vocabulary of {}", where.name(), value.dump(), vocabulary.size());
  }
  return value.get<int32_t>();
}

// ["</s>", 2]: how "BertProcessing" and "RobertaProcessing" name a token.
int32_t parse_named_id(const Description& where, const std::string& key, const Vocabulary& vocabulary) {
  const Json* pair = where.find(key);
  if (pair == nullptr || !pair->is_array() || pair->size() != 2) {
    fail("{}: '{}' must be an array of a token and its id", where.name(), key);
  }
  return checked_id((*pair)[1], vocabulary, where);
}

std::vector<int32_t> parse_special_token(const Description& where, const std::string& name,
                                         const Vocabulary& vocabulary) {
  const Json* tokens = where.find("special_tokens");
  if (tokens == nullptr || !tokens->is_object() || !tokens->contains(name)) {
    fail("{}: special token '{}' is not described in 'special_tokens'", where.name(), printable(name));
  }
  const Json& token = (*tokens)[name];
  if (!token.is_object() || !token.contains("ids") || !token["ids"].is_array()) {
    fail("{}: special token '{}' has no array 'ids'", where.name(), printable(name));
  }
  std::vector<int32_t> ids;
  for (const Json& id : token["ids"]) ids.push_back(checked_id(id, vocabulary, where));
  return ids;
}

PostProcessor parse_template(const Description& where, const Vocabulary& vocabulary) {
  const Json* single = where.find("single");
  if (single == nullptr || !single->is_array()) fail("{}: 'single' must be an array", where.name());
  PostProcessor made;
  int sequences = 0;
  for (const Json& item : *single) {
    const bool known = item.is_object() && item.size() == 1 && item.begin()->is_object();
    const std::string kind = known ? item.begin().key() : "";
    if (kind == "Sequence") {
      const std::string id = json_string(*item.begin(), "id", "A", where.name());
      if (id != "A") fail("{}: 'single' names sequence '{}', expected A", where.name(), printable(id));
      ++sequences;
    } else if (kind == "SpecialToken") {
      const std::string name = json_string(*item.begin(), "id", std::nullopt, where.name());
      std::vector<int32_t>& side = sequences == 0 ? made.prefix : made.suffix;
      const std::vector<int32_t> ids = parse_special_token(where, name, vocabulary);
      side.insert(side.end(), ids.begin(), ids.end());
    } else {
      fail("{}: an item of 'single' is neither a Sequence nor a SpecialToken", where.name());
    }
  }
  if (sequences != 1) fail("{}: 'single' has the sequence {} times, expected once", where.name(), sequences);
  return made;
}

// Applies the parts in order, each around what the ones before it made.
void parse_into(const Description& where, const Vocabulary& vocabulary, PostProcessor& out) {
  const std::string type = where.type();
  PostProcessor made;
  if (type == "Sequence") {
    for (const Description& child : where.children("processors")) parse_into(child, vocabulary, out);
    return;
  }
  if (type == "TemplateProcessing") {
    made = parse_template(where, vocabulary);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    made.prefix.push_back(parse_named_id(where, "cls", vocabulary));
    made.suffix.push_back(parse_named_id(where, "sep", vocabulary));
  } else if (type != "ByteLevel") {  // which only moves offsets
    where.unsupported(type);
  }
  out.prefix.insert(out.prefix.begin(), made.prefix.begin(), made.prefix.end());
  out.suffix.insert(out.suffix.end(), made.suffix.begin(), made.suffix.end());
}

}  // namespace

PostProcessor parse_post_processor(const Json& description, const Vocabulary& vocabulary,
                                   const std::string& source) {
  PostProcessor out;
  if (!description.is_null()) parse_into(Description(description, source, "post_processor"), vocabulary, out);
  return out;
}

}  // namespace nibble
