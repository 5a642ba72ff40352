// What a model consists of and how it runs here: bits, bytes, kernels and arithmetic of its linears.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "io/checkpoint.h"
#include "models/model.h"

namespace nibble {

struct LinearFacts {
  std::string name, format, kernel, arithmetic;
  std::string activations;  // as quantization chose them; empty where the checkpoint does not say
  int64_t out_features = 0, in_features = 0;
  int bits = 0;  // of the codes
  int64_t outlier_columns = 0, sparse_values = 0;
  double stored_bytes = 0;                                   // metadata included, the bias not
  std::vector<std::pair<std::string, std::string>> refused;  // faster kernels and why they do not run it
  double weights() const { return static_cast<double>(out_features) * static_cast<double>(in_features); }
};

struct ModelFacts {
  std::vector<LinearFacts> linears;  // of the decoder's blocks, in execution order
  LinearFacts embedding, head;
  bool tied_head = false;
  std::map<int, double> multiply_adds;  // of the decoder's linears per token, by weight bits
  // The same by arithmetic; what a linear does beside its main product (outlier columns, sparse values)
  // counts as "N-bit weights".
  std::map<std::string, double> arithmetic;
  double parameters = 0;      // of the source model
  size_t prepared_bytes = 0;  // memory that kernels hold beside the file

  // Of the linears that are stored in a quantized format; of all where none is.
  double bits_per_weight() const;
  // Shares of the multiply-adds, those that are none left out.
  std::map<int, double> mac_share() const;
  std::map<std::string, double> arithmetic_share() const;
};

// Loads one block at a time: the memory of one block, whatever the size of the model.
ModelFacts read_model_facts(const Checkpoint& checkpoint, ThreadPool& pool);
// Of a model that is loaded from `checkpoint`.
ModelFacts model_facts(const Checkpoint& checkpoint, const Model& model);

}  // namespace nibble
