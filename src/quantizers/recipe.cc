#include "quantizers/recipe.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string_view>
#include <variant>

#include "base/error.h"
#include "formats/format.h"
#include "io/printable.h"
#include "quantizers/quantizer.h"
#include "quantizers/recipes.h"
#include "transforms/transform.h"

namespace nibble {
namespace {

constexpr std::array<std::string_view, 7> kRoles = {"q", "k", "v", "o", "gate", "up", "down"};

// Settings that change the whole model, and so are taken from a recipe's defaults.
constexpr std::string_view kWholeModelSettings[] = {"rotation", "balance_channels"};

constexpr JsonLimits kRecipeLimits = {.max_bytes = size_t{1} << 20, .max_depth = 8, .allow_comments = true};

template <typename Names>
std::string listed(const Names& names) {
  std::string text;
  for (const auto& name : names) {
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

bool is_role(std::string_view name) { return std::find(kRoles.begin(), kRoles.end(), name) != kRoles.end(); }

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  constexpr size_t kLongest = 80;
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  return text;
}

// --- the table of settings
// ------------------------------------------------------------------------------------------

struct Choice {  // one of a few words
  std::string LinearSettings::*member;
  std::vector<std::string> (*allowed)();
};
struct Width {  // one of a few numbers
  int64_t LinearSettings::*member;
  std::vector<int64_t> allowed;
};
struct Count {  // an integer of a range
  int64_t LinearSettings::*member;
  int64_t lowest, highest;
};
struct Amount {  // a number of a closed range
  double LinearSettings::*member;
  double lowest, highest;
};
struct Switch {
  bool LinearSettings::*member;
};

struct Field {
  std::string_view name;
  std::variant<Choice, Width, Count, Amount, Switch> kind;
};

std::vector<std::string> quantizer_names() {
  std::vector<std::string> names;
  for (const Quantizer* quantizer : all_quantizers()) names.emplace_back(quantizer->name);
  names.emplace_back("none");
  return names;
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const LinearFormat* format : all_formats()) names.emplace_back(format->name);
  return names;
}

std::vector<std::string> rotations() { return {"none", "hadamard", "hadamard-inputs", "hadamard-offline"}; }

std::vector<std::string> column_orders() { return {"ascending", "natural", "descending"}; }

std::vector<std::string> sensitivities() { return {"fisher", "hessian_diagonal", "uniform"}; }
std::vector<std::string> lnq_hessians() { return {"plain", "guided"}; }
std::vector<std::string> kmeans_solvers() { return {"exact", "lloyd"}; }
std::vector<std::string> group_rankings() { return {"sensitivity", "range", "loss"}; }
std::vector<std::string> scale_kinds() { return {"float", "integer", "two_level"}; }

std::vector<std::string> transform_names() {
  std::vector<std::string> names = {"none"};
  for (const Transform* transform : all_transforms()) names.emplace_back(transform->name);
  return names;
}

// Ranges refuse what cannot work, not what is unwise.
std::span<const Field> fields() {
  static const Field kFields[] = {
      {"quantizer", Choice{&LinearSettings::quantizer, quantizer_names}},
      {"format", Choice{&LinearSettings::format, format_names}},
      {"weight_bits", Width{&LinearSettings::weight_bits, {2, 3, 4, 8}}},
      {"activation_bits", Width{&LinearSettings::activation_bits, {4, 8, 16}}},
      {"group_size", Count{&LinearSettings::group_size, 0, 1 << 20}},
      {"fit_groups", Switch{&LinearSettings::fit_groups}},
      {"outlier_columns", Count{&LinearSettings::outlier_columns, -1, 1 << 20}},
      {"outlier_scaling", Switch{&LinearSettings::outlier_scaling}},
      {"outlier_threshold", Amount{&LinearSettings::outlier_threshold, 0, 1e30}},
      {"clip", Switch{&LinearSettings::clip}},
      {"clip_norm", Amount{&LinearSettings::clip_norm, 0.1, 16}},
      {"clip_steps", Count{&LinearSettings::clip_steps, 1, 100}},
      {"damping", Amount{&LinearSettings::damping, 0, 100}},
      {"block_size", Count{&LinearSettings::block_size, 1, 1 << 20}},
      {"column_order", Choice{&LinearSettings::column_order, column_orders}},
      {"group_ranking", Choice{&LinearSettings::group_ranking, group_rankings}},
      {"sparse_percent", Amount{&LinearSettings::sparse_percent, 0, 10}},
      {"calibrate_on_quantized", Switch{&LinearSettings::calibrate_on_quantized}},
      {"sensitivity_sequences", Count{&LinearSettings::sensitivity_sequences, 1, 1 << 20}},
      {"guided_groups", Count{&LinearSettings::guided_groups, 1, 1 << 10}},
      {"sensitivity", Choice{&LinearSettings::sensitivity, sensitivities}},
      {"kmeans_solver", Choice{&LinearSettings::kmeans_solver, kmeans_solvers}},
      {"sparse_sensitive_percent", Amount{&LinearSettings::sparse_sensitive_percent, 0, 100}},
      {"sparse_outlier_percent", Amount{&LinearSettings::sparse_outlier_percent, 0, 100}},
      {"lnq_hessian", Choice{&LinearSettings::lnq_hessian, lnq_hessians}},
      {"lnq_iterations", Count{&LinearSettings::lnq_iterations, 0, 1000}},
      {"rotation", Choice{&LinearSettings::rotation, rotations}},
      {"balance_channels", Switch{&LinearSettings::balance_channels}},
      {"symmetric", Switch{&LinearSettings::symmetric}},
      {"static_groups", Switch{&LinearSettings::static_groups}},
      {"asymmetric_calibration", Switch{&LinearSettings::asymmetric_calibration}},
      {"calibrate_on_codes", Switch{&LinearSettings::calibrate_on_codes}},
      {"scale_kind", Choice{&LinearSettings::scale_kind, scale_kinds}},
      {"scale_amplifier", Count{&LinearSettings::scale_amplifier, 0, 1 << 24}},
      {"scale_steps", Count{&LinearSettings::scale_steps, 0, 255}},
      {"transform", Choice{&LinearSettings::transform, transform_names}},
      {"static_limit", Amount{&LinearSettings::static_limit, 0, 1e30}},
      {"per_token_limit", Amount{&LinearSettings::per_token_limit, 0, 1e30}},
      {"smooth_alpha", Amount{&LinearSettings::smooth_alpha, 0, 1}},
      {"fold_through_linear", Switch{&LinearSettings::fold_through_linear}},
  };
  return kFields;
}

// Stores `value` where it is allowed, else returns what would be. One overload per kind of field.
std::string store(LinearSettings& settings, const Choice& kind, const Json& value) {
  const std::vector<std::string> allowed = kind.allowed();
  if (value.is_string() &&
      std::find(allowed.begin(), allowed.end(), value.get_ref<const std::string&>()) != allowed.end()) {
    settings.*kind.member = value.get<std::string>();
    return "";
  }
  return "one of " + listed(allowed);
}

std::string store(LinearSettings& settings, const Width& kind, const Json& value) {
  std::vector<std::string> names;
  for (const int64_t allowed : kind.allowed) {
    if (value.is_number_integer() && value == allowed) {
      settings.*kind.member = allowed;
      return "";
    }
    names.push_back(std::to_string(allowed));
  }
  return "one of " + listed(names);
}

std::string store(LinearSettings& settings, const Count& kind, const Json& value) {
  // Compared as JSON numbers: an unsigned one may not fit int64_t.
  if (value.is_number_integer() && value >= kind.lowest && value <= kind.highest) {
    settings.*kind.member = value.get<int64_t>();
    return "";
  }
  return format_text("an integer from {} to {}", kind.lowest, kind.highest);
}

std::string store(LinearSettings& settings, const Amount& kind, const Json& value) {
  if (value.is_number()) {
    const double number = value.get<double>();
    if (number >= kind.lowest && number <= kind.highest) {  // false for NaN
      settings.*kind.member = number;
      return "";
    }
  }
  return format_text("a number from {} to {}", kind.lowest, kind.highest);
}

std::string store(LinearSettings& settings, const Switch& kind, const Json& value) {
  if (value.is_boolean()) {
    settings.*kind.member = value.get<bool>();
    return "";
  }
  return "true or false";
}

// What is wrong with setting the field to the value, or nothing after setting it.
std::string try_set(LinearSettings& settings, const std::string& name, const Json& value) {
  std::vector<std::string_view> known;
  for (const Field& field : fields()) {
    if (field.name != name) {
      known.push_back(field.name);
      continue;
    }
    const std::string expected =
        std::visit([&](const auto& kind) { return store(settings, kind, value); }, field.kind);
    if (expected.empty()) return "";
    return format_text("'{}' is {}; expected {}", name, shown(value), expected);
  }
  return format_text("there is no setting '{}'; expected one of {}", printable(name), listed(known));
}

// --- reading
// ----------------------------------------------------------------------------------------------------------

void check_object(const Json& json, std::span<const std::string_view> keys, const std::string& source) {
  if (!json.is_object()) fail("{}: expected a JSON object, found {}", source, shown(json));
  for (const auto& [key, value] : json.items()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      fail("{}: there is no key {}; expected one of {}", source, shown(key), listed(keys));
    }
  }
}

void set_all(LinearSettings& settings, const Json& json, const std::string& source) {
  if (!json.is_object()) fail("{}: expected a JSON object of settings, found {}", source, shown(json));
  for (const auto& [name, value] : json.items()) {
    const std::string wrong = try_set(settings, name, value);
    if (!wrong.empty()) fail("{}: {}", source, wrong);
  }
}

RecipeOverride read_override(const Json& json, const std::string& source) {
  constexpr std::array<std::string_view, 4> kKeys = {"name", "roles", "bits", "settings"};
  check_object(json, kKeys, source);
  RecipeOverride made;
  if (json.contains("name")) {
    made.name_pattern = json_string(json, "name", std::nullopt, source);
    if (made.name_pattern.empty())
      fail("{}: 'name' is empty; expected a pattern such as \"model.layers.0.*\"", source);
  }
  if (json.contains("roles")) {
    const Json& roles = json.at("roles");
    if (!roles.is_array() || roles.empty()) {
      fail("{}: 'roles' is {}; expected a list of some of {}", source, shown(roles), listed(kRoles));
    }
    for (const Json& role : roles) {
      if (!role.is_string() || !is_role(role.get_ref<const std::string&>())) {
        fail("{}: 'roles' names {}; expected some of {}", source, shown(role), listed(kRoles));
      }
      made.roles.push_back(role.get<std::string>());
    }
  }
  if (json.contains("bits")) {
    LinearSettings probe;
    const std::string wrong = try_set(probe, "weight_bits", json.at("bits"));
    if (!wrong.empty()) fail("{}: 'bits' selects linears by their weight_bits, but {}", source, wrong);
    made.bits = probe.weight_bits;
  }
  if (!json.contains("settings") || json.at("settings").empty()) {
    fail("{}: 'settings' is missing or empty; expected an object of settings to change", source);
  }
  made.settings = json.at("settings");
  for (const std::string_view name : kWholeModelSettings) {
    if (made.settings.is_object() && made.settings.contains(std::string(name))) {
      fail("{}: '{}' concerns the whole model: expected among the recipe's defaults", source, name);
    }
  }
  LinearSettings probe;
  set_all(probe, made.settings, source + ", 'settings'");
  return made;
}

// "*" stands for any run of characters, "?" for one.
bool glob_matches(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0;
  size_t star = std::string_view::npos, resume = 0;  // the last "*" and the text position to retry from
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool matches(const RecipeOverride& override_, const std::string& name, LinearRole role,
             const LinearSettings& so_far) {
  if (!override_.name_pattern.empty() && !glob_matches(override_.name_pattern, name)) return false;
  if (override_.bits != 0 && override_.bits != so_far.weight_bits) return false;
  return override_.roles.empty() ||
         std::find(override_.roles.begin(), override_.roles.end(), role_name(role)) != override_.roles.end();
}

std::string describe(const RecipeOverride& override_) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (!override_.name_pattern.empty()) add("name " + shown(override_.name_pattern));
  if (!override_.roles.empty()) add("roles " + listed(override_.roles));
  if (override_.bits != 0) add("bits " + std::to_string(override_.bits));
  return text.empty() ? "every linear" : text;
}

// Calls visit(index of the override) for each that applies, and returns the settings after all of them.
template <typename Visit>
LinearSettings apply_overrides(const Recipe& recipe, const std::string& name, LinearRole role,
                               Visit&& visit) {
  LinearSettings settings = recipe.defaults;
  for (size_t i = 0; i < recipe.overrides.size(); ++i) {
    if (!matches(recipe.overrides[i], name, role, settings)) continue;
    visit(i);
    set_all(settings, recipe.overrides[i].settings, "recipe " + printable(recipe.name));
  }
  return settings;
}

}  // namespace

