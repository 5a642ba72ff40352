// Quantizes the linears of one block, group after group in execution order, and moves the calibration states
// through it.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "pipeline/quantize_model.h"
#include "pipeline/residual_stream.h"
#include "pipeline/sensitivity.h"
#include "quantizers/quantizer.h"
#include "transforms/transform.h"

namespace nibble {

struct QuantizedBlock {
  std::vector<PackedLinear> linears;
  std::vector<LinearResult> results;
  // Other tensors of the block that quantization changed (a norm that took up scales), by full name.
  std::map<std::string, Tensor> tensors;
};

// What calibration has gathered, or gathers while the blocks pass; each null or empty where no linear of the
// recipe asks for it.
struct BlockCalibration {
  ResidualStream* stream = nullptr;        // inputs of the linears
  ResidualStream* float_stream = nullptr;  // the float model's, in step with the other (GPTAQ)
  SensitivityStore* sensitivity = nullptr;
  // Inputs of a sub-layer's last linears are held up to this size, so that the sub-layer can go on from there
  // once they are quantized; beyond, it runs again from its start. The results are the same.
  double held_input_bytes = 0;
  // What find_sparse_outlier_ratios() found; linears that are missing take the largest of their own weights.
  std::map<std::string, double> sparse_outlier_ratios;
};

class BlockQuantizer {
 public:
  BlockQuantizer(const Recipe& recipe, const ModelSpec& spec, BlockCalibration calibration, ThreadPool& pool)
      : recipe_(recipe),
        spec_(spec),
        stream_(calibration.stream),
        float_stream_(calibration.float_stream),
        sensitivity_(calibration.sensitivity),
        held_input_bytes_(calibration.held_input_bytes),
        pool_(pool),
        sparse_outlier_ratios_(std::move(calibration.sparse_outlier_ratios)) {}

  // `block` comes with the float weights of the source. On return its weights are the dequantized ones, and
  // the stream has moved through it (through the float block when the recipe says calibrate_on_quantized =
  // false). With a float stream, `float_block` is the same block once more, which stays as it is.
  QuantizedBlock quantize(Block& block, const Block* float_block = nullptr);
  // Moves the streams through a block whose linears an earlier run has quantized. `tensors` are those of
  // QuantizedBlock::tensors.
  void replay(Block& block, const Block* float_block, const std::vector<PackedLinear>& linears,
              const std::map<std::string, Tensor>& tensors);

  double calibration_seconds() const { return calibration_seconds_; }
  double solver_seconds() const { return solver_seconds_; }

 private:
  using GroupStatistics =
      std::vector<std::unique_ptr<InputStatistics>>;  // per group; null where none is needed
  // Statistics of the one group `only` (stopping there), or of all groups of the sub-layer in a single pass
  // through it. `float_sublayer` may be null when no group needs the float model's inputs. With `inputs`,
  // `only` is the last group: its inputs [tokens, in_features] are put there, and a float stream whose inputs
  // are needed goes through the whole float sub-layer.
  GroupStatistics collect(SubLayer& sublayer, const SubLayer* float_sublayer, const LinearGroup* only,
                          std::vector<float>* inputs = nullptr);
  bool holds_inputs(SubLayer& sublayer, const LinearGroup& group) const;
  // How the activations of a group are quantized; `scale` is the static step or 0.
  struct GroupActivations {
    float scale = 0;
    std::string description;  // activation_class()
  };
  LinearSettings group_settings(const LinearGroup& group) const;
  static void changed_norm(const NormWeights& norm, QuantizedBlock* out);
  // Equalizes the group's input where its recipe has a transform; statistics become those of the new input.
  TransformPlan transform_group(SubLayer& sublayer, LinearGroup& group, InputStatistics* statistics,
                                QuantizedBlock* out);
  // The same for groups behind a linear, where the recipe asks for it. `known` are the statistics of all
  // groups where they exist already.
  void fold_through_linears(SubLayer& sublayer, GroupStatistics* known);
  void quantize_group(SubLayer& sublayer, LinearGroup& group, InputStatistics* statistics,
                      QuantizedBlock* out);
  // The 16-bit linear that a recipe leaves as it is.
  void keep_dense(LinearSlot& slot, const LinearSettings& settings, QuantizedBlock* out);
  void quantize_slot(LinearSlot& slot, int64_t in_features, const LinearSettings& settings,
                     const GroupActivations& activations, const InputStatistics* statistics,
                     FactorCache* factors, QuantizedBlock* out);
  bool needs_statistics(const LinearGroup& group, CalibrationNeeds* needs) const;

  const Recipe& recipe_;
  const ModelSpec& spec_;
  ResidualStream* stream_;
  ResidualStream* float_stream_;
  SensitivityStore* sensitivity_;
  double held_input_bytes_;
  ThreadPool& pool_;
  std::map<std::string, double> sparse_outlier_ratios_;
  double calibration_seconds_ = 0, solver_seconds_ = 0;
  std::set<const LinearGroup*> equalized_;  // of the block at work, by fold_through_linears()
};

// What the settings of a linear ask calibration for; whether they ask for statistics of its input (outlier
// columns and transforms need the channels' maxima), and whether for anything.
CalibrationNeeds calibration_needs(const LinearSettings& settings);
bool needs_statistics(const LinearSettings& settings);
bool needs_calibration(const LinearSettings& settings);

}  // namespace nibble
