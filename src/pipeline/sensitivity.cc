#include "pipeline/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "gradients/accumulators.h"
#include "gradients/backward.h"
#include "io/atomic_output.h"
#include "models/linear_info.h"
#include "pipeline/block_quantizer.h"
#include "pipeline/residual_stream.h"
#include "pipeline/state_archive.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Every file of the store in the output's folder starts with this.
constexpr const char* kFilePrefix = "sensitivity-";
constexpr const char* kGradientFile = "sensitivity-gradient.safetensors";
constexpr const char* kLayerKey = "layer";
constexpr const char* kSquaredSuffix = ".squared_gradient";
constexpr const char* kGuidedSuffix = ".guided_hessian";

// Tokens of one batch: as many as keep the products at full speed.
constexpr int64_t kTokensPerBatch = 2048;
// Time of a block's backward pass in forward passes of it: most of the forward pass again, two products of
// its size per weight, and attention. Measured 2.8 to 3.2.
constexpr double kBackwardForwards = 3.0;
// Share of the available memory that the hidden states between blocks may take.
constexpr double kStateShare = 0.25;

int64_t sequences_per_batch(int64_t sequences, int64_t length) {
  return std::clamp<int64_t>(kTokensPerBatch / length, 1, sequences);
}

void write_whole(const fs::path& path, const std::map<std::string, Tensor>& tensors,
                 const std::map<std::string, std::string>& metadata = {}) {
  AtomicOutput output(path, /*is_folder=*/false, /*replace=*/true);
  write_safetensors(output.temporary_path(), tensors, metadata);
  output.commit();
}

const Tensor& require_tensor(const SafetensorsFile& file, const std::string& name, const Shape& shape) {
  const auto found = file.tensors.find(name);
  if (found == file.tensors.end()) fail("{}: tensor '{}' is missing", file.path.string(), name);
  if (found->second.dtype() != DType::kF32 || found->second.shape() != shape) {
    fail("{}: tensor '{}' is {} {}, expected F32 {}", file.path.string(), name,
         dtype_name(found->second.dtype()), to_string(found->second.shape()), to_string(shape));
  }
  return found->second;
}

// The sums of one linear while its block is measured.
struct Sums {
  std::unique_ptr<SquaredGradients> squares;
  std::unique_ptr<GuidedHessians> guided;
};

// The gradient by the input of block `layer` [tokens, hidden], from which an interrupted pass goes on; layer
// `layers` stands for the output of the last block.
struct BackwardState {
  int64_t layer = 0;
  Tensor gradient;
};

// What an interrupted run left, or nothing (layer -1).
BackwardState read_backward_state(const fs::path& path, const Shape& shape, int64_t layers) {
  if (!fs::exists(path)) return {.layer = -1};
  const SafetensorsFile file = open_safetensors(path);
  const auto found = file.metadata.find(kLayerKey);
  int64_t layer = -1;
  for (int64_t l = 0; l < layers && found != file.metadata.end(); ++l) {
    if (found->second == std::to_string(l)) layer = l;
  }
  if (layer < 0) {
    fail("{}: does not say of which layer of 0 to {} it is; run without --resume to start over",
         path.string(), layers - 1);
  }
  const Tensor& stored = require_tensor(file, "gradient", shape);
  return {layer, Tensor::copy_of<float>(shape, stored.values<float>())};
}

}  // namespace

int64_t SensitivityPlan::lowest_layer() const {
  NIBBLE_CHECK(!empty());
  return std::min_element(linears.begin(), linears.end(),
                          [](const auto& a, const auto& b) { return a.second.layer < b.second.layer; })
      ->second.layer;
}

