// How much the loss depends on each weight: one backward pass over the calibration sequences before any block
// is quantized. Its results wait on the disk, in the folder of the unfinished output, until their block's
// turn.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "models/model.h"
#include "pipeline/calibration_data.h"
#include "quantizers/quantizer.h"

namespace nibble {

// What the backward pass is to measure.
struct SensitivityPlan {
  struct Want {
    int64_t layer = 0;
    int64_t out_features = 0, in_features = 0;
    bool squared_gradients = false;
    int64_t guided_groups = 0;  // Hessians weighted by gradients; 0: none
  };
  std::map<std::string, Want> linears;  // by name
  int64_t sequences = 0;                // the first of the calibration sequences

  bool empty() const { return linears.empty(); }
  int64_t lowest_layer() const;
};
// Of a recipe whose data has `sequences` sequences (0: unknown as yet).
SensitivityPlan plan_sensitivity(const Recipe& recipe, const ModelSpec& spec, int64_t sequences);

struct SensitivityCost {
  double memory_bytes = 0;
  double disk_bytes = 0;      // in the output's folder, gone with its last block
  bool spill_states = false;  // the hidden states between blocks go to the disk too
  double forwards = 0;        // time, in forward passes through the blocks over the plan's tokens
  double head_forwards = 0;   // and in products with the head
};
// The hidden states between blocks stay in memory while they take at most a quarter of what is available.
SensitivityCost sensitivity_cost(const SensitivityPlan& plan, const ModelSpec& spec, int64_t length,
                                 double available_memory_bytes);

class SensitivityStore {
 public:
  // `folder` is that of the unfinished output.
  SensitivityStore(std::filesystem::path folder, SensitivityPlan plan);

  // Measures what neither is in the folder (from a run that was interrupted) nor belongs to a layer for which
  // `is_done` says that nobody will ask any more. `shell` comes from Model::load_shell. Throws Interrupted on
  // Ctrl-C, keeping finished blocks, and Error when a loss or gradient is not finite.
  void measure(const Model& shell, const CalibrationData& data, bool spill_states,
               const std::function<bool(int64_t layer)>& is_done, ThreadPool& pool);

  // Sets what was measured for the linear. The data is valid until the next fill() for another layer,
  // release() or the end of the store.
  void fill(const std::string& linear, QuantizerInput* input);
  // The layer is quantized: its file goes.
  void release(int64_t layer);
  // Everything goes; before the folder becomes the output.
  void remove_all();

 private:
  std::filesystem::path file_of(int64_t layer) const;
  bool wants_layer(int64_t layer) const;
  void measure_block(const Model& shell, int64_t layer, const class StateArchive& archive, int64_t archived,
                     const CalibrationData& data, float* gradient, ThreadPool& pool);

  std::filesystem::path folder_;
  SensitivityPlan plan_;
  int64_t open_layer_ = -1;
  SafetensorsFile open_;
};

}  // namespace nibble
