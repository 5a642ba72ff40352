// nibble inspect: what a model consists of, how its linears are stored, and which kernels run them here.
#include <algorithm>
#include <map>

#include "base/error.h"
#include "command.h"
#include "io/checkpoint.h"
#include "json_output.h"
#include "pipeline/quantization_record.h"
#include "runtime/device_model.h"
#include "runtime/model_facts.h"

namespace nibble {
namespace {

const char* kind_name(CheckpointKind kind) {
  switch (kind) {
    case CheckpointKind::kHuggingFace:
      return "Hugging Face folder";
    case CheckpointKind::kNibble:
      return "nibble folder";
    case CheckpointKind::kGguf:
      return "GGUF file";
  }
  return "";
}

// "4.1e-02 model.layers.0.mlp.down_proj, ..." of the linears whose outputs lost most when they were
// quantized.
std::string worst_linears(const QuantizationRecord& record, size_t count) {
  std::vector<std::pair<double, std::string>> worst;
  for (const auto& [name, error] : record.errors) {
    if (error.of_linear() > 0) worst.emplace_back(-error.of_linear(), name);
  }
  std::sort(worst.begin(), worst.end());
  std::string text;
  for (size_t i = 0; i < std::min(count, worst.size()); ++i)
    text += format_text("{}{:.1e} {}", i == 0 ? "" : ", ", -worst[i].first, worst[i].second);
  return text;
}

OrderedJson to_json(const LinearFacts& linear, bool with_reasons) {
  OrderedJson json = {{"name", linear.name},
                      {"format", linear.format},
                      {"bits", linear.bits},
                      {"kernel", linear.kernel},
                      {"arithmetic", linear.arithmetic},
                      {"activations", linear.activations},
                      {"outlier_columns", linear.outlier_columns},
                      {"sparse_values", linear.sparse_values},
                      {"out_features", linear.out_features},
                      {"in_features", linear.in_features},
                      {"bits_per_weight", 8 * linear.stored_bytes / linear.weights()}};
  if (with_reasons) {
    json["refused"] = OrderedJson::array();
    for (const auto& [kernel, reason] : linear.refused) {
      json["refused"].push_back({{"kernel", kernel}, {"reason", reason}});
    }
  }
  return json;
}

bool architecture_known(const Checkpoint& checkpoint) {
  const auto type = checkpoint.config().find("model_type");
  return type != checkpoint.config().end() && type->is_string() &&
         std::any_of(all_architectures().begin(), all_architectures().end(),
                     [&](const Architecture* known) { return *type == known->model_type; });
}

std::string model_type(const Checkpoint& checkpoint) {
  return json_string(checkpoint.config(), "model_type", "unknown", checkpoint.path().string());
}

void print_linears(const ModelFacts& report, bool kernels) {
  // Layers of one model are mostly alike: equal rows are told once, with how many there are.
  struct Row {
    const LinearFacts* first;
    int64_t count = 0;
    double bytes = 0, weights = 0, sparse = 0;
  };
  std::vector<Row> rows;
  std::map<std::string, size_t> index;
  for (const LinearFacts& linear : report.linears) {
    std::string role = linear.name;
    const size_t dot = role.rfind('.');
    if (dot != std::string::npos) role = role.substr(dot + 1);
    const std::string key =
        format_text("{}|{}|{}|{}|{}|{}|{}x{}|{}|{}", role, linear.format, linear.bits, linear.kernel,
                    linear.arithmetic, linear.activations, linear.out_features, linear.in_features,
                    linear.outlier_columns, linear.sparse_values > 0);
    const auto [found, inserted] = index.emplace(key, rows.size());
    if (inserted) rows.push_back({.first = &linear});
    Row& row = rows[found->second];
    ++row.count;
    row.bytes += linear.stored_bytes;
    row.weights += linear.weights();
    row.sparse += static_cast<double>(linear.sparse_values);
  }
  write_output(format_text("\n{:>5}  {:<12} {:>13}  {:<12} {:>5}  {:<22} {:<19} {:>8} {:>8} {:>7}  {}\n",
                           "count", "linear", "out x in", "format", "bits", "arithmetic", "activations",
                           "outliers", "sparse %", "b/w", "kernel"));
  for (const Row& row : rows) {
    const LinearFacts& linear = *row.first;
    write_output(format_text(
        "{:>5}  {:<12} {:>13}  {:<12} {:>5}  {:<22} {:<19} {:>8} {:>8.2f} {:>7.3f}  {}\n", row.count,
        linear.name.substr(linear.name.rfind('.') + 1),
        format_text("{}x{}", linear.out_features, linear.in_features), linear.format, linear.bits,
        linear.arithmetic, linear.activations.empty() ? "-" : linear.activations, linear.outlier_columns,
        100 * row.sparse / row.weights, 8 * row.bytes / row.weights, linear.kernel));
    if (!kernels) continue;
    for (const auto& [kernel, reason] : linear.refused)
      write_output(format_text("{:>21} not {}: {}\n", "", kernel, reason));
  }
}

void print_report(const Checkpoint& checkpoint, const ModelSpec& spec, const ModelFacts& report,
                  bool kernels) {
  write_output(
      format_text("architecture    {}, {} layers, hidden {}, FFN {}, {} heads ({} for keys) of {}, "
                  "vocabulary {}, context {}\n",
                  spec.model_type, spec.layers, spec.hidden_size, spec.intermediate_size, spec.heads,
                  spec.kv_heads, spec.head_dim, spec.vocabulary, spec.context_length));
  if (checkpoint.kind() == CheckpointKind::kNibble) {
    const Json& quantization = checkpoint.config().at("quantization_config");
    const Json recipe = quantization.value("recipe", Json::object());
    write_output(format_text("recipe          {}\n",
                             json_string(recipe, "name", "not named", checkpoint.path().string())));
  }
  const double file_bytes = static_cast<double>(checkpoint.file_bytes());
  write_output(format_text("size            {} for {:.1f} M parameters, {:.3f} bits each\n",
                           format_bytes(file_bytes), report.parameters / 1e6,
                           8 * file_bytes / report.parameters));
  write_output(format_text("linears         {} in {} blocks, {:.3f} bits per weight, metadata included\n",
                           report.linears.size(), spec.layers, report.bits_per_weight()));
  std::string shares;
  for (const auto& [bits, share] : report.mac_share()) {
    shares += format_text("{}{:.1f} % in {} bit", shares.empty() ? "" : ", ", 100 * share, bits);
  }
  write_output(format_text("multiply-adds   {} (of the blocks' linears, by bits of the weight)\n", shares));
  write_output(format_text("embedding       {} {} bit, {:.3f} bits per weight\n", report.embedding.format,
                           report.embedding.bits,
                           8 * report.embedding.stored_bytes / report.embedding.weights()));
  write_output(format_text("head            {} {} bit, {}, {}{}\n", report.head.format, report.head.bits,
                           report.head.arithmetic, report.head.kernel,
                           report.tied_head ? ", tied to the embedding" : ""));
  if (checkpoint.kind() == CheckpointKind::kNibble) {
    const std::string worst = worst_linears(read_quantization_record(checkpoint), 3);
    if (!worst.empty()) write_output(format_text("largest errors  {}\n", worst));
  }
  print_linears(report, kernels);
}

// How the linears would run on the GPU of --device.
std::vector<DeviceLinearFacts> device_facts(const Checkpoint& checkpoint, int gpu, ThreadPool& pool) {
  const auto model = Model::load(checkpoint, pool, {.prepare = false});
  return describe_device_linears(*model, gpu);
}

void print_device_linears(const std::vector<DeviceLinearFacts>& linears, const std::string& device) {
  std::map<std::string, int64_t> counts;
  for (const DeviceLinearFacts& facts : linears) {
    std::string text =
        format_text("{} on {}{}", facts.format, facts.kernel, facts.slower ? ", the slower path" : "");
    for (const auto& [kernel, reason] : facts.refused) text += format_text("; not {}: {}", kernel, reason);
    counts[text] += static_cast<int64_t>(facts.names.size());
  }
  write_output(format_text("\non {}\n", device));
  for (const auto& [text, count] : counts) write_output(format_text("{:>5}  {}\n", count, text));
}

OrderedJson device_linears_json(const std::vector<DeviceLinearFacts>& linears) {
  OrderedJson json = OrderedJson::array();
  for (const DeviceLinearFacts& facts : linears) {
    OrderedJson refused = OrderedJson::object();
    for (const auto& [kernel, reason] : facts.refused) refused[kernel] = reason;
    json.push_back({{"names", facts.names},
                    {"format", facts.format},
                    {"kernel", facts.kernel},
                    {"slower", facts.slower},
                    {"refused", refused}});
  }
  return json;
}

OrderedJson tensors_json(const Checkpoint& checkpoint) {
  OrderedJson tensors = OrderedJson::array();
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    tensors.push_back({{"name", name},
                       {"shape", tensor.shape},
                       {"type", tensor.storage_type},
                       {"bytes", tensor.stored_bytes}});
  }
  return tensors;
}

int inspect(const std::filesystem::path& path, bool kernels, const CommonOptions& common) {
  const Checkpoint checkpoint = Checkpoint::open(path);
  OrderedJson json = {{"path", path.string()},
                      {"kind", kind_name(checkpoint.kind())},
                      {"architecture", model_type(checkpoint)},
                      {"file_bytes", checkpoint.file_bytes()}};
  if (!common.json) write_output(format_text("{}: {}\n", path.string(), kind_name(checkpoint.kind())));

  if (!architecture_known(checkpoint)) {
    if (common.json) {
      json["architecture_known"] = false;
      json["tensors"] = tensors_json(checkpoint);
      write_json(json);
      return kExitDone;
    }
    write_output(format_text("architecture    {}, which this program does not know: its tensors are\n\n",
                             model_type(checkpoint)));
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      write_output(format_text("{:<60} {:<8} {:<20} {}\n", name, tensor.storage_type, to_string(tensor.shape),
                               format_bytes(static_cast<double>(tensor.stored_bytes))));
    }
    return kExitDone;
  }