SensitivityPlan plan_sensitivity(const Recipe& recipe, const ModelSpec& spec, int64_t sequences) {
  SensitivityPlan plan;
  for (const LinearInfo& linear : list_linears(spec)) {
    const LinearSettings settings = recipe.settings_for(linear.name, linear.role);
    const CalibrationNeeds needs = calibration_needs(settings);
    if (!needs.gradients()) continue;
    plan.linears[linear.name] = {.layer = linear.layer,
                                 .out_features = linear.out_features,
                                 .in_features = linear.in_features,
                                 .squared_gradients = needs.sensitivity,
                                 .guided_groups = needs.guided_hessian ? settings.guided_groups : 0};
  }
  plan.sequences = std::min(sequences, recipe.defaults.sensitivity_sequences);
  return plan;
}

SensitivityCost sensitivity_cost(const SensitivityPlan& plan, const ModelSpec& spec, int64_t length,
                                 double available_memory_bytes) {
  SensitivityCost cost;
  if (plan.empty()) return cost;
  const auto hidden = static_cast<double>(spec.hidden_size),
             width = static_cast<double>(spec.intermediate_size);
  const auto q = static_cast<double>(spec.query_size()), kv = static_cast<double>(spec.kv_size());
  const double tokens = static_cast<double>(plan.sequences) * static_cast<double>(length);
  const int64_t lowest = plan.lowest_layer();
  const auto layers = static_cast<double>(spec.layers), blocks = static_cast<double>(spec.layers - lowest);

  std::map<int64_t, double> sums;             // bytes by layer
  double block_weights = 0, guided_work = 0;  // multiply-adds per token and block, of all layers
  for (const auto& [name, want] : plan.linears) {
    const auto n = static_cast<double>(want.out_features), k = static_cast<double>(want.in_features);
    const auto groups = static_cast<double>(std::min(want.guided_groups, want.out_features));
    sums[want.layer] += (want.squared_gradients ? 4 * n * k : 0) + 4 * groups * k * k;
    guided_work += groups * k * k / 2;
  }
  for (const LinearInfo& linear : list_linears(spec)) {
    if (linear.layer != 0) continue;
    block_weights += static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features);
  }
  double largest = 0;
  for (const auto& [layer, bytes] : sums) {
    cost.disk_bytes += bytes;
    largest = std::max(largest, bytes);
  }
  const double state = 4 * tokens * hidden;
  cost.spill_states = blocks * state > kStateShare * available_memory_bytes;
  cost.disk_bytes += 2 * state;  // the gradient to go on from, once while its successor is written
  (cost.spill_states ? cost.disk_bytes : cost.memory_bytes) += blocks * state;

  // The block as it is read and as F32; its sums and, while they are finished, a copy of the largest part;
  // the gradient and the states that run forward; what a batch keeps between its forward and its backward
  // pass.
  const double batch = std::max(static_cast<double>(kTokensPerBatch), static_cast<double>(length));
  const double per_token = 9 * hidden + 3 * (q + 2 * kv) + 4 * q + 2 * kv + 5 * width;
  cost.memory_bytes +=
      8 * block_weights + 2 * largest + 2 * state + 4 * batch * per_token + loss_gradient_bytes(spec);
  cost.forwards = layers + kBackwardForwards * blocks + guided_work / block_weights;
  cost.head_forwards = 2;
  return cost;
}

SensitivityStore::SensitivityStore(fs::path folder, SensitivityPlan plan)
    : folder_(std::move(folder)), plan_(std::move(plan)) {}

fs::path SensitivityStore::file_of(int64_t layer) const {
  return folder_ / format_text("{}{:05}.safetensors", kFilePrefix, layer);
}

bool SensitivityStore::wants_layer(int64_t layer) const {
  return std::any_of(plan_.linears.begin(), plan_.linears.end(),
                     [&](const auto& linear) { return linear.second.layer == layer; });
}

