// Quantizing a whole model: block by block, each on the outputs of the already quantized ones, with the
// memory of one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_pool.h"
#include "io/checkpoint.h"
#include "pipeline/calibration_data.h"
#include "quantizers/recipe.h"

namespace nibble {

struct QuantizeOptions {
  std::filesystem::path model;
  std::filesystem::path output;
  Recipe recipe;
  CalibrationOptions calibration;
  int embedding_bits = 8;  // 16, 8 or 4: embedding table and head
  bool resume = false;
  bool force = false;   // replace an existing output
  bool verify = false;  // reload the result and compare it with what was written
  // SHA-256 of the source's weight files by name, from a caller that has them already; empty: computed.
  std::vector<std::pair<std::string, std::string>> source_hashes;
};

// What a run will need and give, from the headers, the recipe, and a measurement on one block.
struct QuantizeForecast {
  int64_t linears = 0;
  double output_bytes = 0;
  double source_bytes = 0;
  double bits_per_weight = 0;  // of the quantized linears
  double peak_memory_bytes = 0;
  double held_input_bytes = 0;  // of it, inputs of linears that save running sub-layers twice; 0: no room
  double available_memory_bytes = 0;
  double free_disk_bytes = 0;
  double seconds = 0;
  // The backward pass, where the recipe wants gradients of the loss: sequences it runs over, its part of
  // `seconds`, disk space until the end, and whether hidden states go to the disk too.
  int64_t sensitivity_sequences = 0;
  double sensitivity_seconds = 0, temporary_bytes = 0;
  bool spill_states = false;
  std::string calibration;  // "32 sequences of 512 tokens from ..."; empty when the recipe needs none
};

struct LinearResult {
  std::string name;
  std::string format;
  int64_t weight_bits = 0, activation_bits = 0;
  // "float", "per_token", "static"; "equalized_per_token", "equalized_static" after a transform.
  std::string activations;
  int64_t outlier_columns = 0;
  double bits_per_weight = 0;
  double weight_error = 0;  // relative squared error of the weight
  double output_error =
      0;  // relative squared error of the output over the calibration tokens; 0 without calibration
};

struct QuantizeResult {
  std::vector<LinearResult> linears;  // of the blocks, in order
  double bits_per_weight = 0;         // of the quantized linears, metadata included
  double embedding_error =
      0;  // relative squared error of the embedding table, and of the head where it is separate
  double head_error = 0;
  uint64_t source_bytes = 0, output_bytes = 0;
  double seconds = 0;
  double calibration_seconds = 0, solver_seconds = 0;  // forward passes with statistics; quantizers
  double sensitivity_seconds = 0;                      // the backward pass
  int64_t resumed_blocks = 0;
  bool verified = false;
};

// Both throw Error or UsageError before any work for a recipe that cannot be applied, missing calibration, an
// output that may not be written, too little memory or disk; quantize_model throws Interrupted on Ctrl-C and
// keeps finished blocks.
QuantizeForecast forecast_quantization(const QuantizeOptions& options, ThreadPool& pool);
QuantizeResult quantize_model(const QuantizeOptions& options, ThreadPool& pool);

// Tells runs apart: by recipe, source, calibration and program version. A finished folder has it in its
// provenance.
std::string quantization_fingerprint(const QuantizeOptions& options, ThreadPool& pool);
std::vector<std::pair<std::string, std::string>> hash_source(const Checkpoint& checkpoint);

}  // namespace nibble
