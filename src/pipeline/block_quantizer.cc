#include "pipeline/block_quantizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "formats/dense/dense.h"
#include "quantizers/hessian_factor.h"

namespace nibble {
namespace {

// The float weight [n, k] a slot stands for at the moment.
Tensor float_weight(const LinearSlot& slot, int64_t in_features) {
  Tensor weight = Tensor::empty(DType::kF32, {slot.out_features, in_features});
  slot.packed->format->dequantize(*slot.packed, weight.mutable_data<float>());
  return weight;
}

// Replaces a slot's weight by a float matrix with the same bias: calibration goes on with what the model will
// compute, but with unquantized activations, as QUIK's and GPTQ's own calibration does.
void set_float_weight(LinearSlot& slot, const Tensor& weight) {
  slot.packed = std::make_shared<PackedLinear>(make_dense_linear(
      slot.name, weight, slot.packed->find("bias") != nullptr ? *slot.packed->find("bias") : Tensor()));
}

}  // namespace

CalibrationNeeds calibration_needs(const LinearSettings& settings) {
  if (settings.format == "dense") return {};
  return find_quantizer(settings.quantizer).needs(settings);
}

bool needs_statistics(const LinearSettings& settings) {
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

BlockQuantizer::GroupStatistics BlockQuantizer::collect(SubLayer& sublayer, const SubLayer* float_sublayer,
                                                        const LinearGroup* only) {
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
      if (cross) input.assign(x, x + tokens * group.in_features());
    }
    return &group != only;
  };
  const InputTap float_tap = [&](const LinearGroup& group, const float* x, int64_t tokens) {
    if (group.input_name() != only->input_name()) return true;
    for (const auto& collector : collectors) {
      if (collector) collector->add_cross(x, input.data(), tokens, pool_, group.input_name());
    }
    return false;
  };
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

void BlockQuantizer::quantize_group(LinearGroup& group, const InputStatistics* statistics,
                                    QuantizedBlock* out) {
  const double started = monotonic_seconds();
  FactorCache factors;
  for (LinearSlot& slot : group.slots()) {
    throw_if_interrupted();
    const LinearSettings settings = recipe_.settings_for(slot.name, slot.role);
    if (settings.format == "dense") {
      keep_dense(slot, out);
    } else {
      quantize_slot(slot, group.in_features(), settings, statistics, &factors, out);
    }
  }
  group.prepare(pool_);
  solver_seconds_ += monotonic_seconds() - started;
}

void BlockQuantizer::keep_dense(const LinearSlot& slot, QuantizedBlock* out) {
  PackedLinear kept = to_16_bit(*slot.packed);
  const auto weights = static_cast<double>(kept.out_features * kept.in_features);
  out->results.push_back({.name = slot.name,
                          .format = "dense",
                          .weight_bits = 16,
                          .activation_bits = 16,
                          .bits_per_weight = 8.0 * static_cast<double>(kept.weight_bytes()) / weights});
  out->linears.push_back(std::move(kept));
}

void BlockQuantizer::quantize_slot(LinearSlot& slot, int64_t in_features, const LinearSettings& settings,
                                   const InputStatistics* statistics, FactorCache* factors,
                                   QuantizedBlock* out) {
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
  PackedLinear packed = format->pack(quantized, slot.name);
  format->validate(packed);

  Tensor dequantized = Tensor::empty(DType::kF32, {slot.out_features, in_features});
  format->dequantize(packed, dequantized.mutable_data<float>());
  const QuantizationError error = quantization_error(input, dequantized.data<float>(), pool_);
  LinearResult result = {.name = slot.name,
                         .format = settings.format,
                         .weight_bits = settings.weight_bits,
                         .activation_bits = settings.activation_bits,
                         .outlier_columns = static_cast<int64_t>(input.outlier_columns.size()),
                         .bits_per_weight = 8.0 * static_cast<double>(packed.weight_bytes()) /
                                            static_cast<double>(weight.elements()),
                         .weight_error = error.weight_relative,
                         .output_error = error.output_relative};
  log_debug("{}: {} bit, {} outlier columns, weight error {:.3g}, output error {:.3g}", slot.name,
            result.weight_bits, result.outlier_columns, result.weight_error, result.output_error);

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
  for (size_t s = 0; s < block.sublayers.size(); ++s) {
    const auto& sublayer = block.sublayers[s];
    const SubLayer* float_sublayer = float_stream_ != nullptr ? float_block->sublayers.at(s).get() : nullptr;
    if (stream_ != nullptr && !recipe_.defaults.calibrate_on_quantized) {
      // One pass through the float sub-layer yields every group's statistics and the float states behind it.
      const GroupStatistics statistics = collect(*sublayer, nullptr, nullptr);
      for (size_t g = 0; g < statistics.size(); ++g)
        quantize_group(*sublayer->groups()[g], statistics[g].get(), &out);
      continue;
    }
    for (size_t g = 0; g < sublayer->groups().size(); ++g) {
      LinearGroup& group = *sublayer->groups()[g];
      const GroupStatistics statistics = collect(*sublayer, float_sublayer, &group);
      quantize_group(group, statistics[g].get(), &out);
    }
    if (stream_ != nullptr) {
      const double started = monotonic_seconds();
      stream_->run(*sublayer, nullptr, pool_);
      if (float_sublayer != nullptr) float_stream_->run(*float_sublayer, nullptr, pool_);
      calibration_seconds_ += monotonic_seconds() - started;
    }
  }
  return out;
}

void BlockQuantizer::replay(Block& block, const Block* float_block,
                            const std::vector<PackedLinear>& linears) {
  if (stream_ == nullptr) return;
  for (size_t s = 0; s < block.sublayers.size(); ++s) {
    const auto& sublayer = block.sublayers[s];
    for (LinearGroup* group : sublayer->groups()) {
      if (!recipe_.defaults.calibrate_on_quantized) break;
      for (LinearSlot& slot : group->slots()) {
        const auto packed = std::find_if(linears.begin(), linears.end(), [&](const PackedLinear& linear) {
          return linear.name == slot.name;
        });
        if (packed == linears.end()) fail("{}: is missing in the unfinished run to be resumed", slot.name);
        if (recipe_.settings_for(slot.name, slot.role).format == "dense")
          continue;  // calibrated on its exact weight
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