void SensitivityStore::measure(const Model& shell, const CalibrationData& data, bool spill_states,
                               const std::function<bool(int64_t layer)>& is_done, ThreadPool& pool) {
  const ModelSpec& spec = shell.spec();
  int64_t lowest = -1, highest = -1;  // of the layers that are missing
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    if (!wants_layer(layer) || is_done(layer) || fs::exists(file_of(layer))) continue;
    if (lowest < 0) lowest = layer;
    highest = layer;
  }
  if (lowest < 0) return;
  if (data.length < 2) {
    fail_usage("calibration sequences of {} token have nothing to predict, expected at least 2", data.length);
  }
  CalibrationData sequences = data;
  sequences.sequences = std::min(data.sequences, plan_.sequences);
  sequences.ids.resize(static_cast<size_t>(sequences.sequences * data.length));
  const int64_t tokens = sequences.sequences * data.length, hidden = spec.hidden_size;
  const Shape shape = {tokens, hidden};

  BackwardState state = read_backward_state(folder_ / kGradientFile, shape, spec.layers);
  // Files are written from the last layer to the first, each before the gradient by its block's input.
  const bool resumed = state.layer > highest;
  if (!resumed) state = {.layer = spec.layers};

  constexpr double kLossForwards = 1;  // for the progress only
  Progress progress("sensitivity", static_cast<double>(state.layer) + (resumed ? 0 : kLossForwards) +
                                       kBackwardForwards * static_cast<double>(state.layer - lowest));
  double done = 0;
  const auto advance = [&](double forwards, const std::string& detail) {
    done += forwards;
    progress.update(done, detail);
  };

  StateArchive archive(state.layer - lowest, tokens, hidden, spill_states ? &folder_ : nullptr);
  {
    ResidualStream stream(shell, sequences);
    for (int64_t layer = 0; layer < state.layer; ++layer) {
      if (layer >= lowest) archive.write(layer - lowest, stream.states());
      if (resumed && layer + 1 == state.layer) break;  // nobody needs its output
      const Block block = shell.load_block(layer, pool);
      stream.next_block(shell);
      for (const auto& sublayer : block.sublayers) stream.run(*sublayer, nullptr, pool);
      advance(1, format_text("forward {}/{}", layer + 1, state.layer));
    }
    if (!resumed) state.gradient = stream.take_states();
  }
  if (!resumed) {
    Scratch scratch;
    double total = 0;
    for (int64_t s = 0; s < sequences.sequences; ++s) {
      throw_if_interrupted();
      const double loss =
          loss_gradient(shell,
                        std::span(sequences.ids)
                            .subspan(static_cast<size_t>(s * data.length), static_cast<size_t>(data.length)),
                        state.gradient.mutable_data<float>() + s * data.length * hidden, scratch, pool);
      if (!std::isfinite(loss)) {
        fail("the model's loss on calibration sequence {} is {}, expected a finite number", s, loss);
      }
      total += loss;
    }
    const double mean = total / static_cast<double>(sequences.sequences);
    advance(kLossForwards, format_text("calibration perplexity {:.2f}", std::exp(mean)));
    log_debug("calibration loss {:.6f} over {} sequences of {} tokens", mean, sequences.sequences,
              data.length);
  }

  for (int64_t layer = state.layer - 1; layer >= lowest; --layer) {
    throw_if_interrupted();
    measure_block(shell, layer, archive, lowest, sequences, state.gradient.mutable_data<float>(), pool);
    if (layer > lowest) {
      write_whole(folder_ / kGradientFile, {{"gradient", state.gradient}},
                  {{kLayerKey, std::to_string(layer)}});
    }
    advance(kBackwardForwards, format_text("backward {}/{}", state.layer - layer, state.layer - lowest));
  }
  fs::remove(folder_ / kGradientFile);
  progress.finish(format_text("{} sequences of {} tokens", sequences.sequences, data.length));
}

