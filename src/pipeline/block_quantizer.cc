#include "pipeline/block_quantizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "formats/dense/dense.h"
#include "quantizers/hessian_factor.h"
#include "transforms/apply.h"

namespace nibble {

CalibrationNeeds calibration_needs(const LinearSettings& settings) {
  if (settings.format == "dense") return {};
  return find_quantizer(settings.quantizer).needs(settings);
}

bool needs_statistics(const LinearSettings& settings) {
  // A transform works on the whole group, members that stay dense included.
  if (settings.transform != "none") return true;
  return settings.format != "dense" && (calibration_needs(settings).hessian || settings.outlier_columns != 0);
}

bool needs_calibration(const LinearSettings& settings) {
  return needs_statistics(settings) || calibration_needs(settings).any();
}

bool BlockQuantizer::needs_statistics(const LinearGroup& group, CalibrationNeeds* needs) const {
  bool any = false;
  *needs = {};
  for (const LinearSlot& slot : group.slots()) {
    const LinearSettings settings = recipe_.settings_for(slot.name, slot.role);
    if (!nibble::needs_statistics(settings)) continue;
    any = true;
    const CalibrationNeeds own = calibration_needs(settings);
    needs->hessian = needs->hessian || own.hessian;
    needs->cross = needs->cross || own.cross;
  }
  return any;
}

// Whether the sub-layer can go on from the inputs of `group`: it is the last, nothing that quantizing it
// changes comes before its inputs, and they fit.
bool BlockQuantizer::holds_inputs(SubLayer& sublayer, const LinearGroup& group) const {
  return stream_ != nullptr && &group == sublayer.groups().back() && sublayer.norm_before(group) == nullptr &&
         4.0 * static_cast<double>(stream_->tokens()) * static_cast<double>(group.in_features()) <=
             held_input_bytes_;
}

BlockQuantizer::GroupStatistics BlockQuantizer::collect(SubLayer& sublayer, const SubLayer* float_sublayer,
                                                        const LinearGroup* only, std::vector<float>* inputs) {
  const std::span<LinearGroup* const> groups = sublayer.groups();
  std::vector<std::unique_ptr<StatisticsCollector>> collectors(groups.size());
  bool any = false, cross = false;
  for (size_t g = 0; g < groups.size(); ++g) {
    CalibrationNeeds needs;
    if ((only != nullptr && only != groups[g]) || !needs_statistics(*groups[g], &needs)) continue;
    collectors[g] =
        std::make_unique<StatisticsCollector>(groups[g]->in_features(), needs.hessian, needs.cross);
    any = true;
    cross = cross || needs.cross;
  }
  // Cross moments pair the two streams' inputs of one group.
  NIBBLE_CHECK(!cross || (only != nullptr && float_stream_ != nullptr && float_sublayer != nullptr));
  GroupStatistics statistics(groups.size());
  if (stream_ == nullptr || (!any && only != nullptr)) return statistics;

  const double started = monotonic_seconds();
  std::vector<float> input;  // of the batch at work, for the cross moments
  const InputTap tap = [&](const LinearGroup& group, const float* x, int64_t tokens) {
    for (size_t g = 0; g < groups.size(); ++g) {
      if (groups[g] != &group || !collectors[g]) continue;
      collectors[g]->add(x, tokens, pool_, group.input_name());
      const float* end = x + tokens * group.in_features();
      if (cross) input.assign(x, end);
      if (inputs != nullptr) inputs->insert(inputs->end(), x, end);
    }
    return &group != only;
  };
  const InputTap float_tap = [&](const LinearGroup& group, const float* x, int64_t tokens) {
    if (group.input_name() != only->input_name()) return true;
    for (const auto& collector : collectors) {
      if (collector) collector->add_cross(x, input.data(), tokens, pool_, group.input_name());
    }
    return inputs != nullptr;
  };
  if (inputs != nullptr) {
    inputs->clear();
    inputs->reserve(static_cast<size_t>(stream_->tokens() * only->in_features()));
  }
  for (int64_t batch = 0; batch < stream_->batches(); ++batch) {
    stream_->run_batch(batch, sublayer, &tap, pool_);
    if (cross) float_stream_->run_batch(batch, *float_sublayer, &float_tap, pool_);
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    if (collectors[g]) statistics[g] = std::make_unique<InputStatistics>(collectors[g]->finish());
  }
  calibration_seconds_ += monotonic_seconds() - started;
  return statistics;
}

// The settings that a transform of the group reads; its members agree on them (check_recipe).
LinearSettings BlockQuantizer::group_settings(const LinearGroup& group) const {
  const LinearSlot& slot = group.slots().front();
  return recipe_.settings_for(slot.name, slot.role);
}

void BlockQuantizer::changed_norm(const NormWeights& norm, QuantizedBlock* out) {
  out->tensors[norm.name + ".weight"] = norm.weight;
  if (norm.bias.defined()) out->tensors[norm.name + ".bias"] = norm.bias;
}

TransformPlan BlockQuantizer::transform_group(SubLayer& sublayer, LinearGroup& group,
                                              InputStatistics* statistics, QuantizedBlock* out) {
  const LinearSettings settings = group_settings(group);
  const Transform* transform = find_transform(settings.transform);
  if (transform == nullptr) return {};
  NIBBLE_CHECK(statistics != nullptr);
  NormWeights* norm = sublayer.norm_before(group);
  const std::vector<float> weight_max = column_maxima(group);
  TransformPlan plan = transform->plan({.max_abs = statistics->max_abs,
                                        .weight_max = weight_max,
                                        .foldable = norm != nullptr,
                                        .settings = settings.transform_settings()});
  if (plan.factors.empty()) return plan;
  NIBBLE_CHECK(norm != nullptr);
  divide_norm(plan.factors, norm);
  changed_norm(*norm, out);
  multiply_columns(plan.factors, &group, pool_);
  divide_inputs(plan.factors, statistics);
  return plan;
}

// Factors that a linear in front takes up must be in its weights before that linear is quantized, so they
// come from the sub-layer as it is on entry.
void BlockQuantizer::fold_through_linears(SubLayer& sublayer, GroupStatistics* known) {
  const std::span<LinearGroup* const> groups = sublayer.groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    LinearGroup& group = *groups[g];
    const LinearSettings settings = group_settings(group);
    const Transform* transform = find_transform(settings.transform);
    if (transform == nullptr || !settings.fold_through_linear || sublayer.norm_before(group) != nullptr)
      continue;
    const ChannelSource source = sublayer.linear_before(group);
    if (source.group == nullptr) continue;
    LinearSlot& slot = source.group->slots()[source.slot];

    GroupStatistics collected;
    if (known == nullptr) collected = collect(sublayer, nullptr, &group);
    InputStatistics& statistics = known == nullptr ? *collected[g] : *(*known)[g];
    // Channels that come from one row share a factor, and so the maxima that it is made of.
    const auto shared = [&](std::span<const float> values) {
      std::vector<float> rows(static_cast<size_t>(slot.out_features)), result(values.size());
      for (size_t c = 0; c < values.size(); ++c) {
        float& largest = rows[static_cast<size_t>(source.rows[c])];
        largest = std::max(largest, values[c]);
      }
      for (size_t c = 0; c < values.size(); ++c) result[c] = rows[static_cast<size_t>(source.rows[c])];
      return result;
    };
    const std::vector<float> max_abs = shared(statistics.max_abs), weight_max = shared(column_maxima(group));
    const TransformPlan plan = transform->plan({.max_abs = max_abs,
                                                .weight_max = weight_max,
                                                .foldable = true,
                                                .settings = settings.transform_settings()});
    if (plan.factors.empty()) continue;
    std::vector<float> row_factors(static_cast<size_t>(slot.out_features), 1.0f);
    for (size_t c = 0; c < plan.factors.size(); ++c)
      row_factors[static_cast<size_t>(source.rows[c])] = plan.factors[c];
    divide_rows(row_factors, source.group->in_features(), &slot, pool_);
    source.group->prepare(pool_);
    multiply_columns(plan.factors, &group, pool_);
    group.prepare(pool_);
    divide_inputs(plan.factors, &statistics);
    equalized_.insert(&group);
  }
}