void LinearSettings::set(const std::string& field, const Json& value, const std::string& source) {
  const std::string wrong = try_set(*this, field, value);
  if (!wrong.empty()) fail_usage("{}: {}", source, wrong);
}

void LinearSettings::check(const std::string& source) const {
  if ((quantizer == "none") != (format == "dense")) {
    fail("{}: quantizer \"{}\" with format \"{}\"; \"none\" and \"dense\" (kept in 16 bits) go together",
         source, quantizer, format);
  }
  const bool codebooks = quantizer == "kmeans" || quantizer == "lnq";
  if (!codebooks && sparse_sensitive_percent + sparse_outlier_percent > 0) {
    fail(
        "{}: sparse_sensitive_percent {} and sparse_outlier_percent {} with quantizer \"{}\"; only kmeans "
        "and lnq "
        "keep single weights apart",
        source, sparse_sensitive_percent, sparse_outlier_percent, quantizer);
  }
  if (codebooks && outlier_columns != 0) {
    fail(
        "{}: outlier_columns is {} with quantizer \"{}\", which keeps single weights apart, not columns; "
        "expected 0",
        source, outlier_columns, quantizer);
  }
  if (codebooks && sensitivity == "uniform" && sparse_sensitive_percent > 0) {
    fail(
        "{}: sparse_sensitive_percent is {} with sensitivity \"uniform\", by which no weight is more "
        "sensitive than "
        "another; expected 0",
        source, sparse_sensitive_percent);
  }
  const bool by_column = quantizer == "gptq" || quantizer == "sparse_gptq";
  if (by_column && group_size > 0 && !static_groups && column_order != "natural") {
    fail(
        "{}: static_groups is false with groups of {} and column_order \"{}\"; the columns of a group follow "
        "each other only in \"natural\" order",
        source, group_size, column_order);
  }
  if (asymmetric_calibration && !by_column && quantizer != "none") {
    fail("{}: asymmetric_calibration with quantizer \"{}\"; expected \"gptq\" or \"sparse_gptq\"", source,
         quantizer);
  }
  if (asymmetric_calibration && !calibrate_on_quantized) {
    fail(
        "{}: asymmetric_calibration without calibrate_on_quantized; there is no difference to take up "
        "between "
        "the float model and itself",
        source);
  }
  if ((quantizer == "sparse_gptq") != (format == "quik_sparse")) {
    fail("{}: quantizer \"{}\" with format \"{}\"; \"sparse_gptq\" and \"quik_sparse\" go together", source,
         quantizer, format);
  }
  if (quantizer == "sparse_gptq" && (!symmetric || group_size > 0)) {
    fail(
        "{}: quantizer \"sparse_gptq\" has one symmetric scale per row; expected symmetric true and "
        "group_size 0",
        source);
  }
  if (format == "dense") return;
  const LinearFormat* stored = find_format(format);
  NIBBLE_CHECK(stored != nullptr);  // one of the choices
  if (scale_kind == "integer" && group_size == 0) {
    fail("{}: scale_kind \"integer\" with group_size 0; expected groups of columns", source);
  }
  if (integer_scales() && !stored->integer_scales) {
    fail(
        "{}: scale_kind \"{}\" with format \"{}\"; expected \"float\", or a format with integer scales "
        "(group_int_a8)",
        source, scale_kind, format);
  }
  if (integer_scales() && !static_groups) {
    fail("{}: scale_kind \"{}\" with static_groups false; integer scales are chosen before codes are", source,
         scale_kind);
  }
  if (transform != "none" && asymmetric_calibration) {
    fail("{}: transform \"{}\" with asymmetric_calibration; the float model's inputs are not transformed",
         source, transform);
  }
  if ((scale_amplifier & (scale_amplifier - 1)) != 0 || (scale_amplifier != 0 && scale_kind != "integer")) {
    fail("{}: scale_amplifier {} with scale_kind \"{}\"; expected 0, or a power of two with \"integer\"",
         source, scale_amplifier, scale_kind);
  }
  if (scale_steps != 0 && scale_kind != "two_level") {
    fail("{}: scale_steps {} with scale_kind \"{}\"; expected 0, or 1 to 255 with \"two_level\"", source,
         scale_steps, scale_kind);
  }
  if (static_limit > per_token_limit) {
    fail("{}: static_limit {} is above per_token_limit {}", source, static_limit, per_token_limit);
  }
  if (transform != "none" && find_quantizer(quantizer).needs(*this).gradients()) {
    fail(
        "{}: transform \"{}\" with quantizer \"{}\" by gradients of the loss, which are those by the weights "
        "as they were; expected transform \"none\", or sensitivity \"hessian_diagonal\" and lnq_hessian "
        "\"plain\"",
        source, transform, quantizer);
  }
  if (const Transform* chosen = find_transform(transform);
      chosen != nullptr && chosen->static_activations && !stored->static_activations) {
    fail("{}: transform \"{}\" with format \"{}\", which has no static activation scales (group_int_a8 has)",
         source, transform, format);
  }
}