// `archive` starts with layer `archived`.
void SensitivityStore::measure_block(const Model& shell, int64_t layer, const StateArchive& archive,
                                     int64_t archived, const CalibrationData& data, float* gradient,
                                     ThreadPool& pool) {
  const Block block = shell.load_block(layer, pool);
  std::map<std::string, Sums> sums;
  for (const auto& [name, want] : plan_.linears) {
    if (want.layer != layer) continue;
    Sums& sum = sums[name];
    if (want.squared_gradients) {
      sum.squares = std::make_unique<SquaredGradients>(want.out_features, want.in_features);
    }
    if (want.guided_groups > 0) {
      sum.guided = std::make_unique<GuidedHessians>(want.out_features, want.in_features, want.guided_groups);
    }
  }
  std::vector<std::unique_ptr<SubLayerBackward>> passes;
  for (const auto& sublayer : block.sublayers) passes.push_back(make_backward(shell, *sublayer, pool));

  const int64_t hidden = shell.spec().hidden_size;
  const int64_t step = sequences_per_batch(data.sequences, data.length);
  // The states before each sub-layer; those before the first are the archive's where it is in memory.
  std::vector<std::vector<float>> states(passes.size());
  for (std::vector<float>& each : states) each.resize(static_cast<size_t>(step * data.length * hidden));
  Scratch scratch;
  for (int64_t first = 0; first < data.sequences; first += step) {
    throw_if_interrupted();
    const SequenceBatch batch = {.sequences = std::min(step, data.sequences - first), .length = data.length};
    const float* input =
        archive.read(layer - archived, first * data.length, batch.tokens(), states[0].data());
    for (size_t i = 0; i < passes.size(); ++i) {
      float* output = i + 1 < passes.size() ? states[i + 1].data() : nullptr;
      passes[i]->recompute(input, batch, output, scratch, pool);
      input = output;
    }
    const GradientTap tap = [&](const LinearGroup& group, const float* x, const float* dy) {
      int64_t column = 0;
      for (const LinearSlot& slot : group.slots()) {
        const auto found = sums.find(slot.name);
        if (found != sums.end()) {
          const OutputGradients by_output = {dy + column, group.out_features()};
          if (found->second.squares) found->second.squares->add(by_output, x, batch, pool);
          if (found->second.guided) found->second.guided->add(by_output, x, batch.tokens(), pool, slot.name);
        }
        column += slot.out_features;
      }
    };
    for (size_t i = passes.size(); i-- > 0;) {
      passes[i]->backward(gradient + first * data.length * hidden, tap, pool);
    }
  }
  if (sums.empty()) return;
  std::map<std::string, Tensor> tensors;
  for (auto& [name, sum] : sums) {
    if (sum.squares) tensors[name + kSquaredSuffix] = sum.squares->finish(name);
    if (sum.guided) tensors[name + kGuidedSuffix] = sum.guided->finish(name);
    sum = {};
  }
  write_whole(file_of(layer), tensors);
}

void SensitivityStore::fill(const std::string& linear, QuantizerInput* input) {
  const auto found = plan_.linears.find(linear);
  NIBBLE_CHECK(found != plan_.linears.end());
  const SensitivityPlan::Want& want = found->second;
  if (open_layer_ != want.layer) {
    open_ = open_safetensors(file_of(want.layer));
    open_layer_ = want.layer;
  }
  if (want.squared_gradients) {
    input->sensitivity =
        require_tensor(open_, linear + kSquaredSuffix, {want.out_features, want.in_features}).data<float>();
  }
  if (want.guided_groups == 0) return;
  const int64_t groups = std::min(want.guided_groups, want.out_features), k = want.in_features;
  const float* hessians = require_tensor(open_, linear + kGuidedSuffix, {groups, k, k}).data<float>();
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = GuidedHessians::first_row(want.out_features, groups, group);
    input->guided_hessians.push_back(
        {.first_row = first,
         .rows = GuidedHessians::first_row(want.out_features, groups, group + 1) - first,
         .hessian = hessians + group * k * k});
  }
}

void SensitivityStore::release(int64_t layer) {
  if (open_layer_ == layer) {
    open_ = {};
    open_layer_ = -1;
  }
  fs::remove(file_of(layer));
}

void SensitivityStore::remove_all() {
  open_ = {};
  open_layer_ = -1;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.path().filename().string().starts_with(kFilePrefix)) files.push_back(entry.path());
  }
  for (const fs::path& file : files) fs::remove(file);
}

}  // namespace nibble
