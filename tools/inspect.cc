// nibble inspect: what a model consists of, how its linears are stored, and which kernels run them here.
#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "command.h"
#include "io/checkpoint.h"
#include "json_output.h"
#include "models/model.h"

namespace nibble {
namespace {

struct LinearReport {
  std::string name, format, kernel, arithmetic;
  int64_t out_features = 0, in_features = 0;
  int bits = 0;
  int64_t outlier_columns = 0, sparse_values = 0;
  double stored_bytes = 0;                                   // metadata included, the bias not
  std::vector<std::pair<std::string, std::string>> refused;  // faster kernels and why they do not run it
  double weights() const { return static_cast<double>(out_features) * static_cast<double>(in_features); }
};

struct ModelReport {
  std::vector<LinearReport> linears;  // of the decoder's blocks, in execution order
  LinearReport embedding, head;
  bool tied_head = false;
  std::map<int, double> multiply_adds;  // of the decoder's linears per token, by weight bits
  double parameters = 0;                // of the source model
  size_t prepared_bytes = 0;            // memory that kernels hold beside the file
};

// Bytes that a linear takes in its file: GGUF's block types are decoded when read, so what is in memory does
// not tell.
double stored_bytes(const Checkpoint& checkpoint, const PackedLinear& packed) {
  const CheckpointTensor* source = checkpoint.find(packed.name + ".weight");
  return static_cast<double>(source != nullptr ? source->stored_bytes : packed.weight_bytes());
}

LinearReport describe(const Checkpoint& checkpoint, const PackedLinear& packed, const LinearKernel* kernel) {
  LinearReport report;
  report.name = packed.name;
  report.format = packed.format->name;
  report.kernel = kernel == nullptr ? "" : kernel->name;
  report.arithmetic = packed.format->arithmetic(packed);
  report.out_features = packed.out_features;
  report.in_features = packed.in_features;
  report.bits = packed.format->code_bits(packed);
  report.outlier_columns = packed.parameter("outlier_columns", 0);
  report.sparse_values = packed.parameter("sparse_values", 0);
  report.stored_bytes = report.format == "dense" ? stored_bytes(checkpoint, packed)
                                                 : static_cast<double>(packed.weight_bytes());
  if (kernel != nullptr) {
    for (const auto& [refused, reason] :
         choose_kernel({.linear = &packed, .out_features = packed.out_features}).refused) {
      report.refused.emplace_back(refused->name, reason);
    }
  }
  return report;
}

// Loads one block at a time: the memory of one block, whatever the size of the model.
ModelReport examine(const Checkpoint& checkpoint, ThreadPool& pool) {
  ModelReport report;
  const std::unique_ptr<Model> model = Model::load_shell(checkpoint, pool);
  Progress progress("reading", static_cast<double>(model->spec().layers));
  for (int64_t layer = 0; layer < model->spec().layers; ++layer) {
    throw_if_interrupted();
    Block block = model->load_block(layer, pool);
    for (const auto& sublayer : block.sublayers) {
      for (LinearGroup* group : sublayer->groups()) {
        for (size_t i = 0; i < group->slots().size(); ++i) {
          const PackedLinear& packed = *group->slots()[i].packed;
          report.linears.push_back(describe(checkpoint, packed, group->kernel_of(i)));
          report.linears.back().name = group->slots()[i].name;
          for (const auto& [bits, count] : packed.format->multiply_adds(packed))
            report.multiply_adds[bits] += count;
        }
        report.prepared_bytes += group->prepared_bytes();
      }
    }
    progress.update(static_cast<double>(layer + 1));
  }
  const ModelSpec& spec = model->spec();
  report.tied_head = spec.tied_embeddings;
  report.embedding = describe(checkpoint, model->embedding(), nullptr);
  report.head = describe(checkpoint, *model->head().slots().front().packed, model->head().kernel_of(0));
  report.prepared_bytes += model->head().prepared_bytes();

  for (const LinearReport& linear : report.linears) report.parameters += linear.weights();
  report.parameters += report.embedding.weights() + (report.tied_head ? 0 : report.head.weights());
  for (const auto& [name, tensor] : checkpoint.tensors()) {  // norms and biases
    if (tensor.shape.size() == 1 && (name.ends_with("norm.weight") || name.ends_with(".bias"))) {
      report.parameters += static_cast<double>(tensor.shape[0]);
    }
  }
  return report;
}

// Of the linears that are stored in a quantized format; of all where none is.
double bits_per_weight(const ModelReport& report) {
  double bytes = 0, weights = 0, all_bytes = 0, all_weights = 0;
  for (const LinearReport& linear : report.linears) {
    all_bytes += linear.stored_bytes;
    all_weights += linear.weights();
    if (linear.format == "dense") continue;
    bytes += linear.stored_bytes;
    weights += linear.weights();
  }
  return weights > 0 ? 8 * bytes / weights : all_weights > 0 ? 8 * all_bytes / all_weights : 0;
}

OrderedJson mac_share(const ModelReport& report) {
  double total = 0;
  for (const auto& [bits, count] : report.multiply_adds) total += count;
  OrderedJson shares = OrderedJson::object();
  for (const auto& [bits, count] : report.multiply_adds) {
    if (count > 0) shares[std::to_string(bits)] = count / total;
  }
  return shares;
}

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

OrderedJson to_json(const LinearReport& linear, bool with_reasons) {
  OrderedJson json = {{"name", linear.name},
                      {"format", linear.format},
                      {"bits", linear.bits},
                      {"kernel", linear.kernel},
                      {"arithmetic", linear.arithmetic},
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

void print_linears(const ModelReport& report, bool kernels) {
  // Layers of one model are mostly alike: equal rows are told once, with how many there are.
  struct Row {
    const LinearReport* first;
    int64_t count = 0;
    double bytes = 0, weights = 0, sparse = 0;
  };
  std::vector<Row> rows;
  std::map<std::string, size_t> index;
  for (const LinearReport& linear : report.linears) {
    std::string role = linear.name;
    const size_t dot = role.rfind('.');
    if (dot != std::string::npos) role = role.substr(dot + 1);
    const std::string key = format_text("{}|{}|{}|{}|{}|{}x{}|{}|{}", role, linear.format, linear.bits,
                                        linear.kernel, linear.arithmetic, linear.out_features,
                                        linear.in_features, linear.outlier_columns, linear.sparse_values > 0);
    const auto [found, inserted] = index.emplace(key, rows.size());
    if (inserted) rows.push_back({.first = &linear});
    Row& row = rows[found->second];
    ++row.count;
    row.bytes += linear.stored_bytes;
    row.weights += linear.weights();
    row.sparse += static_cast<double>(linear.sparse_values);
  }
  write_output(format_text("\n{:>5}  {:<12} {:>13}  {:<10} {:>5}  {:<22} {:>8} {:>8} {:>7}  {}\n", "count",
                           "linear", "out x in", "format", "bits", "arithmetic", "outliers", "sparse %",
                           "b/w", "kernel"));
  for (const Row& row : rows) {
    const LinearReport& linear = *row.first;
    write_output(format_text("{:>5}  {:<12} {:>13}  {:<10} {:>5}  {:<22} {:>8} {:>8.2f} {:>7.3f}  {}\n",
                             row.count, linear.name.substr(linear.name.rfind('.') + 1),
                             format_text("{}x{}", linear.out_features, linear.in_features), linear.format,
                             linear.bits, linear.arithmetic, linear.outlier_columns,
                             100 * row.sparse / row.weights, 8 * row.bytes / row.weights, linear.kernel));
    if (!kernels) continue;
    for (const auto& [kernel, reason] : linear.refused)
      write_output(format_text("{:>21} not {}: {}\n", "", kernel, reason));
  }
}

void print_report(const Checkpoint& checkpoint, const ModelSpec& spec, const ModelReport& report,
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
                           report.linears.size(), spec.layers, bits_per_weight(report)));
  std::string shares;
  const OrderedJson mac_shares = mac_share(report);
  for (const auto& [bits, share] : mac_shares.items()) {
    shares +=
        format_text("{}{:.1f} % in {} bit", shares.empty() ? "" : ", ", 100 * share.get<double>(), bits);
  }
  write_output(format_text("multiply-adds   {} (of the blocks' linears, by bits of the weight)\n", shares));
  write_output(format_text("embedding       {} {} bit, {:.3f} bits per weight\n", report.embedding.format,
                           report.embedding.bits,
                           8 * report.embedding.stored_bytes / report.embedding.weights()));
  write_output(format_text("head            {} {} bit, {}, {}{}\n", report.head.format, report.head.bits,
                           report.head.arithmetic, report.head.kernel,
                           report.tied_head ? ", tied to the embedding" : ""));
  print_linears(report, kernels);
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
  const ModelReport report = examine(checkpoint, pool);
  if (!common.json) {
    print_report(checkpoint, spec, report, kernels);
    return kExitDone;
  }
  json["architecture_known"] = true;
  json["layers"] = spec.layers;
  json["hidden_size"] = spec.hidden_size;
  json["vocabulary"] = spec.vocabulary;
  json["context_length"] = spec.context_length;
  json["parameters"] = static_cast<int64_t>(report.parameters);
  json["bits_per_weight"] = bits_per_weight(report);
  json["file_bits_per_weight"] = 8 * static_cast<double>(checkpoint.file_bytes()) / report.parameters;
  json["mac_share"] = mac_share(report);
  json["prepared_bytes"] = report.prepared_bytes;
  json["linears"] = OrderedJson::array();
  for (const LinearReport& linear : report.linears) json["linears"].push_back(to_json(linear, kernels));
  json["embedding"] = to_json(report.embedding, false);
  json["head"] = to_json(report.head, kernels);
  json["head"]["tied"] = report.tied_head;
  if (checkpoint.kind() == CheckpointKind::kNibble) {
    const Json& quantization = checkpoint.config().at("quantization_config");
    for (const char* key : {"recipe", "provenance"}) {
      if (quantization.contains(key)) json[key] = quantization.at(key);
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
  set_examples(command,
               {"nibble inspect MODEL", "nibble inspect OUT --kernels", "nibble inspect OUT --json"});
  return [path, kernels, common] {
    common->apply();
    return inspect(*path, *kernels, *common);
  };
}

}  // namespace nibble