int64_t LinearSettings::group_size_for(int64_t columns) const {
  constexpr int64_t kUnit = 32;  // formats have groups of whole multiples
  if (!fit_groups) return group_size;
  for (int64_t size = group_size; size >= kUnit && size % kUnit == 0; size /= 2) {
    if (columns % size == 0) return size;
  }
  return group_size;
}

bool LinearSettings::same_transform(const LinearSettings& other) const {
  return transform == other.transform && static_limit == other.static_limit &&
         per_token_limit == other.per_token_limit && smooth_alpha == other.smooth_alpha &&
         fold_through_linear == other.fold_through_linear;
}

Json LinearSettings::to_json() const {
  Json json = Json::object();
  for (const Field& field : fields()) {
    std::visit([&](const auto& kind) { json[std::string(field.name)] = this->*kind.member; }, field.kind);
  }
  return json;
}

Recipe Recipe::from_json(const Json& json, const std::string& source) {
  constexpr std::array<std::string_view, 4> kKeys = {"name", "description", "defaults", "overrides"};
  check_object(json, kKeys, source);
  Recipe recipe;
  recipe.name = json_string(json, "name", std::nullopt, source);
  if (recipe.name.empty()) fail("{}: 'name' is empty; expected a name for the recipe", source);
  recipe.description = json_string(json, "description", "", source);
  if (json.contains("defaults")) set_all(recipe.defaults, json.at("defaults"), source + ": 'defaults'");
  if (json.contains("overrides")) {
    const Json& overrides = json.at("overrides");
    if (!overrides.is_array()) fail("{}: 'overrides' is {}; expected a list", source, shown(overrides));
    for (size_t i = 0; i < overrides.size(); ++i) {
      recipe.overrides.push_back(read_override(overrides[i], format_text("{}: override {}", source, i + 1)));
    }
  }
  return recipe;
}

