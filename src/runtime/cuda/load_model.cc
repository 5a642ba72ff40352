// From a model as its checkpoint describes it to one in GPU memory.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/cuda/dense_linear.h"
#include "base/error.h"
#include "base/log.h"
#include "models/layers.h"
#include "models/rope.h"
#include "runtime/cuda/cuda_model.h"

namespace nibble {
namespace cuda {
namespace {

std::vector<const PackedLinear*> members(const LinearGroup& group) {
  std::vector<const PackedLinear*> linears;
  for (const LinearSlot& slot : group.slots()) linears.push_back(slot.packed.get());
  return linears;
}

struct LayerParts {
  const AttentionParts* attention = nullptr;
  const MlpParts* mlp = nullptr;
  // In execution order.
  std::vector<std::vector<const PackedLinear*>> groups() const {
    return {members(*attention->query_key_value), members(*attention->output), members(*mlp->gate_up),
            members(*mlp->down)};
  }
};

LayerParts parts_of(const Block& block) {
  LayerParts parts;
  for (const std::unique_ptr<SubLayer>& sublayer : block.sublayers) {
    if (sublayer->attention_parts() != nullptr) parts.attention = sublayer->attention_parts();
    if (sublayer->mlp_parts() != nullptr) parts.mlp = sublayer->mlp_parts();
  }
  NIBBLE_CHECK(parts.attention != nullptr && parts.mlp != nullptr);
  return parts;
}

// What the device's model cannot run, in words, or nothing.
std::string unsupported(const ModelSpec& spec) {
  if (spec.norm != NormKind::kRms) return "layer norms";
  if (spec.activation != ActivationKind::kSilu || !spec.gated_mlp) return "its kind of MLP";
  for (const std::optional<HadamardShape>& rotation : {spec.hidden_hadamard, spec.down_hadamard}) {
    if (!rotation) continue;
    if (const std::string problem = DeviceHadamard::refusal(*rotation); !problem.empty())
      return "rotations of " + problem;
  }
  if (spec.head_dim % 4 != 0 || spec.head_dim > 256)
    return format_text("heads of {} channels (expected a multiple of 4 up to 256)", spec.head_dim);
  if (spec.hidden_size % 8 != 0 || spec.intermediate_size % 8 != 0)
    return format_text("widths of {} and {} (expected multiples of 8)", spec.hidden_size,
                       spec.intermediate_size);
  if (spec.rope.enabled && spec.rope.rotary_dim != 0 && spec.rope.rotary_dim != spec.head_dim)
    return format_text("rotation of {} of a head's {} channels", spec.rope.rotary_dim, spec.head_dim);
  return "";
}

Buffer upload_floats(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  Buffer buffer(tensor.bytes());
  buffer.upload(tensor.data<float>(), tensor.bytes());
  return buffer;
}

// `group` null: before anything is loaded.
void add_facts(std::span<const PackedLinear* const> linears, const DeviceLinearGroup* group,
               const Device& device, std::vector<DeviceLinearFacts>* facts) {
  const std::vector<DeviceLinearChoice> choices = choose_for_group(linears, device);
  std::vector<LinearPath> decode(choices.size()), prompt(choices.size());
  if (group != nullptr) {
    decode = group->paths(1);
    prompt = group->paths(512);
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    const auto text = [](const LinearPath& path) {
      return path.kernel.empty() ? "" : path.kernel + ", " + path.arithmetic;
    };
    DeviceLinearFacts made = {.names = choices[i].names,
                              .format = choices[i].format->name,
                              .kernel = choices[i].choice.kernel->name,
                              .slower = choices[i].choice.kernel->slower,
                              .decode = text(decode[i]),
                              .prompt = text(prompt[i]),
                              .refused = {}};
    for (const auto& [kernel, reason] : choices[i].choice.refused)
      made.refused.emplace_back(kernel->name, reason);
    facts->push_back(std::move(made));
  }
}

int chunk_for(int64_t context_length) {
  return static_cast<int>(std::clamp<int64_t>(context_length, 1, kPromptChunk));
}

size_t table_bytes(const PackedLinear& table) { return choose_token_table(table).kernel->bytes(table); }

// `loaded` null: before anything is.
DeviceLinearFacts head_facts(const PackedLinear& head, const TokenTable* loaded) {
  const TokenTableChoice choice = choose_token_table(head);
  std::string path;
  if (loaded != nullptr) path = loaded->path().kernel + ", " + loaded->path().arithmetic;
  DeviceLinearFacts facts = {.names = {head.name},
                             .format = head.format->name,
                             .kernel = choice.kernel->name,
                             .slower = choice.kernel->slower,
                             .decode = path,
                             .prompt = path,
                             .refused = {}};
  for (const auto& [kernel, reason] : choice.refused) facts.refused.emplace_back(kernel->name, reason);
  return facts;
}

}  // namespace
}  // namespace cuda

void require_device(int device) { cuda::open_device(device); }

std::vector<DeviceLinearFacts> describe_device_linears(const Model& model, int index) {
  using namespace cuda;
  const Device device = open_device(index);
  std::vector<DeviceLinearFacts> facts;
  for (const Block& block : model.blocks()) {
    for (const auto& group : parts_of(block).groups()) add_facts(group, nullptr, device, &facts);
  }
  facts.push_back(head_facts(*model.head().slots().front().packed, nullptr));
  return facts;
}

std::unique_ptr<DeviceModel> load_device_model(const Model& model, int index, int64_t context_length,
                                               ThreadPool& pool) {
  using namespace cuda;
  const ModelSpec& spec = model.spec();
  if (const std::string what = unsupported(spec); !what.empty())
    fail("--device cuda:{}: models with {} do not run on the GPU; use --device cpu", index, what);
  const Device device = open_device(index);
  const int chunk = chunk_for(context_length);
  const PackedLinear& embedding = model.embedding();
  const PackedLinear& head = *model.head().slots().front().packed;
  const bool tied = &head == &embedding;
  size_t weights = table_bytes(embedding) + (tied ? 0 : table_bytes(head));
  for (const Block& block : model.blocks()) {
    for (const auto& group : parts_of(block).groups()) weights += group_bytes(group, device);
  }
  const size_t activations = activation_bytes(spec, chunk, size_t{64} << 20);
  require_memory(device, weights + activations,
                 format_text("this model ({} of weights, {} for running {} tokens at a time)",
                             format_bytes(static_cast<double>(weights)),
                             format_bytes(static_cast<double>(activations)), chunk));

  std::vector<DeviceLayer> layers;
  std::vector<DeviceLinearFacts> facts;
  Progress progress("uploading", static_cast<double>(model.blocks().size()));
  for (size_t i = 0; i < model.blocks().size(); ++i) {
    const LayerParts parts = parts_of(model.blocks()[i]);
    const auto groups = parts.groups();
    std::vector<DeviceLinearGroup> loaded;
    for (const auto& group : groups) {
      loaded.emplace_back(group, device, pool);
      add_facts(group, &loaded.back(), device, &facts);
    }
    layers.push_back({.attention_norm = upload_floats(parts.attention->norm.weight),
                      .mlp_norm = upload_floats(parts.mlp->norm.weight),
                      .query_norm = upload_floats(parts.attention->query_norm.weight),
                      .key_norm = upload_floats(parts.attention->key_norm.weight),
                      .query_key_value = std::move(loaded[0]),
                      .output = std::move(loaded[1]),
                      .gate_up = std::move(loaded[2]),
                      .down = std::move(loaded[3]),
                      .window = static_cast<int>(std::min<int64_t>(
                          attention_shape(spec, parts.attention->layer).window, int64_t{1} << 30))});
    progress.update(static_cast<double>(i + 1));
  }
  progress.finish();
  CudaModel::Ends ends;
  ends.embedding = choose_token_table(embedding).kernel->load(embedding, pool);
  if (!tied) ends.head = choose_token_table(head).kernel->load(head, pool);
  facts.push_back(head_facts(head, tied ? ends.embedding.get() : ends.head.get()));
  ends.final_norm = upload_floats(model.final_norm().weight);
  if (spec.rope.enabled)
    ends.frequencies.assign(model.rope().frequencies().begin(), model.rope().frequencies().end());
  return std::make_unique<CudaModel>(spec, device, chunk, std::move(ends), std::move(layers),
                                     std::move(facts));
}

std::unique_ptr<DeviceModel> make_synthetic_device_model(const ModelSpec& spec,
                                                         std::span<const PackedLinear* const> layer,
                                                         int index, int64_t context_length,
                                                         ThreadPool& pool) {
  using namespace cuda;
  NIBBLE_CHECK(layer.size() == 7 && unsupported(spec).empty());
  const Device device = open_device(index);
  const int chunk = chunk_for(context_length);
  const int64_t h = spec.hidden_size, w = spec.intermediate_size, q = spec.query_size(), kv = spec.kv_size();
  struct Group {
    size_t first, count;  // among `layer`
    int64_t n, k;
  };
  const Group shapes[] = {{0, 3, q + 2 * kv, h}, {3, 1, h, q}, {4, 2, 2 * w, h}, {6, 1, h, w}};
  size_t layer_bytes = 0;
  for (const Group& group : shapes) {
    layer_bytes += layer[group.first] == nullptr
                       ? 2 * static_cast<size_t>(group.n * group.k)
                       : group_bytes(layer.subspan(group.first, group.count), device);
  }
  const size_t ends_bytes = 4 * static_cast<size_t>(spec.vocabulary * h);
  require_memory(device,
                 static_cast<size_t>(spec.layers) * layer_bytes + ends_bytes +
                     activation_bytes(spec, chunk, size_t{64} << 20),
                 format_text("a model of {} such layers", spec.layers));

  std::vector<DeviceLinearFacts> facts;
  std::vector<DeviceLinearGroup> first;
  for (const Group& group : shapes) {
    const auto linears = layer.subspan(group.first, group.count);
    if (linears.front() == nullptr) {
      facts.push_back({.names = std::vector<std::string>(group.count, "synthetic"),
                       .format = "dense",
                       .kernel = kDenseDeviceKernel.name,
                       .slower = false,
                       .decode = "cublaslt, f16xf16->f32",
                       .prompt = "cublaslt, f16xf16->f32",
                       .refused = {}});
      first.emplace_back(
          std::make_unique<DenseLinear>(group.n, group.k, static_cast<uint32_t>(group.first + 1)));
    } else {
      first.emplace_back(linears, device, pool);
      add_facts(linears, &first.back(), device, &facts);
    }
  }
  // Norms that make a linear's outputs about as large as 1, whatever the scale of its weights: 80 layers must
  // stay within FP16.
  const auto norm = [&](const PackedLinear* next) {
    double squares = 1;
    if (next != nullptr) {
      std::vector<float> row(static_cast<size_t>(h));
      next->format->dequantize_rows(*next, 0, 1, row.data());
      squares = std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
    }
    const std::vector<float> weights(static_cast<size_t>(h),
                                     squares > 0 ? static_cast<float>(1 / std::sqrt(squares)) : 1.0f);
    Buffer buffer(sizeof(float) * weights.size());
    buffer.upload(weights.data(), buffer.bytes());
    return buffer;
  };
  std::vector<DeviceLayer> layers;
  for (int64_t i = 0; i < spec.layers; ++i) {
    const bool own = i + 1 == spec.layers;  // the last layer takes the originals
    const auto take = [&](size_t group) { return own ? std::move(first[group]) : first[group].duplicate(); };
    layers.push_back({.attention_norm = norm(layer[0]),
                      .mlp_norm = norm(layer[4]),
                      .query_norm = {},
                      .key_norm = {},
                      .query_key_value = take(0),
                      .output = take(1),
                      .gate_up = take(2),
                      .down = take(3)});
  }
  CudaModel::Ends ends;
  ends.embedding = make_random_table(spec.vocabulary, h, 101u);
  ends.head = make_random_table(spec.vocabulary, h, 102u);
  ends.final_norm = norm(nullptr);
  ends.frequencies = rope_frequencies(spec.rope, spec.head_dim, {});
  return std::make_unique<CudaModel>(spec, device, chunk, std::move(ends), std::move(layers),
                                     std::move(facts));
}

}  // namespace nibble
