#include "comparison/row_record.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "io/atomic_output.h"
#include "io/json.h"

namespace nibble {
namespace {

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }
Json measured(const Measured& value) {
  return Json::array({number(value.value), number(value.standard_error)});
}

double number_of(const Json& json) { return json.is_null() ? kNotMeasured : json.get<double>(); }
Measured measured_of(const Json& json) { return {number_of(json.at(0)), number_of(json.at(1))}; }

Json to_json(const RowRecord& record) {
  const ComparisonRow& row = record.row;
  Json json = {{"quantize_seconds", number(record.quantize_seconds)}, {"key", record.key}};
  if (record.key.empty()) return json;
  json["perplexity"] = measured(row.perplexity);
  json["kl_divergence"] = measured(row.kl_divergence);
  json["top1_agreement"] = measured(row.top1_agreement);
  json["bits_per_weight"] = number(row.bits_per_weight);
  json["file_bytes"] = number(row.file_bytes);
  json["arithmetic"] = row.arithmetic;
  json["mac_share"] = Json::array();
  for (const auto& [bits, share] : row.mac_share) json["mac_share"].push_back(Json::array({bits, share}));
  json["layer_errors"] = Json::array();
  for (const LayerError& error : row.layer_errors)
    json["layer_errors"].push_back(Json::array({error.linear, number(error.error)}));
  json["tasks"] = Json::array();
  for (const TaskAccuracy& task : row.tasks) {
    json["tasks"].push_back({{"task", task.task},
                             {"shape", task.shape},
                             {"examples", task.examples},
                             {"accuracy", measured(task.accuracy)},
                             {"accuracy_norm", measured(task.accuracy_norm)},
                             {"perplexity", measured(task.perplexity)},
                             {"agreement", measured(task.agreement)}});
  }
  return json;
}

RowRecord from_json(const Json& json) {
  RowRecord record;
  record.quantize_seconds = number_of(json.at("quantize_seconds"));
  record.key = json.at("key").get<std::string>();
  if (record.key.empty()) return record;
  ComparisonRow& row = record.row;
  row.perplexity = measured_of(json.at("perplexity"));
  row.kl_divergence = measured_of(json.at("kl_divergence"));
  row.top1_agreement = measured_of(json.at("top1_agreement"));
  row.bits_per_weight = number_of(json.at("bits_per_weight"));
  row.file_bytes = number_of(json.at("file_bytes"));
  row.arithmetic = json.at("arithmetic").get<std::map<std::string, double>>();
  for (const Json& entry : json.at("mac_share"))
    row.mac_share[entry.at(0).get<int>()] = entry.at(1).get<double>();
  for (const Json& entry : json.at("layer_errors"))
    row.layer_errors.push_back({entry.at(0).get<std::string>(), number_of(entry.at(1))});
  for (const Json& entry : json.at("tasks")) {
    row.tasks.push_back({.task = entry.at("task").get<std::string>(),
                         .shape = entry.at("shape").get<std::string>(),
                         .examples = entry.at("examples").get<int64_t>(),
                         .accuracy = measured_of(entry.at("accuracy")),
                         .accuracy_norm = measured_of(entry.at("accuracy_norm")),
                         .perplexity = measured_of(entry.at("perplexity")),
                         .agreement = measured_of(entry.at("agreement"))});
  }
  return record;
}

}  // namespace

RowRecord read_row_record(const std::filesystem::path& path) {
  std::error_code none;
  if (!std::filesystem::exists(path, none)) return {};
  try {
    return from_json(read_json_file(path));
  } catch (const Error& error) {
    log_warning("{}; what it remembers is measured again", error.what());
  } catch (const Json::exception& error) {
    log_warning("{}: is no record of a comparison ({}); what it remembers is measured again", path.string(),
                error.what());
  }
  return {};
}

void write_row_record(const std::filesystem::path& path, const RowRecord& record) {
  AtomicOutput output(path, /*is_folder=*/false, /*replace=*/true);
  {
    std::ofstream file(output.temporary_path(), std::ios::binary);
    file << to_json(record).dump(1) << "\n";
    file.close();
    if (!file) fail("{}: cannot be written: {}", path.string(), std::strerror(errno));
  }
  output.commit();
}

}  // namespace nibble