Recipe Recipe::find(const std::string& name_or_path) {
  for (const BuiltinRecipe& builtin : builtin_recipes()) {
    if (builtin.name == name_or_path) {
      return from_json(parse_json(builtin.text, name_or_path, kRecipeLimits), name_or_path);
    }
  }
  std::error_code ignored;
  if (!std::filesystem::exists(name_or_path, ignored)) {
    fail_usage("there is neither a recipe nor a file '{}'; recipes are {}", name_or_path,
               listed(builtin_names()));
  }
  return from_json(read_json_file(name_or_path, kRecipeLimits), name_or_path);
}

std::vector<std::string> Recipe::builtin_names() {
  std::vector<std::string> names;
  for (const BuiltinRecipe& builtin : builtin_recipes()) names.emplace_back(builtin.name);
  return names;
}

Json Recipe::to_json() const {
  Json json = {{"name", name}, {"description", description}, {"defaults", defaults.to_json()}};
  Json list = Json::array();
  for (const RecipeOverride& override_ : overrides) {
    Json entry = Json::object();
    if (!override_.name_pattern.empty()) entry["name"] = override_.name_pattern;
    if (!override_.roles.empty()) entry["roles"] = override_.roles;
    if (override_.bits != 0) entry["bits"] = override_.bits;
    entry["settings"] = override_.settings;
    list.push_back(std::move(entry));
  }
  json["overrides"] = std::move(list);
  return json;
}

