#include "transforms/rotate_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "io/checkpoint_builder.h"
#include "io/printable.h"
#include "models/model_spec.h"
#include "transforms/rotation.h"

namespace nibble {
namespace {

using SharedRotation = std::shared_ptr<const Rotation>;

using SharedFactors = std::shared_ptr<const std::vector<float>>;

// What becomes of a matrix [outputs, inputs] (of a bias: [outputs, 1]): columns and rows are multiplied by
// factors, then rotated.
struct Change {
  SharedFactors input_factors, output_factors;
  SharedRotation input, output;
};

// s_j for channels of which `columns` [rows, channels] are the columns behind, to multiply those by; its
// average logarithm is 0. Channels that are silent or lead nowhere stay as they are.
std::vector<float> balance_factors(const std::vector<double>& square_sizes,
                                   const std::vector<double>& square_columns) {
  std::vector<float> factors(square_sizes.size(), 1.0f);
  const auto is_used = [&](size_t j) { return square_sizes[j] > 0 && square_columns[j] > 0; };
  double logarithms = 0, used = 0;
  for (size_t j = 0; j < factors.size(); ++j) {
    if (!is_used(j)) continue;
    logarithms += 0.25 * std::log(square_sizes[j] / square_columns[j]);
    ++used;
  }
  for (size_t j = 0; j < factors.size(); ++j) {
    if (!is_used(j)) continue;
    constexpr double kLargest = 10;  // e^10: beyond every ratio of use, within range of every product
    const double logarithm = 0.25 * std::log(square_sizes[j] / square_columns[j]) - logarithms / used;
    factors[j] = static_cast<float>(std::exp(std::clamp(logarithm, -kLargest, kLargest)));
  }
  return factors;
}

SharedFactors inverse_of(const std::vector<float>& factors) {
  auto inverse = std::make_shared<std::vector<float>>(factors);
  for (float& value : *inverse) value = 1.0f / value;
  return inverse;
}

void check_finite(const float* values, int64_t count, const CheckpointTensor& tensor) {
  const float* bad = std::find_if(values, values + count, [](float value) { return !std::isfinite(value); });
  if (bad == values + count) return;
  fail("{}: tensor '{}' has {} at element {}, expected finite weights", tensor.file.string(),
       printable(tensor.name), std::isnan(*bad) ? "NaN" : "infinity", bad - values);
}

void change_rows(const Change& change, int64_t first, int64_t count, int64_t inputs, float* rows) {
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows + r * inputs;
    if (change.input_factors) {
      for (int64_t i = 0; i < inputs; ++i) row[i] *= (*change.input_factors)[static_cast<size_t>(i)];
    }
    if (change.output_factors) {
      const float factor = (*change.output_factors)[static_cast<size_t>(first + r)];
      for (int64_t i = 0; i < inputs; ++i) row[i] *= factor;
    }
  }
  if (change.input) change.input->rotate_rows(rows, count);
}

class CheckpointRotator {
 public:
  CheckpointRotator(Checkpoint source, const RotationOptions& options)
      : source_(std::make_shared<const Checkpoint>(std::move(source))),
        spec_(read_model_spec(*source_)),
        options_(options) {}

  Checkpoint rotate();

 private:
  // Where a seed of its own is needed.
  enum class Stream : uint64_t { kResidual = 1, kValues = 2, kDownInput = 3 };
  uint64_t seed(Stream stream, int64_t layer) const {
    return options_.seed * 0x100000001b3u + static_cast<uint64_t>(stream) * (uint64_t{1} << 32) +
           static_cast<uint64_t>(layer);
  }

  void check_source() const;
  void add(CheckpointTensor tensor);
  // `name` with the matrix `from`.weight changed, and its bias if it has one (as far as outputs change).
  void add_linear(const std::string& from, const std::string& name, int64_t outputs, int64_t inputs,
                  const Change& change);
  void add_changed(const std::string& from, const std::string& name, const Shape& shape,
                   const Change& change);
  SharedFactors take_norm(const std::string& name);
  // Sums of squares of the columns of a linear of the source.
  std::vector<double> square_columns(const std::string& name, int64_t outputs, int64_t inputs) const;
  void rotate_block(int64_t layer);
  void rotate_attention(int64_t layer);
  void rotate_mlp(int64_t layer);
  Json config() const;