void BlockQuantizer::quantize_group(SubLayer& sublayer, LinearGroup& group, InputStatistics* statistics,
                                    QuantizedBlock* out) {
  const double started = monotonic_seconds();
  const TransformPlan plan = transform_group(sublayer, group, statistics, out);
  GroupActivations activations = {.scale = plan.activation_scale, .description = activation_class(plan)};
  if (equalized_.count(&group) != 0 && plan.factors.empty())
    activations.description = "equalized_" + activations.description;
  FactorCache factors;
  for (LinearSlot& slot : group.slots()) {
    throw_if_interrupted();
    const LinearSettings settings = recipe_.settings_for(slot.name, slot.role);
    if (settings.format == "dense") {
      keep_dense(slot, settings, out);
    } else {
      quantize_slot(slot, group.in_features(), settings, activations, statistics, &factors, out);
    }
  }
  group.prepare(pool_);
  solver_seconds_ += monotonic_seconds() - started;
}

void BlockQuantizer::keep_dense(LinearSlot& slot, const LinearSettings& settings, QuantizedBlock* out) {
  PackedLinear kept = to_16_bit(*slot.packed);
  const auto weights = static_cast<double>(kept.out_features * kept.in_features);
  out->results.push_back({.name = slot.name,
                          .format = "dense",
                          .weight_bits = 16,
                          .activation_bits = 16,
                          .activations = "float",
                          .bits_per_weight = 8.0 * static_cast<double>(kept.weight_bytes()) / weights});
  // A transform's factors make 16 bits a rounding, which calibration goes on with as replay() will.
  if (settings.transform != "none") slot.packed = std::make_shared<PackedLinear>(kept);
  out->linears.push_back(std::move(kept));
}