void Recipe::apply_set(const std::string& key_value) {
  const std::string source = "--set " + printable(key_value);
  const size_t equals = key_value.find('=');
  if (equals == std::string::npos || equals == 0) {
    fail_usage("{}: expected FIELD=VALUE or ROLE.FIELD=VALUE", source);
  }
  std::string field = key_value.substr(0, equals);
  const std::string text = key_value.substr(equals + 1);
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded() || value.is_structured()) value = text;

  const size_t dot = field.find('.');
  if (dot == std::string::npos) {
    defaults.set(field, value, source);
    return;
  }
  const std::string role = field.substr(0, dot);
  field = field.substr(dot + 1);
  if (!is_role(role))
    fail_usage("{}: there is no role '{}'; expected one of {}", source, printable(role), listed(kRoles));
  for (const std::string_view setting : kWholeModelSettings) {
    if (field == setting)
      fail_usage("{}: '{}' concerns the whole model: expected without a role", source, setting);
  }
  LinearSettings probe;
  probe.set(field, value, source);
  RecipeOverride made;
  made.roles.push_back(role);
  made.settings = Json{{field, value}};
  overrides.push_back(std::move(made));
}

LinearSettings Recipe::settings_for(const std::string& linear_name, LinearRole role) const {
  const LinearSettings settings = apply_overrides(*this, linear_name, role, [](size_t) {});
  settings.check(format_text("recipe {}, {}", printable(name), linear_name));
  return settings;
}

void Recipe::check_all_match(const std::vector<std::pair<std::string, LinearRole>>& linears) const {
  std::vector<bool> used(overrides.size());
  for (const auto& [linear_name, role] : linears) {
    apply_overrides(*this, linear_name, role, [&](size_t index) { used[index] = true; });
  }
  for (size_t i = 0; i < overrides.size(); ++i) {
    if (used[i]) continue;
    fail("recipe {}: override {} ({}) matches none of the model's {} linears{}", printable(name), i + 1,
         describe(overrides[i]), linears.size(),
         linears.empty() ? "" : "; the first is " + linears.front().first);
  }
}

}  // namespace nibble
