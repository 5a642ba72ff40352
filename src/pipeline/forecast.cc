#include "pipeline/forecast.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "base/system_info.h"
#include "models/linear_info.h"
#include "pipeline/block_quantizer.h"
#include "pipeline/residual_stream.h"
#include "pipeline/sensitivity.h"

namespace nibble {
namespace {

// Forward passes a block costs per calibration token: each group's statistics stop at that group. Where its
// inputs can be held the sub-layer goes on from there, else the earlier groups run again (measured 1.8 to 2.2
// on llama-like blocks).
constexpr double kForwardsPerBlock = 2.0, kForwardsWithHeldInputs = 1.1;
// Inputs are held in at most this share of the memory that nothing else needs.
constexpr double kHeldShare = 0.5;

// Bytes of `rows` rows of zeros in the format and settings of `linear`.
double packed_bytes_of_rows(const LinearInfo& linear, const LinearSettings& settings, int64_t hidden_size,
                            int64_t rows) {
  std::vector<int32_t> outlier_columns;
  if (settings.outlier_columns != 0) {
    InputStatistics statistics = {.in_features = linear.in_features, .tokens = 1};
    statistics.max_abs.assign(static_cast<size_t>(linear.in_features), 1e30f);  // above any threshold
    outlier_columns =
        select_outlier_columns(statistics, settings, hidden_size, linear.role == LinearRole::kDown);
  }
  const Quantizer& quantizer = find_quantizer(settings.quantizer);
  const auto sample = quantizer.sample != nullptr ? quantizer.sample : uniform_sample;
  return static_cast<double>(
      find_format(settings.format)
          ->pack(sample(settings, rows, linear.in_features, std::move(outlier_columns)), linear.name)
          .weight_bytes());
}

// Two small samples give what a format stores per row and once per linear.
double packed_bytes(const LinearInfo& linear, const LinearSettings& settings, int64_t hidden_size) {
  const auto rows = static_cast<double>(linear.out_features);
  if (settings.format == "dense") return 2.0 * rows * static_cast<double>(linear.in_features);
  constexpr int64_t kSampleRows = 16;
  const double once = packed_bytes_of_rows(linear, settings, hidden_size, kSampleRows);
  const double per_row =
      (packed_bytes_of_rows(linear, settings, hidden_size, 2 * kSampleRows) - once) / kSampleRows;
  return once + per_row * (rows - kSampleRows);
}

struct Rates {
  double forward_seconds_per_token = 0;     // one block
  double statistics_seconds_per_token = 0;  // all groups of one block
  double flops = 1e9;                       // of the second-moment products
};

// Runs block 0 on one calibration sequence.
Rates measure(const Checkpoint& checkpoint, const CalibrationData& data, ThreadPool& pool) {
  const std::unique_ptr<Model> model = Model::load_shell(checkpoint, pool, {.context_length = data.length});
  Block block = model->load_block(0, pool);
  CalibrationData sample = data;
  sample.sequences = 1;
  sample.ids.resize(static_cast<size_t>(data.length));
  ResidualStream stream(*model, sample);

  Rates rates;
  double statistics_seconds = 0, operations = 0;
  const InputTap tap = [&](const LinearGroup& group, const float* x, int64_t tokens) {
    StatisticsCollector collector(group.in_features(), true);
    const double started = monotonic_seconds();
    collector.add(x, tokens, pool, group.input_name());
    statistics_seconds += monotonic_seconds() - started;
    operations += static_cast<double>(tokens) * static_cast<double>(group.in_features()) *
                  static_cast<double>(group.in_features());
    return true;
  };
  const double started = monotonic_seconds();
  for (const auto& sublayer : block.sublayers) stream.run(*sublayer, &tap, pool);
  const double elapsed = monotonic_seconds() - started;
  const auto tokens = static_cast<double>(data.length);
  rates.forward_seconds_per_token = (elapsed - statistics_seconds) / tokens;
  rates.statistics_seconds_per_token = statistics_seconds / tokens;
  if (statistics_seconds > 0) rates.flops = operations / statistics_seconds;
  return rates;
}

LinearRole first_with_input_of(LinearRole role) {
  const bool first = role == LinearRole::kKey || role == LinearRole::kValue;
  return first ? LinearRole::kQuery : role == LinearRole::kUp ? LinearRole::kGate : role;
}

// Linears with one input share what a transform does to it.
void check_groups(const Recipe& recipe, const std::vector<LinearInfo>& linears) {
  const LinearInfo* before = nullptr;
  for (const LinearInfo& linear : linears) {
    if (before != nullptr && before->layer == linear.layer &&
        first_with_input_of(before->role) == first_with_input_of(linear.role)) {
      const LinearSettings one = recipe.settings_for(before->name, before->role);
      const LinearSettings other = recipe.settings_for(linear.name, linear.role);
      if (!one.same_transform(other)) {
        fail(
            "recipe '{}': {} and {} have the same input but differ in transform or its settings (\"{}\" and "
            "\"{}\"); set them alike",
            recipe.name, before->name, linear.name, one.transform, other.transform);
      }
    }
    before = &linear;
  }
}

// The linear whose rows take factors up that a transform moves away from the input of `role`'s group, when
// no norm stands in front of it.
std::optional<LinearRole> folded_into(LinearRole role) {
  if (role == LinearRole::kAttentionOutput) return LinearRole::kValue;
  if (role == LinearRole::kDown) return LinearRole::kUp;
  return std::nullopt;
}

// Gradients of the loss are those by the checkpoint's weights, whose rows must not take factors up later.
// (Columns that do: LinearSettings::check.)
void check_gradients(const Recipe& recipe, const std::vector<LinearInfo>& linears) {
  for (const LinearInfo& linear : linears) {
    const LinearSettings settings = recipe.settings_for(linear.name, linear.role);
    const std::optional<LinearRole> source = folded_into(linear.role);
    if (settings.transform == "none" || !settings.fold_through_linear || !source.has_value()) continue;
    for (const LinearInfo& other : linears) {
      if (other.layer != linear.layer || other.role != *source) continue;
      if (!calibration_needs(recipe.settings_for(other.name, other.role)).gradients()) continue;
      fail(
          "recipe '{}': {} is weighed by gradients of the loss, and transform \"{}\" of {} folds factors "
          "into its rows; expected fold_through_linear false, or a quantizer without gradients "
          "(sensitivity=hessian_diagonal, lnq_hessian=plain)",
          recipe.name, other.name, settings.transform, linear.name);
    }
  }
}

}  // namespace

void check_recipe(const Recipe& recipe, const ModelSpec& spec) {
  std::vector<std::pair<std::string, LinearRole>> names;
  const std::vector<LinearInfo> linears = list_linears(spec);
  for (const LinearInfo& linear : linears) names.emplace_back(linear.name, linear.role);
  recipe.check_all_match(names);
  check_groups(recipe, linears);
  check_gradients(recipe, linears);
  for (const LinearInfo& linear : linears) {
    const LinearSettings settings = recipe.settings_for(linear.name, linear.role);
    if (find_format(settings.format) == nullptr) {
      fail_usage("recipe '{}': {} has format '{}', which does not exist", recipe.name, linear.name,
                 settings.format);
    }
    if (settings.format == "dense") continue;
    find_quantizer(settings.quantizer);
    if (calibration_needs(settings).cross && !recipe.defaults.calibrate_on_quantized) {
      fail("recipe '{}': {} has asymmetric_calibration, but 'defaults' says calibrate_on_quantized false",
           recipe.name, linear.name);
    }
    packed_bytes(linear, settings, spec.hidden_size);  // the format refuses what it cannot hold
  }
}

namespace {

bool any_linear(const Recipe& recipe, const ModelSpec& spec, bool (*needs)(const LinearSettings&)) {
  const std::vector<LinearInfo> linears = list_linears(spec);
  return std::any_of(linears.begin(), linears.end(), [&](const LinearInfo& linear) {
    return needs(recipe.settings_for(linear.name, linear.role));
  });
}

}  // namespace

bool recipe_needs_calibration(const Recipe& recipe, const ModelSpec& spec) {
  return any_linear(recipe, spec, needs_calibration);
}

bool recipe_needs_statistics(const Recipe& recipe, const ModelSpec& spec) {
  return any_linear(recipe, spec, needs_statistics);
}

bool recipe_needs_float_stream(const Recipe& recipe, const ModelSpec& spec) {
  return any_linear(recipe, spec,
                    [](const LinearSettings& settings) { return calibration_needs(settings).cross; });
}

QuantizeForecast make_forecast(const QuantizeOptions& options, const Checkpoint& checkpoint,
                               const ModelSpec& spec, const CalibrationData& data, ThreadPool& pool) {
  QuantizeForecast forecast = {.source_bytes = static_cast<double>(checkpoint.file_bytes()),
                               .available_memory_bytes = static_cast<double>(available_memory_bytes()),
                               .free_disk_bytes = static_cast<double>(free_disk_bytes(options.output)),
                               .calibration = data.description};
  double weights = 0, bytes = 0, solver_operations = 0, block_weights = 0, widest = 0, largest = 0;
  double widest_last = 0;  // input of a sub-layer's last linears
  const std::vector<LinearInfo> linears = list_linears(spec);
  for (const LinearInfo& linear : linears) {
    const LinearSettings settings = options.recipe.settings_for(linear.name, linear.role);
    const auto n = static_cast<double>(linear.out_features), k = static_cast<double>(linear.in_features);
    weights += n * k;
    bytes += packed_bytes(linear, settings, spec.hidden_size);
    if (linear.layer == 0) block_weights += n * k;
    largest = std::max(largest, n * k);
    if (linear.role == LinearRole::kAttentionOutput || linear.role == LinearRole::kDown) {
      widest_last = std::max(widest_last, k);
    }
    if (calibration_needs(settings).hessian) {
      widest = std::max(widest, k);
      solver_operations += n * k * k + k * k * k;
    }
  }
  forecast.linears = static_cast<int64_t>(linears.size());
  forecast.bits_per_weight = 8.0 * bytes / std::max(1.0, weights);

  const double token_matrix = static_cast<double>(spec.vocabulary) * static_cast<double>(spec.hidden_size);
  const double token_matrices = spec.tied_embeddings ? 1 : 2;
  const double token_bits = options.embedding_bits == 4 ? 4.5 : options.embedding_bits;
  forecast.output_bytes = bytes + token_matrices * token_matrix * token_bits / 8;

  // One block as floats and prepared for the products; second moments, their permuted copy and their inverse;
  // the weight at work with its copies; hidden states; intermediate results of a batch; the embedding table
  // read once.
  const auto tokens = static_cast<double>(data.sequences * data.length);
  const double hidden = static_cast<double>(spec.hidden_size);
  // Bytes per entry: the embedding read once and quantized; of a rotated model, embedding and head are there
  // as floats.
  const auto rotation = checkpoint.config().find("nibble_rotation");
  const bool rotates_stream = rotation != checkpoint.config().end() && rotation->contains("residual");
  const double held_matrices = rotates_stream ? 9 : 5;
  const double batch = std::max(2048.0, static_cast<double>(data.length));
  // Asymmetric calibration: the float block, its hidden states, the cross moments, two products of them, and
  // an input with its distance from the float model's.
  const bool with_float_stream = recipe_needs_float_stream(options.recipe, spec);
  const double streams = with_float_stream ? 2 : 1;
  forecast.peak_memory_bytes = 8 * block_weights * streams + 12 * widest * widest + 16 * largest +
                               4 * tokens * hidden * streams +
                               4 * batch * (6 * hidden + 3 * static_cast<double>(spec.intermediate_size)) +
                               held_matrices * token_matrix;
  if (with_float_stream) forecast.peak_memory_bytes += 16 * widest * widest + 8 * batch * widest;
  const double spare = forecast.available_memory_bytes - forecast.peak_memory_bytes;
  if (const double held = 4 * tokens * widest_last;
      recipe_needs_statistics(options.recipe, spec) && held <= kHeldShare * spare) {
    forecast.held_input_bytes = held;
    forecast.peak_memory_bytes += held;
  }
  const SensitivityPlan plan = plan_sensitivity(options.recipe, spec, data.sequences);
  const SensitivityCost sensitivity =
      sensitivity_cost(plan, spec, data.length, forecast.available_memory_bytes);
  forecast.sensitivity_sequences = plan.empty() ? 0 : plan.sequences;
  forecast.spill_states = sensitivity.spill_states;
  forecast.temporary_bytes = sensitivity.disk_bytes;
  // The backward pass is over before the first block is quantized; both hold the embedding table.
  forecast.peak_memory_bytes =
      std::max(forecast.peak_memory_bytes, sensitivity.memory_bytes + held_matrices * token_matrix);

  forecast.seconds = weights / 50e6;  // rounding: tens of millions of weights a second
  if (data.empty()) return forecast;
  const Rates rates = measure(checkpoint, data, pool);
  const auto layers = static_cast<double>(spec.layers);
  if (recipe_needs_statistics(options.recipe, spec)) {
    const double forwards = forecast.held_input_bytes > 0 ? kForwardsWithHeldInputs : kForwardsPerBlock;
    forecast.seconds = tokens * layers *
                           (streams * forwards * rates.forward_seconds_per_token +
                            // Cross moments have no symmetry to save half of them.
                            (with_float_stream ? 3 : 1) * rates.statistics_seconds_per_token) +
                       solver_operations / rates.flops;
  }
  const double backward_tokens = static_cast<double>(plan.sequences) * static_cast<double>(data.length);
  forecast.sensitivity_seconds =
      backward_tokens * rates.forward_seconds_per_token *
      (sensitivity.forwards + sensitivity.head_forwards * token_matrix / block_weights);
  forecast.seconds += forecast.sensitivity_seconds;
  return forecast;
}

void check_resources(const QuantizeForecast& forecast, const QuantizeOptions& options) {
  if (forecast.peak_memory_bytes > forecast.available_memory_bytes) {
    fail(
        "this run needs about {} of memory, and {} are available; use fewer or shorter calibration sequences",
        format_bytes(forecast.peak_memory_bytes), format_bytes(forecast.available_memory_bytes));
  }
  const double disk = forecast.output_bytes * 1.02 + forecast.temporary_bytes;
  if (disk > forecast.free_disk_bytes) {
    fail("{}: the result needs about {} of disk{}, and {} are free", options.output.string(),
         format_bytes(forecast.output_bytes),
         forecast.temporary_bytes > 0 ? format_text(" and the gradients of the loss {} meanwhile",
                                                    format_bytes(forecast.temporary_bytes))
                                      : "",
         format_bytes(forecast.free_disk_bytes));
  }
}

}  // namespace nibble