void BlockQuantizer::quantize_slot(LinearSlot& slot, int64_t in_features, const LinearSettings& settings,
                                   const GroupActivations& activations, const InputStatistics* statistics,
                                   FactorCache* factors, QuantizedBlock* out) {
  const Tensor weight = float_weight(slot, in_features);
  const LinearFormat* format = find_format(settings.format);
  NIBBLE_CHECK(format != nullptr);  // the recipe was checked
  QuantizerInput input = {.name = slot.name,
                          .weight = weight.data<float>(),
                          .out_features = slot.out_features,
                          .in_features = in_features,
                          .statistics = statistics,
                          .settings = &settings,
                          .f16_scales = format->f16_scales,
                          .factors = factors};
  if (settings.outlier_columns != 0) {
    input.outlier_columns =
        select_outlier_columns(*statistics, settings, spec_.hidden_size, slot.role == LinearRole::kDown);
  }
  if (calibration_needs(settings).gradients()) {
    NIBBLE_CHECK(sensitivity_ != nullptr);
    sensitivity_->fill(slot.name, &input);
  }
  if (const auto ratio = sparse_outlier_ratios_.find(slot.name); ratio != sparse_outlier_ratios_.end())
    input.sparse_outlier_ratio = ratio->second;
  QuantizedWeight quantized = find_quantizer(settings.quantizer).quantize(input, pool_);
  if (const Tensor* bias = slot.packed->find("bias")) {
    const Tensor floats = to_f32(*bias);
    quantized.bias.assign(floats.data<float>(), floats.data<float>() + floats.elements());
  }
  if (format->static_activations) quantized.activation_scale = activations.scale;
  PackedLinear packed = format->pack(quantized, slot.name);
  format->validate(packed);

  Tensor dequantized = Tensor::empty(DType::kF32, {slot.out_features, in_features});
  format->dequantize(packed, dequantized.mutable_data<float>());
  const QuantizationError error = quantization_error(input, dequantized.data<float>(), pool_);
  LinearResult result = {.name = slot.name,
                         .format = settings.format,
                         .weight_bits = settings.weight_bits,
                         .activation_bits = settings.activation_bits,
                         .activations = settings.activation_bits == 16 ? "float" : activations.description,
                         .outlier_columns = static_cast<int64_t>(input.outlier_columns.size()),
                         .bits_per_weight = 8.0 * static_cast<double>(packed.weight_bytes()) /
                                            static_cast<double>(weight.elements()),
                         .weight_error = error.weight_relative,
                         .output_error = error.output_relative};
  log_debug("{}: {} bit, activations {}, {} outlier columns, weight error {:.3g}, output error {:.3g}",
            slot.name, result.weight_bits, result.activations, result.outlier_columns, result.weight_error,
            result.output_error);

  if (recipe_.defaults.calibrate_on_codes) {
    slot.packed = std::make_shared<PackedLinear>(packed);
  } else {
    set_float_weight(slot, dequantized);
  }
  out->linears.push_back(std::move(packed));
  out->results.push_back(std::move(result));
}

