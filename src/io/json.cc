#include "io/json.h"

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "io/mapped_file.h"
#include "io/printable.h"

namespace nibble {
namespace {

// Builds the document value by value. nlohmann's SAX parser keeps its own stack on the heap, and the depth
// limit here keeps every later recursive walk over the document (dump, compare, destroy) shallow too.
class DocumentBuilder : public nlohmann::json_sax<Json> {
 public:
  DocumentBuilder(const std::string& source, const JsonLimits& limits) : source_(source), limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& text) override {
    if (!std::isfinite(value)) fail("{}: number {} is out of range", source_, printable(text, 40));
    return add(value);
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // not part of JSON text

  bool start_object(size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    const auto [place, added] = open_.back()->get_ref<Json::object_t&>().emplace(name, nullptr);
    if (!added) fail("{}: key '{}' appears twice in one object", source_, printable(name));
    member_ = &place->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without its number.
    std::string_view text = error.what();
    if (const size_t end = text.find("] "); end != std::string_view::npos) text.remove_prefix(end + 2);
    fail("{}: not valid JSON near byte {}: {}", source_, position, printable(text, 200));
  }

 private:
  template <typename Value>
  Json* put(Value&& value) {
    if (++values_ > limits_.max_values) fail("{}: JSON has more than {} values", source_, limits_.max_values);
    if (open_.empty()) return &(root_ = std::forward<Value>(value));
    if (open_.back()->is_array()) {
      auto& elements = open_.back()->get_ref<Json::array_t&>();
      elements.emplace_back(std::forward<Value>(value));
      return &elements.back();
    }
    *member_ = std::forward<Value>(value);
    return member_;
  }
  template <typename Value>
  bool add(Value&& value) {
    put(std::forward<Value>(value));
    return true;
  }
  bool open(Json container) {
    if (open_.size() >= static_cast<size_t>(limits_.max_depth)) {
      fail("{}: JSON is nested deeper than {} levels", source_, limits_.max_depth);
    }
    open_.push_back(put(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& source_;
  const JsonLimits& limits_;
  Json root_;
  size_t values_ = 0;
  std::vector<Json*> open_;  // containers being filled; a parent does not grow while its child is open
  Json* member_ = nullptr;   // value slot of the key read last
};

// The value at `key`, or null when it is missing or null.
const Json* member(const Json& object, const std::string& key, const std::string& source) {
  if (!object.is_object()) {
    fail("{}: expected an object that holds '{}', found {}", source, key, object.type_name());
  }
  const auto place = object.find(key);
  return place == object.end() || place->is_null() ? nullptr : &*place;
}

[[noreturn]] void wrong_type(const Json& value, const std::string& key, const std::string& expected,
                             const std::string& source) {
  const std::string shown = value.is_structured()
                                ? std::string("an ") + value.type_name()
                                : printable(value.dump(-1, ' ', true, Json::error_handler_t::replace), 60);
  fail("{}: '{}' is {}, expected {}", source, key, shown, expected);
}

template <typename T>
T otherwise_or_fail(std::optional<T> otherwise, const std::string& key, const std::string& source) {
  if (!otherwise) fail("{}: '{}' is missing", source, key);
  return *std::move(otherwise);
}

}  // namespace

Json parse_json(std::string_view text, const std::string& source, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    fail("{}: {} of JSON, more than the limit of {}", source, format_bytes(static_cast<double>(text.size())),
         format_bytes(static_cast<double>(limits.max_bytes)));
  }
  DocumentBuilder builder(source, limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder, Json::input_format_t::json, /*strict=*/true,
                       limits.allow_comments)) {
    fail("{}: not valid JSON", source);
  }
  return builder.take();
}

Json read_json_file(const std::filesystem::path& path, const JsonLimits& limits) {
  const auto file = MappedFile::open(path);
  return parse_json({reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()},
                    path.string(), limits);
}

int64_t json_int(const Json& object, const std::string& key, std::optional<int64_t> otherwise,
                 const std::string& source) {
  const Json* value = member(object, key, source);
  if (value == nullptr) return otherwise_or_fail(otherwise, key, source);
  if (!value->is_number_integer()) wrong_type(*value, key, "an integer", source);
  if (value->is_number_unsigned() &&
      value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    wrong_type(*value, key, "an integer below 2^63", source);
  }
  return value->get<int64_t>();
}

double json_number(const Json& object, const std::string& key, std::optional<double> otherwise,
                   const std::string& source) {
  const Json* value = member(object, key, source);
  if (value == nullptr) return otherwise_or_fail(otherwise, key, source);
  if (!value->is_number()) wrong_type(*value, key, "a number", source);
  const double number = value->get<double>();
  if (!std::isfinite(number)) wrong_type(*value, key, "a finite number", source);
  return number;
}

bool json_bool(const Json& object, const std::string& key, std::optional<bool> otherwise,
               const std::string& source) {
  const Json* value = member(object, key, source);
  if (value == nullptr) return otherwise_or_fail(otherwise, key, source);
  if (!value->is_boolean()) wrong_type(*value, key, "true or false", source);
  return value->get<bool>();
}

std::string json_string(const Json& object, const std::string& key, std::optional<std::string> otherwise,
                        const std::string& source) {
  const Json* value = member(object, key, source);
  if (value == nullptr) return otherwise_or_fail(std::move(otherwise), key, source);
  if (!value->is_string()) wrong_type(*value, key, "a string", source);
  return value->get<std::string>();
}

}  // namespace nibble