  std::shared_ptr<const Checkpoint> source_;
  ModelSpec spec_;
  RotationOptions options_;
  SharedRotation residual_;
  HadamardShape down_shape_, head_shape_;
  CheckpointBuilder builder_;
  std::set<std::string> done_;  // tensors of the source that are in the result, changed
};

void CheckpointRotator::check_source() const {
  const std::string where = source_->path().string();
  if (source_->kind() == CheckpointKind::kNibble)
    fail("{}: is quantized already and cannot be rotated", where);
  if (spec_.norm != NormKind::kRms || !spec_.gated_mlp) {
    fail(
        "{}: a rotation needs RMS norms and a gated MLP; models of type '{}' have others: use a recipe with "
        "rotation \"none\"",
        where, printable(spec_.model_type));
  }
  if (spec_.down_hadamard) fail("{}: is rotated already", where);
}

void CheckpointRotator::add(CheckpointTensor tensor) { builder_.add_tensor(std::move(tensor)); }

SharedFactors CheckpointRotator::take_norm(const std::string& name) {
  const CheckpointTensor& tensor = source_->require(name, {spec_.hidden_size});
  auto weight = std::make_shared<std::vector<float>>(static_cast<size_t>(spec_.hidden_size));
  tensor.read_rows(0, spec_.hidden_size, weight->data());
  check_finite(weight->data(), spec_.hidden_size, tensor);
  const std::vector<float> ones(weight->size(), 1.0f);
  add(plain_tensor(name, Tensor::copy_of<float>({spec_.hidden_size}, ones), tensor.file));
  done_.insert(name);
  return weight;
}

void CheckpointRotator::add_changed(const std::string& from, const std::string& name, const Shape& shape,
                                    const Change& change) {
  const CheckpointTensor& tensor = source_->require(from, shape);
  const int64_t outputs = shape[0], inputs = shape.size() > 1 ? shape[1] : 1;
  CheckpointTensor changed = {.name = name,
                              .shape = shape,
                              .storage_type = "F32",
                              .stored_bytes = static_cast<size_t>(outputs * inputs) * sizeof(float),
                              .file = tensor.file};
  // The source lives as long as the tensors that are computed from it.
  changed.read_rows = [source = source_, &tensor, change, outputs, inputs](int64_t first, int64_t count,
                                                                           float* out) {
    NIBBLE_CHECK(first >= 0 && count >= 0 && first <= outputs && count <= outputs - first);
    if (!change.output) {
      tensor.read_rows(first, count, out);
      check_finite(out, count * inputs, tensor);
      change_rows(change, first, count, inputs, out);
      return;
    }
    // Every row of the result depends on all rows.
    std::vector<float> all;
    const bool whole = count == outputs;
    if (!whole) all.resize(static_cast<size_t>(outputs * inputs));
    float* matrix = whole ? out : all.data();
    tensor.read_rows(0, outputs, matrix);
    check_finite(matrix, outputs * inputs, tensor);
    change_rows(change, 0, outputs, inputs, matrix);
    change.output->rotate_columns(matrix, inputs);
    if (!whole) std::copy_n(matrix + first * inputs, count * inputs, out);
  };
  done_.insert(from);
  add(std::move(changed));
}

void CheckpointRotator::add_linear(const std::string& from, const std::string& name, int64_t outputs,
                                   int64_t inputs, const Change& change) {
  add_changed(from + ".weight", name + ".weight", {outputs, inputs}, change);
  if (source_->find(from + ".bias") == nullptr) return;
  // A bias is added to the outputs: only what happens to those concerns it.
  const Change of_bias = {.output_factors = change.output_factors, .output = change.output};
  add_changed(from + ".bias", name + ".bias", {outputs}, of_bias);
}

std::vector<double> CheckpointRotator::square_columns(const std::string& name, int64_t outputs,
                                                      int64_t inputs) const {
  const CheckpointTensor& tensor = source_->require(name + ".weight", {outputs, inputs});
  std::vector<double> sums(static_cast<size_t>(inputs));
  std::vector<float> row(static_cast<size_t>(inputs));
  for (int64_t r = 0; r < outputs; ++r) {
    tensor.read_rows(r, 1, row.data());
    for (size_t j = 0; j < row.size(); ++j) sums[j] += static_cast<double>(row[j]) * row[j];
  }
  return sums;
}

void CheckpointRotator::rotate_block(int64_t layer) {
  rotate_attention(layer);
  rotate_mlp(layer);
}

void CheckpointRotator::rotate_attention(int64_t layer) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  const std::string attention = prefix + "self_attn.";
  const int64_t hidden = spec_.hidden_size, head_dim = spec_.head_dim, group = spec_.heads / spec_.kv_heads;
  // Channel i of what heads attended to is this channel of the values.
  const auto value_channel = [&](int64_t i) {
    return static_cast<size_t>(i / head_dim / group * head_dim + i % head_dim);
  };