  ThreadPool pool(common.threads);
  const ModelSpec spec = read_model_spec(checkpoint);
  const ModelFacts report = read_model_facts(checkpoint, pool);
  const int gpu = common.engine_device().gpu;
  std::vector<DeviceLinearFacts> on_device;
  if (gpu >= 0) on_device = device_facts(checkpoint, gpu, pool);
  if (!common.json) {
    print_report(checkpoint, spec, report, kernels);
    if (gpu >= 0) print_device_linears(on_device, common.device);
    return kExitDone;
  }
  if (gpu >= 0) json["device_linears"] = device_linears_json(on_device);
  json["architecture_known"] = true;
  json["layers"] = spec.layers;
  json["hidden_size"] = spec.hidden_size;
  json["vocabulary"] = spec.vocabulary;
  json["context_length"] = spec.context_length;
  json["parameters"] = static_cast<int64_t>(report.parameters);
  json["bits_per_weight"] = report.bits_per_weight();
  json["file_bits_per_weight"] = 8 * static_cast<double>(checkpoint.file_bytes()) / report.parameters;
  json["mac_share"] = OrderedJson::object();
  for (const auto& [bits, share] : report.mac_share()) json["mac_share"][std::to_string(bits)] = share;
  json["prepared_bytes"] = report.prepared_bytes;
  json["linears"] = OrderedJson::array();
  for (const LinearFacts& linear : report.linears) json["linears"].push_back(to_json(linear, kernels));
  json["embedding"] = to_json(report.embedding, false);
  json["head"] = to_json(report.head, kernels);
  json["head"]["tied"] = report.tied_head;
  if (checkpoint.kind() == CheckpointKind::kNibble) {
    const Json& quantization = checkpoint.config().at("quantization_config");
    for (const char* key : {"recipe", "provenance"}) {
      if (quantization.contains(key)) json[key] = quantization.at(key);
    }
    const QuantizationRecord record = read_quantization_record(checkpoint);
    for (OrderedJson& linear : json["linears"]) {
      const auto found = record.errors.find(linear.at("name").get<std::string>());
      if (found == record.errors.end()) continue;
      linear["weight_error"] = found->second.weight;
      linear["output_error"] = found->second.output;
    }
  }
  write_json(json);
  return kExitDone;
}

}  // namespace

Action add_inspect(CLI::App& command) {
  const auto common = add_common_options(command);
  const auto path = std::make_shared<std::filesystem::path>();
  const auto kernels = std::make_shared<bool>(false);
  add_model_argument(command, path.get());
  command.add_flag("--kernels", *kernels, "Also say why faster kernels do not run a linear here");
  set_examples(command, {"nibble inspect MODEL", "nibble inspect OUT --kernels",
                         "nibble inspect OUT --kernels --device cuda", "nibble inspect OUT --json"});
  return [path, kernels, common] {
    common->apply(true);
    return inspect(*path, *kernels, *common);
  };
}

}  // namespace nibble
