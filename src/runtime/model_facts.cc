#include "runtime/model_facts.h"

#include "base/interrupt.h"
#include "base/log.h"

namespace nibble {
namespace {

// Bytes that a linear takes in its file: GGUF's block types are decoded when read, so what is in memory does
// not tell.
double stored_bytes(const Checkpoint& checkpoint, const PackedLinear& packed) {
  const CheckpointTensor* source = checkpoint.find(packed.name + ".weight");
  return static_cast<double>(source != nullptr ? source->stored_bytes : packed.weight_bytes());
}

// "static", "per_token", ...: what the folder notes of a linear's activations.
std::string activations_of(const Checkpoint& checkpoint, const std::string& name) {
  if (checkpoint.kind() != CheckpointKind::kNibble) return "";
  const Json& quantization = checkpoint.config().at("quantization_config");
  const auto linears = quantization.find("linears");
  if (linears == quantization.end()) return "";
  const auto entry = linears->find(name);
  if (entry == linears->end()) return "";
  return json_string(*entry, "activations", "", checkpoint.path().string() + ": linear '" + name + "'");
}

LinearFacts describe(const Checkpoint& checkpoint, const PackedLinear& packed, const LinearKernel* kernel) {
  LinearFacts facts;
  facts.name = packed.name;
  facts.format = packed.format->name;
  facts.kernel = kernel == nullptr ? "" : kernel->name;
  facts.arithmetic = packed.format->arithmetic(packed);
  facts.activations = activations_of(checkpoint, packed.name);
  facts.out_features = packed.out_features;
  facts.in_features = packed.in_features;
  facts.bits = packed.format->code_bits(packed);
  facts.outlier_columns = packed.parameter("outlier_columns", 0);
  facts.sparse_values = packed.parameter("sparse_values", 0);
  facts.stored_bytes =
      facts.format == "dense" ? stored_bytes(checkpoint, packed) : static_cast<double>(packed.weight_bytes());
  if (kernel != nullptr) {
    for (const auto& [refused, reason] :
         choose_kernel({.linear = &packed, .out_features = packed.out_features}).refused) {
      facts.refused.emplace_back(refused->name, reason);
    }
  }
  return facts;
}

void add_block(const Checkpoint& checkpoint, const Block& block, ModelFacts* facts) {
  for (const auto& sublayer : block.sublayers) {
    for (const LinearGroup* group : sublayer->groups()) {
      for (size_t i = 0; i < group->slots().size(); ++i) {
        const PackedLinear& packed = *group->slots()[i].packed;
        LinearFacts linear = describe(checkpoint, packed, group->kernel_of(i));
        linear.name = group->slots()[i].name;
        for (const auto& [bits, count] : packed.format->multiply_adds(packed)) {
          facts->multiply_adds[bits] += count;
          facts->arithmetic[bits == linear.bits ? linear.arithmetic : format_text("{}-bit weights", bits)] +=
              count;
        }
        facts->linears.push_back(std::move(linear));
      }
      facts->prepared_bytes += group->prepared_bytes();
    }
  }
}

void add_rest(const Checkpoint& checkpoint, const Model& model, ModelFacts* facts) {
  facts->tied_head = model.spec().tied_embeddings;
  facts->embedding = describe(checkpoint, model.embedding(), nullptr);
  facts->head = describe(checkpoint, *model.head().slots().front().packed, model.head().kernel_of(0));
  facts->prepared_bytes += model.head().prepared_bytes();

  for (const LinearFacts& linear : facts->linears) facts->parameters += linear.weights();
  facts->parameters += facts->embedding.weights() + (facts->tied_head ? 0 : facts->head.weights());
  for (const auto& [name, tensor] : checkpoint.tensors()) {  // norms and biases
    if (tensor.shape.size() == 1 && (name.ends_with("norm.weight") || name.ends_with(".bias"))) {
      facts->parameters += static_cast<double>(tensor.shape[0]);
    }
  }
}

template <typename Key>
std::map<Key, double> shares(const std::map<Key, double>& counts) {
  double total = 0;
  for (const auto& [key, count] : counts) total += count;
  std::map<Key, double> result;
  for (const auto& [key, count] : counts) {
    if (count > 0) result[key] = count / total;
  }
  return result;
}

}  // namespace

double ModelFacts::bits_per_weight() const {
  double bytes = 0, weights = 0, all_bytes = 0, all_weights = 0;
  for (const LinearFacts& linear : linears) {
    all_bytes += linear.stored_bytes;
    all_weights += linear.weights();
    if (linear.format == "dense") continue;
    bytes += linear.stored_bytes;
    weights += linear.weights();
  }
  return weights > 0 ? 8 * bytes / weights : all_weights > 0 ? 8 * all_bytes / all_weights : 0;
}

std::map<int, double> ModelFacts::mac_share() const { return shares(multiply_adds); }
std::map<std::string, double> ModelFacts::arithmetic_share() const { return shares(arithmetic); }

ModelFacts read_model_facts(const Checkpoint& checkpoint, ThreadPool& pool) {
  ModelFacts facts;
  const std::unique_ptr<Model> model = Model::load_shell(checkpoint, pool);
  Progress progress("reading", static_cast<double>(model->spec().layers));
  for (int64_t layer = 0; layer < model->spec().layers; ++layer) {
    throw_if_interrupted();
    add_block(checkpoint, model->load_block(layer, pool), &facts);
    progress.update(static_cast<double>(layer + 1));
  }
  add_rest(checkpoint, *model, &facts);
  return facts;
}

ModelFacts model_facts(const Checkpoint& checkpoint, const Model& model) {
  ModelFacts facts;
  for (const Block& block : model.blocks()) add_block(checkpoint, block, &facts);
  add_rest(checkpoint, model, &facts);
  return facts;
}

}  // namespace nibble
