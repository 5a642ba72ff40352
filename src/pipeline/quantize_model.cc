#include "pipeline/quantize_model.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "formats/dense/dense.h"
#include "formats/packed_checkpoint.h"
#include "models/linear_info.h"
#include "nibble/version.h"
#include "pipeline/block_quantizer.h"
#include "pipeline/channel_balance.h"
#include "pipeline/digest.h"
#include "pipeline/forecast.h"
#include "pipeline/quantization_record.h"
#include "pipeline/quantized_folder.h"
#include "pipeline/sensitivity.h"
#include "pipeline/sparse_outliers.h"
#include "pipeline/token_matrix.h"
#include "transforms/rotate_checkpoint.h"

namespace nibble {
namespace {

Json result_to_json(const LinearResult& result) {
  return {{"name", result.name},
          {"format", result.format},
          {"weight_bits", result.weight_bits},
          {"activation_bits", result.activation_bits},
          {"activations", result.activations},
          {"outlier_columns", result.outlier_columns},
          {"bits_per_weight", result.bits_per_weight},
          {"weight_error", result.weight_error},
          {"output_error", result.output_error}};
}

LinearResult result_from_json(const Json& json, const std::string& source) {
  return {.name = json_string(json, "name", {}, source),
          .format = json_string(json, "format", {}, source),
          .weight_bits = json_int(json, "weight_bits", {}, source),
          .activation_bits = json_int(json, "activation_bits", {}, source),
          .activations = json_string(json, "activations", {}, source),
          .outlier_columns = json_int(json, "outlier_columns", {}, source),
          .bits_per_weight = json_number(json, "bits_per_weight", {}, source),
          .weight_error = json_number(json, "weight_error", {}, source),
          .output_error = json_number(json, "output_error", {}, source)};
}

double mean_output_error(const std::vector<LinearResult>& results) {
  double sum = 0;
  for (const LinearResult& result : results)
    sum += result.output_error > 0 ? result.output_error : result.weight_error;
  return results.empty() ? 0 : sum / static_cast<double>(results.size());
}

// One run from an open checkpoint to a finished folder.
class QuantizationRun {
 public:
  QuantizationRun(const QuantizeOptions& options, ThreadPool& pool)
      : options_(options),
        pool_(pool),
        checkpoint_(open_source(options)),
        spec_(read_model_spec(checkpoint_)) {
    check_recipe(options_.recipe, spec_);
    needs_data_ = recipe_needs_calibration(options_.recipe, spec_);
    if (needs_data_ && !names_a_source(options_.calibration)) {
      fail_usage(
          "recipe '{}' needs calibration text: give --calib FILE.txt, --calib-ids FILE.safetensors or "
          "--calib-random",
          options_.recipe.name);
    }
    if (needs_data_) data_ = load_calibration_data(options_.calibration, spec_, checkpoint_.path());
    checkpoint_ = transform_checkpoint(std::move(checkpoint_), options_, data_, pool_);
    spec_ = read_model_spec(checkpoint_);
  }

  QuantizeForecast forecast() { return make_forecast(options_, checkpoint_, spec_, data_, pool_); }
  QuantizeResult run();
  std::string fingerprint();

 private:
  static Checkpoint open_source(const QuantizeOptions& options);
  // What a recipe does to the whole model before its linears are quantized.
  static Checkpoint transform_checkpoint(Checkpoint checkpoint, const QuantizeOptions& options,
                                         const CalibrationData& data, ThreadPool& pool);
  Json provenance() const;
  // Null where the recipe needs no gradients.
  std::unique_ptr<SensitivityStore> measure_sensitivity(const QuantizedFolder& folder, const Model& model,
                                                        const QuantizeForecast& forecast);
  // Writes embedding, head, final norm and whatever else is not in a block, as the last shard.
  void write_rest(QuantizedFolder& folder, const Model& model);
  // The linears of a finished shard; returns all its tensors.
  std::map<std::string, Tensor> restore(const QuantizedFolder& folder, int64_t layer,
                                        std::vector<PackedLinear>* linears) const;
  void record(const std::vector<PackedLinear>& linears, const std::vector<LinearResult>& results);
  void verify(const std::map<std::string, std::string>& digests) const;

