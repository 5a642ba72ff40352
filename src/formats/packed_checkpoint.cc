#include "formats/packed_checkpoint.h"

#include "base/error.h"
#include "formats/dense/dense.h"

namespace nibble {
namespace {

const Json* linear_entry(const Checkpoint& checkpoint, const std::string& name) {
  if (checkpoint.kind() != CheckpointKind::kNibble) return nullptr;
  const Json& quantization = checkpoint.config().at("quantization_config");
  const auto linears = quantization.find("linears");
  if (linears == quantization.end()) return nullptr;
  const auto entry = linears->find(name);
  return entry == linears->end() ? nullptr : &*entry;
}

std::string config_source(const Checkpoint& checkpoint) {
  return (checkpoint.path() / "config.json").string();
}

// The floats of `tensor` in a type that dense holds, without a copy where the file has one.
Tensor dense_tensor(const CheckpointTensor& tensor) {
  if (tensor.plain) {
    const DType dtype = tensor.plain->dtype();
    if (dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16) return *tensor.plain;
  }
  return tensor.read_f32();
}

PackedLinear load_dense(const Checkpoint& checkpoint, const std::string& name, int64_t out_features,
                        int64_t in_features) {
  Tensor weight = dense_tensor(checkpoint.require(name + ".weight", {out_features, in_features}));
  Tensor bias;
  if (checkpoint.find(name + ".bias") != nullptr) {
    bias = checkpoint.require(name + ".bias", {out_features}).read_f32();
  }
  return make_dense_linear(name, std::move(weight), std::move(bias));
}

FormatParameters read_parameters(const Json& entry, const std::string& source) {
  FormatParameters parameters;
  const auto object = entry.find("parameters");
  if (object == entry.end()) return parameters;
  if (!object->is_object()) fail("{}: 'parameters' must be an object", source);
  for (const auto& [key, value] : object->items())
    parameters.emplace(key, json_int(*object, key, std::nullopt, source));
  return parameters;
}

const LinearFormat& named_format(const Json& entry, const std::string& source) {
  if (!entry.is_object()) fail("{} must be an object", source);
  const std::string name = json_string(entry, "format", std::nullopt, source);
  const LinearFormat* format = find_format(name);
  if (format == nullptr) {
    std::string known;
    for (const LinearFormat* each : all_formats())
      known += (known.empty() ? "" : ", ") + std::string(each->name);
    fail("{}: unknown format '{}', expected one of {}", source, name, known);
  }
  return *format;
}

}  // namespace

PackedLinear packed_linear_from_tensors(const std::string& name, const Json& entry,
                                        const std::map<std::string, Tensor>& tensors, int64_t out_features,
                                        int64_t in_features, const std::string& source) {
  PackedLinear linear = {.format = &named_format(entry, source + ": linear '" + name + "'"),
                         .name = name,
                         .out_features = out_features,
                         .in_features = in_features,
                         .parameters = read_parameters(entry, source + ": linear '" + name + "'")};
  // The linear's tensors are those named "<name>.<suffix>" with no further dot in the suffix.
  const std::string prefix = name + ".";
  for (auto place = tensors.lower_bound(prefix); place != tensors.end() && place->first.starts_with(prefix);
       ++place) {
    const std::string suffix = place->first.substr(prefix.size());
    if (suffix.find('.') != std::string::npos) continue;
    linear.tensors.emplace(suffix, suffix == "bias" ? to_f32(place->second) : place->second);
  }
  try {
    linear.format->validate(linear);
  } catch (const Error& error) {
    fail("{}: {}", source, error.what());
  }
  return linear;
}

PackedLinear load_packed_linear(const Checkpoint& checkpoint, const std::string& name, int64_t out_features,
                                int64_t in_features) {
  const Json* entry = linear_entry(checkpoint, name);
  if (entry == nullptr) return load_dense(checkpoint, name, out_features, in_features);

  const std::string source = config_source(checkpoint) + ": linear '" + name + "'";
  if (&named_format(*entry, source) == &kDenseFormat) {
    if (!read_parameters(*entry, source).empty()) fail("{}: format 'dense' has no parameters", source);
    return load_dense(checkpoint, name, out_features, in_features);
  }
  const std::string prefix = name + ".";
  std::map<std::string, Tensor> tensors;
  for (auto place = checkpoint.tensors().lower_bound(prefix);
       place != checkpoint.tensors().end() && place->first.starts_with(prefix); ++place) {
    const CheckpointTensor& tensor = place->second;
    if (!tensor.plain) {
      fail("{}: tensor '{}' has type {}, expected plain elements", tensor.file.string(), tensor.name,
           tensor.storage_type);
    }
    tensors.emplace(tensor.name, *tensor.plain);
  }
  return packed_linear_from_tensors(name, *entry, tensors, out_features, in_features,
                                    checkpoint.path().string());
}

Json packed_linear_config(const PackedLinear& linear) {
  Json parameters = Json::object();
  for (const auto& [key, value] : linear.parameters) parameters[key] = value;
  return {{"format", linear.format->name}, {"parameters", std::move(parameters)}};
}

void check_nibble_config(const Checkpoint& checkpoint) {
  const std::string source = config_source(checkpoint);
  const Json& config = checkpoint.config();
  const auto quantization = config.find("quantization_config");
  if (quantization == config.end() || !quantization->is_object()) {
    fail("{}: 'quantization_config' must be an object", source);
  }
  const std::string method = json_string(*quantization, "quant_method", std::nullopt, source);
  if (method != "nibble") fail("{}: 'quant_method' is '{}', expected 'nibble'", source, method);
  const int64_t version = json_int(*quantization, "format_version", std::nullopt, source);
  if (version > kNibbleFormatVersion) {
    fail("{}: the folder has format version {}; this program reads up to {}: a newer nibble is needed",
         source, version, kNibbleFormatVersion);
  }
  if (version < 1) fail("{}: 'format_version' is {}, expected 1 or more", source, version);
  const auto linears = quantization->find("linears");
  if (linears != quantization->end() && !linears->is_object())
    fail("{}: 'linears' must be an object", source);
}

}  // namespace nibble