  // Heads that share values share their rotation and factors.
  HadamardShape values_shape = head_shape_, attended_shape = head_shape_;
  values_shape.size = spec_.kv_size();
  attended_shape.size = spec_.query_size();
  std::vector<float> value_signs = random_signs(spec_.kv_size(), seed(Stream::kValues, layer));
  std::vector<float> attended_signs;
  for (int64_t i = 0; i < spec_.query_size(); ++i) attended_signs.push_back(value_signs[value_channel(i)]);
  const auto values = std::make_shared<const Rotation>(values_shape, std::move(value_signs));
  const auto attended = std::make_shared<const Rotation>(attended_shape, std::move(attended_signs));

  SharedFactors value_factors, attended_factors;
  if (!options_.channels.empty()) {
    const std::vector<float>& sizes = options_.channels.at(static_cast<size_t>(layer)).attended;
    NIBBLE_CHECK(static_cast<int64_t>(sizes.size()) == spec_.query_size());
    const std::vector<double> columns = square_columns(attention + "o_proj", hidden, spec_.query_size());
    std::vector<double> square_sizes(static_cast<size_t>(spec_.kv_size())), column_sums(square_sizes.size());
    for (int64_t i = 0; i < spec_.query_size(); ++i) {
      const auto channel = static_cast<size_t>(i);
      square_sizes[value_channel(i)] += static_cast<double>(sizes[channel]) * sizes[channel];
      column_sums[value_channel(i)] += columns[channel];
    }
    const std::vector<float> factors = balance_factors(square_sizes, column_sums);
    value_factors = inverse_of(factors);
    auto spread = std::make_shared<std::vector<float>>();
    for (int64_t i = 0; i < spec_.query_size(); ++i) spread->push_back(factors[value_channel(i)]);
    attended_factors = std::move(spread);
  }

  const SharedFactors norm = take_norm(prefix + "input_layernorm.weight");
  const auto linear = [&](const char* name, int64_t outputs, int64_t inputs, const Change& change) {
    add_linear(attention + name, attention + name, outputs, inputs, change);
  };
  const Change reads = {.input_factors = norm, .input = residual_};
  linear("q_proj", spec_.query_size(), hidden, reads);
  linear("k_proj", spec_.kv_size(), hidden, reads);
  linear("v_proj", spec_.kv_size(), hidden,
         {.input_factors = norm, .output_factors = value_factors, .input = residual_, .output = values});
  linear("o_proj", hidden, spec_.query_size(),
         {.input_factors = attended_factors, .input = attended, .output = residual_});
}