QuantizedBlock BlockQuantizer::quantize(Block& block, const Block* float_block) {
  QuantizedBlock out;
  std::vector<float> inputs;
  equalized_.clear();
  for (size_t s = 0; s < block.sublayers.size(); ++s) {
    const auto& sublayer = block.sublayers[s];
    const SubLayer* float_sublayer = float_stream_ != nullptr ? float_block->sublayers.at(s).get() : nullptr;
    if (stream_ != nullptr && !recipe_.defaults.calibrate_on_quantized) {
      // One pass through the float sub-layer yields every group's statistics and the float states behind it.
      GroupStatistics statistics = collect(*sublayer, nullptr, nullptr);
      fold_through_linears(*sublayer, &statistics);
      for (size_t g = 0; g < statistics.size(); ++g)
        quantize_group(*sublayer, *sublayer->groups()[g], statistics[g].get(), &out);
      continue;
    }
    fold_through_linears(*sublayer, nullptr);
    const LinearGroup* held = nullptr;  // the group whose inputs are in `inputs`
    bool float_moved = false;
    for (size_t g = 0; g < sublayer->groups().size(); ++g) {
      LinearGroup& group = *sublayer->groups()[g];
      const bool holds = holds_inputs(*sublayer, group);
      const GroupStatistics statistics =
          collect(*sublayer, float_sublayer, &group, holds ? &inputs : nullptr);
      if (holds && statistics[g] != nullptr) {
        held = &group;
        float_moved = statistics[g]->cross.defined();
      }
      quantize_group(*sublayer, group, statistics[g].get(), &out);
    }
    if (stream_ != nullptr) {
      const double started = monotonic_seconds();
      if (held != nullptr) {
        stream_->finish(*held, inputs.data(), pool_);
      } else {
        stream_->run(*sublayer, nullptr, pool_);
      }
      if (float_sublayer != nullptr && !float_moved) float_stream_->run(*float_sublayer, nullptr, pool_);
      calibration_seconds_ += monotonic_seconds() - started;
    }
  }
  return out;
}

void BlockQuantizer::replay(Block& block, const Block* float_block, const std::vector<PackedLinear>& linears,
                            const std::map<std::string, Tensor>& tensors) {
  if (stream_ == nullptr) return;
  for (size_t s = 0; s < block.sublayers.size(); ++s) {
    const auto& sublayer = block.sublayers[s];
    for (LinearGroup* group : sublayer->groups()) {
      if (!recipe_.defaults.calibrate_on_quantized) break;
      if (NormWeights* norm = sublayer->norm_before(*group)) {
        const auto weight = tensors.find(norm->name + ".weight"), bias = tensors.find(norm->name + ".bias");
        if (weight != tensors.end()) norm->weight = to_f32(weight->second);
        if (bias != tensors.end()) norm->bias = to_f32(bias->second);
      }
      for (LinearSlot& slot : group->slots()) {
        const auto packed = std::find_if(linears.begin(), linears.end(), [&](const PackedLinear& linear) {
          return linear.name == slot.name;
        });
        if (packed == linears.end()) fail("{}: is missing in the unfinished run to be resumed", slot.name);
        const LinearSettings settings = recipe_.settings_for(slot.name, slot.role);
        if (settings.format == "dense") {
          if (settings.transform != "none") slot.packed = std::make_shared<PackedLinear>(*packed);
          continue;  // else calibrated on its exact weight
        }
        if (recipe_.defaults.calibrate_on_codes) {
          slot.packed = std::make_shared<PackedLinear>(*packed);
          continue;
        }
        Tensor weight = Tensor::empty(DType::kF32, {slot.out_features, group->in_features()});
        packed->format->dequantize(*packed, weight.mutable_data<float>());
        set_float_weight(slot, weight);
      }
      group->prepare(pool_);
    }
    stream_->run(*sublayer, nullptr, pool_);
    if (float_stream_ != nullptr) float_stream_->run(*float_block->sublayers.at(s), nullptr, pool_);
  }
}

}  // namespace nibble
