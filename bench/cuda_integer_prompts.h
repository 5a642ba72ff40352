// Linears of group_int_a8 with many tokens on the GPU, beside cuBLASLt's best FP16 product of the same
// shapes.
//
// The four linears of a decoder block run one after another in a graph, each behind the quantization of its
// FP16 input ("us"; "product us" is without it); their weights together are larger than the L2. FP16 and ours
// take turns, medians. Where the few-token kernel takes so many tokens, it stands beside ("few us").
#pragma once

#include <string>
#include <vector>

namespace nibble::integer_bench {

struct PromptOptions {
  std::vector<int> tokens = {128, 256, 512, 1024, 2048, 4096, 8192};
  // Of fptq (F16 scales of 128 columns), two-level (multipliers of 128 columns), folded (multipliers of up to
  // 16), rows-4 and rows-8 (whole rows), fptq-64, fptq-32, folded-64, folded-32, separated by commas; empty:
  // all.
  std::string formats;
  std::string model;            // empty: all
  bool configurations = false;  // instead, the time of every configuration of every linear
  double load_seconds = 1;      // each graph runs for so long before it is timed
};

void run_prompts(const PromptOptions& options);

}  // namespace nibble::integer_bench