  const QuantizeOptions& options_;
  ThreadPool& pool_;
  Checkpoint checkpoint_;
  ModelSpec spec_;
  CalibrationData data_;
  bool needs_data_ = false;
  std::vector<std::pair<std::string, std::string>> source_hashes_;
  Json linear_configs_ = Json::object();
  std::map<std::string, std::string> activations_;  // LinearResult::activations by linear
  std::set<std::string> replaced_;                  // source tensors that a block's shard holds anew
  double quantized_bytes_ = 0, quantized_weights_ = 0;
  QuantizeResult result_;
};

Checkpoint QuantizationRun::open_source(const QuantizeOptions& options) {
  Checkpoint checkpoint = Checkpoint::open(options.model);
  if (checkpoint.kind() == CheckpointKind::kNibble) {
    fail("{}: is quantized already; quantize the model it was made from", options.model.string());
  }
  if (options.embedding_bits != 16 && options.embedding_bits != 8 && options.embedding_bits != 4) {
    fail_usage("--embedding-bits is {}, expected 16, 8 or 4", options.embedding_bits);
  }
  return checkpoint;
}

Checkpoint QuantizationRun::transform_checkpoint(Checkpoint checkpoint, const QuantizeOptions& options,
                                                 const CalibrationData& data, ThreadPool& pool) {
  const LinearSettings& settings = options.recipe.defaults;
  if (settings.rotation == "none") return checkpoint;
  const bool of_inputs = settings.rotation == "hadamard-inputs";
  RotationOptions rotation = {.hidden = of_inputs ? HiddenRotation::kInputs : HiddenRotation::kResidualStream,
                              .down_input = settings.rotation != "hadamard-offline",
                              .seed = options.calibration.seed};
  if (settings.balance_channels && !data.empty()) {
    rotation.channels = measure_channels(checkpoint, data, pool);
  }
  return rotate_checkpoint(std::move(checkpoint), rotation);
}

Json QuantizationRun::provenance() const {
  Json sources = Json::object();
  for (const auto& [name, hash] : source_hashes_) sources[name] = hash;
  Json json = {{"program", std::string("nibble ") + kVersion},
               {"source_sha256", std::move(sources)},
               {"seed", options_.calibration.seed},
               {"embedding_bits", options_.embedding_bits}};
  if (!data_.empty()) json["calibration"] = {{"data", data_.description}, {"sha256", data_.hash}};
  return json;
}

std::string QuantizationRun::fingerprint() {
  if (source_hashes_.empty())
    source_hashes_ = options_.source_hashes.empty() ? hash_source(checkpoint_) : options_.source_hashes;
  const std::string text = provenance().dump() + options_.recipe.to_json().dump();
  return sha256_hex(std::as_bytes(std::span(text)));
}

void QuantizationRun::record(const std::vector<PackedLinear>& linears,
                             const std::vector<LinearResult>& results) {
  for (const LinearResult& result : results) activations_[result.name] = result.activations;
  for (const PackedLinear& linear : linears) {
    linear_configs_[linear.name] = packed_linear_config(linear);
    linear_configs_[linear.name]["activations"] = activations_[linear.name];
    quantized_bytes_ += static_cast<double>(linear.weight_bytes());
    quantized_weights_ += static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features);
  }
}

std::map<std::string, Tensor> QuantizationRun::restore(const QuantizedFolder& folder, int64_t layer,
                                                       std::vector<PackedLinear>* linears) const {
  Json notes;
  std::map<std::string, Tensor> tensors = folder.read_shard(layer, &notes);
  for (const LinearInfo& info : list_linears(spec_)) {
    if (info.layer != layer) continue;
    linears->push_back(packed_linear_from_tensors(info.name, notes.at("linears").at(info.name), tensors,
                                                  info.out_features, info.in_features,
                                                  folder.partial_path().string()));
  }
  return tensors;
}

void QuantizationRun::write_rest(QuantizedFolder& folder, const Model& model) {
  std::map<std::string, Tensor> entries;
  Json configs = Json::object();
  const auto store = [&](const PackedLinear& source, double* error) {
    const PackedLinear packed = quantize_token_matrix(source, options_.embedding_bits, pool_, error);
    add_entries(packed, &entries);
    configs[packed.name] = packed_linear_config(packed);
  };
  store(model.embedding(), &result_.embedding_error);
  if (spec_.tied_embeddings) {
    result_.head_error = result_.embedding_error;
  } else {
    store(*model.head().slots().front().packed, &result_.head_error);
  }
  for (auto& [name, config] : configs.items()) linear_configs_[name] = config;

  // Everything that is neither a linear nor in those: norms, rope factors.
  for (const auto& [name, tensor] : checkpoint_.tensors()) {
    if (name.ends_with(".inv_freq"))
      continue;  // a buffer that old checkpoints carry; it follows from the config
    const std::string stem = name.substr(0, name.rfind('.'));
    if (linear_configs_.contains(stem) || replaced_.contains(name)) continue;
    if (spec_.tied_embeddings && stem == "lm_head") continue;
    entries[name] = tensor.plain ? *tensor.plain : tensor.read_f32();
  }
  folder.write_shard(spec_.layers, entries, Json::object());
}

std::unique_ptr<SensitivityStore> QuantizationRun::measure_sensitivity(const QuantizedFolder& folder,
                                                                       const Model& model,
                                                                       const QuantizeForecast& forecast) {
  SensitivityPlan plan = plan_sensitivity(options_.recipe, spec_, data_.sequences);
  if (plan.empty()) return nullptr;
  const double started = monotonic_seconds();
  auto store = std::make_unique<SensitivityStore>(folder.partial_path(), std::move(plan));
  store->measure(
      model, data_, forecast.spill_states, [&](int64_t layer) { return folder.has_shard(layer); }, pool_);
  result_.sensitivity_seconds = monotonic_seconds() - started;
  return store;
}

QuantizeResult QuantizationRun::run() {
  const double started = monotonic_seconds();
  const QuantizeForecast forecast = this->forecast();
  check_resources(forecast, options_);
  const std::string fingerprint = this->fingerprint();
  QuantizedFolder folder(options_.output, spec_.layers + 1, fingerprint, options_.resume, options_.force);

  const std::unique_ptr<Model> model =
      Model::load_shell(checkpoint_, pool_, {.context_length = data_.length});
  const std::unique_ptr<SensitivityStore> sensitivity = measure_sensitivity(folder, *model, forecast);
  std::unique_ptr<ResidualStream> stream;
  std::unique_ptr<ResidualStream> float_stream;
  if (recipe_needs_statistics(options_.recipe, spec_)) {
    stream = std::make_unique<ResidualStream>(*model, data_);
    if (recipe_needs_float_stream(options_.recipe, spec_)) {
      float_stream = std::make_unique<ResidualStream>(*model, data_);
    }
  }
  BlockQuantizer quantizer(
      options_.recipe, spec_,
      {.stream = stream.get(),
       .float_stream = float_stream.get(),
       .sensitivity = sensitivity.get(),
       .held_input_bytes = forecast.held_input_bytes,
       .sparse_outlier_ratios = find_sparse_outlier_ratios(checkpoint_, spec_, options_.recipe, pool_)},
      pool_);
  std::map<std::string, std::string> digests;  // of every written tensor, for --verify

  Progress progress("quantizing", static_cast<double>(spec_.layers));
  for (int64_t layer = 0; layer < spec_.layers; ++layer) {
    throw_if_interrupted();
    Block block = model->load_block(layer, pool_);
    if (stream) stream->next_block(*model);
    Block float_block;
    if (float_stream) {
      float_block = model->load_block(layer, pool_);
      float_stream->next_block(*model);
    }
    std::vector<PackedLinear> linears;
    std::vector<LinearResult> results;
    if (folder.has_shard(layer)) {
      quantizer.replay(block, &float_block, linears, restore(folder, layer, &linears));
      Json notes;
      folder.read_shard(layer, &notes);
      for (const Json& entry : notes.at("results"))
        results.push_back(result_from_json(entry, "unfinished run"));
      for (const Json& name : notes.at("tensors")) replaced_.insert(name.get<std::string>());
      ++result_.resumed_blocks;
    } else {
      QuantizedBlock quantized = quantizer.quantize(block, &float_block);
      linears = std::move(quantized.linears);
      results = std::move(quantized.results);
      std::map<std::string, Tensor> entries;
      Json notes = {{"linears", Json::object()}, {"results", Json::array()}};
      for (const PackedLinear& linear : linears) {
        add_entries(linear, &entries);
        notes["linears"][linear.name] = packed_linear_config(linear);
      }
      for (const LinearResult& result : results) notes["results"].push_back(result_to_json(result));
      notes["tensors"] = Json::array();
      for (auto& [name, tensor] : quantized.tensors) {
        notes["tensors"].push_back(name);
        replaced_.insert(name);
        if (options_.verify) digests[name] = sha256_hex({tensor.raw(), tensor.bytes()});
        entries.emplace(name, std::move(tensor));
      }
      folder.write_shard(layer, entries, notes);
    }
    if (sensitivity) sensitivity->release(layer);
    if (options_.verify) {
      for (const PackedLinear& linear : linears) {
        for (const auto& [suffix, tensor] : linear.tensors) {
          digests[linear.name + "." + suffix] = sha256_hex({tensor.raw(), tensor.bytes()});
        }
      }
    }
    record(linears, results);
    progress.update(static_cast<double>(layer + 1),
                    format_text("block {}/{}, mean relative error {:.2e}", layer + 1, spec_.layers,
                                mean_output_error(results)));
    for (LinearResult& result : results) result_.linears.push_back(std::move(result));
  }
  write_rest(folder, *model);
  if (sensitivity) sensitivity->remove_all();
  progress.finish(format_text("mean relative error {:.2e}", mean_output_error(result_.linears)));

  Json provenance = this->provenance();
  provenance["fingerprint"] = fingerprint;
  std::map<std::string, LinearError> errors;
  for (const LinearResult& linear : result_.linears)
    errors[linear.name] = {.weight = linear.weight_error, .output = linear.output_error};
  Json config = checkpoint_.config();
  config["quantization_config"] = {{"quant_method", "nibble"},
                                   {"format_version", kNibbleFormatVersion},
                                   {"recipe", options_.recipe.to_json()},
                                   {"linears", linear_configs_},
                                   {"errors", errors_to_json(errors)},
                                   {"provenance", std::move(provenance)}};
  folder.commit(config, checkpoint_);

  result_.bits_per_weight = 8.0 * quantized_bytes_ / std::max(1.0, quantized_weights_);
  result_.source_bytes = checkpoint_.file_bytes();
  result_.output_bytes = Checkpoint::open(options_.output).file_bytes();
  result_.calibration_seconds = quantizer.calibration_seconds();
  result_.solver_seconds = quantizer.solver_seconds();
  if (options_.verify) {
    verify(digests);
    result_.verified = true;
  }
  result_.seconds = monotonic_seconds() - started;
  return result_;
}

// Reads the finished folder back as a user's program would: every tensor has the bytes that were written,
// every linear passes its format's checks, and the model gives finite logits.
void QuantizationRun::verify(const std::map<std::string, std::string>& digests) const {
  const std::string where = options_.output.string();
  const Checkpoint written = Checkpoint::open(options_.output);
  for (const auto& [name, digest] : digests) {
    const CheckpointTensor& tensor = written.require(name);
    NIBBLE_CHECK(tensor.plain.has_value());
    if (sha256_hex({tensor.plain->raw(), tensor.plain->bytes()}) != digest) {
      fail("{}: tensor '{}' does not read back as it was written", where, name);
    }
  }
  const std::unique_ptr<Model> model = Model::load(written, pool_, {.context_length = 64});
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < 32; ++i) ids.push_back(static_cast<int32_t>(i * 7919 % spec_.vocabulary));
  if (!data_.empty()) ids.assign(data_.ids.begin(), data_.ids.begin() + std::min<int64_t>(32, data_.length));
  const auto tokens = static_cast<int64_t>(ids.size());
  std::vector<float> hidden(static_cast<size_t>(tokens * spec_.hidden_size));
  std::vector<float> logits(static_cast<size_t>(tokens * spec_.vocabulary));
  const std::unique_ptr<SequenceCache> cache = model->make_cache(tokens);
  const SequenceSpan span = {.cache = cache.get(), .count = tokens};
  Scratch scratch;
  model->embed(ids, hidden.data());
  model->run_blocks(hidden.data(),
                    {.sequences = {&span, 1}, .tokens = tokens, .scratch = &scratch, .pool = &pool_});
  model->logits(hidden.data(), {}, tokens, logits.data(), scratch, pool_);
  if (!std::all_of(logits.begin(), logits.end(), [](float value) { return std::isfinite(value); })) {
    fail("{}: the quantized model gives logits that are not finite", where);
  }
}

}  // namespace

std::vector<std::pair<std::string, std::string>> hash_source(const Checkpoint& checkpoint) {
  std::vector<std::pair<std::string, std::string>> hashes;
  for (const auto& file : checkpoint.files()) {
    throw_if_interrupted();
    hashes.emplace_back(file.filename().string(), sha256_hex_of_file(file));
  }
  return hashes;
}

std::string quantization_fingerprint(const QuantizeOptions& options, ThreadPool& pool) {
  return QuantizationRun(options, pool).fingerprint();
}

QuantizeForecast forecast_quantization(const QuantizeOptions& options, ThreadPool& pool) {
  return QuantizationRun(options, pool).forecast();
}

QuantizeResult quantize_model(const QuantizeOptions& options, ThreadPool& pool) {
  return QuantizationRun(options, pool).run();
}

}  // namespace nibble
