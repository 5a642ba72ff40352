#include "pipeline/quantization_record.h"

#include <cmath>

#include "base/error.h"
#include "io/printable.h"

namespace nibble {
namespace {

Json finite_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

double number_or_nan(const Json& value, const std::string& linear, const std::string& source) {
  if (value.is_null()) return std::nan("");
  if (!value.is_number() || !(value.get<double>() >= 0)) {
    fail("{}: 'errors' of {} holds {}, expected a number that is not negative, or null", source,
         printable(linear), printable(value.dump(-1, ' ', true, Json::error_handler_t::replace), 60));
  }
  return value.get<double>();
}

}  // namespace

QuantizationRecord read_quantization_record(const Checkpoint& checkpoint) {
  const std::string source = (checkpoint.path() / "config.json").string();
  if (checkpoint.kind() != CheckpointKind::kNibble)
    fail("{}: is no nibble folder", checkpoint.path().string());
  const Json& quantization = checkpoint.config().at("quantization_config");
  QuantizationRecord record;
  record.recipe = quantization.value("recipe", Json::object());
  if (const auto provenance = quantization.find("provenance"); provenance != quantization.end())
    record.fingerprint = json_string(*provenance, "fingerprint", "", source);
  const auto errors = quantization.find("errors");
  if (errors == quantization.end()) return record;
  if (!errors->is_object())
    fail("{}: 'errors' is of type {}, expected an object", source, errors->type_name());
  for (const auto& [linear, pair] : errors->items()) {
    if (!pair.is_array() || pair.size() != 2) {
      fail("{}: 'errors' of {} is no pair of numbers", source, printable(linear));
    }
    record.errors[linear] = {.weight = number_or_nan(pair[0], linear, source),
                             .output = number_or_nan(pair[1], linear, source)};
  }
  return record;
}

Json errors_to_json(const std::map<std::string, LinearError>& errors) {
  Json json = Json::object();
  for (const auto& [linear, error] : errors)
    json[linear] = Json::array({finite_or_null(error.weight), finite_or_null(error.output)});
  return json;
}

}  // namespace nibble