void CheckpointRotator::rotate_mlp(int64_t layer) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  const std::string mlp = prefix + "mlp.";
  const int64_t hidden = spec_.hidden_size, width = spec_.intermediate_size;
  const SharedFactors norm = take_norm(prefix + "post_attention_layernorm.weight");
  const auto linear = [&](const char* name, int64_t outputs, int64_t inputs, const Change& change) {
    add_linear(mlp + name, mlp + name, outputs, inputs, change);
  };
  Change gate = {.input_factors = norm, .input = residual_};
  Change up = gate, down = {.output = residual_};
  std::vector<float> up_factors(static_cast<size_t>(width), 1.0f);
  if (!options_.channels.empty()) {
    const std::vector<float>& sizes = options_.channels.at(static_cast<size_t>(layer)).down;
    NIBBLE_CHECK(static_cast<int64_t>(sizes.size()) == width);
    std::vector<double> square_sizes;
    for (const float size : sizes) square_sizes.push_back(static_cast<double>(size) * size);
    const std::vector<float> factors =
        balance_factors(square_sizes, square_columns(mlp + "down_proj", hidden, width));
    up_factors = *inverse_of(factors);
    down.input_factors = std::make_shared<const std::vector<float>>(factors);
  }
  if (options_.down_input) {
    const auto rotation =
        std::make_shared<const Rotation>(down_shape_, random_signs(width, seed(Stream::kDownInput, layer)));
    for (size_t i = 0; i < up_factors.size(); ++i) up_factors[i] *= rotation->signs()[i];
    down.input = rotation;
  }
  up.output_factors = std::make_shared<const std::vector<float>>(std::move(up_factors));
  linear("gate_proj", width, hidden, gate);
  linear("up_proj", width, hidden, up);
  linear("down_proj", hidden, width, down);
}

Json CheckpointRotator::config() const {
  const auto shape = [](const HadamardShape& of) { return Json{{"block", of.block}, {"base", of.base}}; };
  Json rotation = {
      {"residual", shape(residual_->shape())}, {"values", shape(head_shape_)}, {"seed", options_.seed}};
  if (options_.down_input) rotation["down_input"] = shape(down_shape_);
  Json config = source_->config();
  config["tie_word_embeddings"] = false;
  config["nibble_rotation"] = std::move(rotation);
  return config;
}

Checkpoint CheckpointRotator::rotate() {
  check_source();
  const HadamardShape hidden_shape = choose_hadamard_shape(spec_.hidden_size);
  head_shape_ = choose_hadamard_shape(spec_.head_dim);
  down_shape_ = choose_hadamard_shape(spec_.intermediate_size);
  residual_ = std::make_shared<const Rotation>(hidden_shape,
                                               random_signs(spec_.hidden_size, seed(Stream::kResidual, 0)));
  log_info("rotation: residual stream {}, heads {}, down projections {}", describe(hidden_shape),
           describe(head_shape_), options_.down_input ? describe(down_shape_) : "none");

  add_changed("model.embed_tokens.weight", "model.embed_tokens.weight", {spec_.vocabulary, spec_.hidden_size},
              {.input = residual_});
  for (int64_t layer = 0; layer < spec_.layers; ++layer) rotate_block(layer);
  add_linear(spec_.tied_embeddings ? "model.embed_tokens" : "lm_head", "lm_head", spec_.vocabulary,
             spec_.hidden_size, {.input_factors = take_norm("model.norm.weight"), .input = residual_});
  done_.insert("lm_head.weight");  // a copy that some files of tied models carry

  for (const auto& [name, tensor] : source_->tensors()) {
    if (done_.contains(name)) continue;
    const bool unaffected = name.ends_with(".q_norm.weight") || name.ends_with(".k_norm.weight") ||
                            name.ends_with(".inv_freq") || !name.starts_with("model.layers.");
    if (!unaffected) {
      fail("{}: tensor '{}' is none that a rotation knows: use a recipe with rotation \"none\"",
           tensor.file.string(), printable(name));
    }
    add(tensor);
  }
  for (const auto& [name, type] : source_->unsupported()) {
    builder_.add_unsupported(name, type, source_->path());
  }
  builder_.set_kind(source_->kind());
  builder_.set_path(source_->path());
  builder_.set_config(config());
  builder_.set_generation_config(source_->generation_config());
  builder_.set_gguf_metadata(source_->gguf_metadata());
  for (const auto& file : source_->files()) builder_.add_file(file);
  return std::move(builder_.made);
}

}  // namespace

Checkpoint rotate_checkpoint(Checkpoint source, const RotationOptions& options) {
  return CheckpointRotator(std::move(source), options).rotate();
}

}  // namespace nibble
