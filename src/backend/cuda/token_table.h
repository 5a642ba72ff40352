// The two ends of a model on the GPU: a table of tokens by hidden channels, whose rows are looked up for the
// first layer (embedding) and multiplied with the last states (head). One table may be both.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/linear.h"

namespace nibble::cuda {

class TokenTable {
 public:
  virtual ~TokenTable() = default;

  virtual int64_t tokens() const = 0;    // n, the vocabulary
  virtual int64_t channels() const = 0;  // k

  // Enqueues residual [count, k] = rows `ids` [count], which lie on the device and are valid.
  virtual void embed(const int32_t* ids, int count, float* residual, cudaStream_t stream) const = 0;

  // Enqueues y [count, n] = x [count, k] W^T in FP32. As DeviceLinear::forward(): allocates nothing, and a
  // kernel may start before its predecessor has ended. Both throw Error when a launch is refused.
  virtual void logits(const __half* x, int count, float* y, void* workspace, cudaStream_t stream) const = 0;
  virtual size_t workspace_bytes(int most_rows) const = 0;
  // Called outside of any recording before logits() runs with so many rows.
  virtual void prepare(int count, void* workspace, cudaStream_t stream) const {
    static_cast<void>(count), static_cast<void>(workspace), static_cast<void>(stream);
  }

  virtual LinearPath path() const = 0;  // of logits()
  virtual size_t bytes() const = 0;     // of device memory
};

// One way of keeping tables of a format on the device.
struct TokenTableKernel {
  const char* name;     // "cuda-w8a16-rows"
  bool slower = false;  // announced when it runs, refused by --strict
  // Empty when it can keep `table`; else why not.
  std::string (*refusal)(const PackedLinear& table);
  std::unique_ptr<TokenTable> (*load)(const PackedLinear& table, ThreadPool& pool);
  size_t (*bytes)(const PackedLinear& table);  // that load() takes
};

struct TokenTableChoice {
  const TokenTableKernel* kernel = nullptr;
  std::vector<std::pair<const TokenTableKernel*, std::string>> refused;  // those before it and why
};
// The fastest that accepts; the last one, which takes tables apart to FP16, always does.
TokenTableChoice choose_token_table(const PackedLinear& table);

// An FP16 table of uniform random numbers of variance 1 / channels, for measurements.
std::unique_ptr<TokenTable> make_random_table(int64_t tokens, int64_t channels, uint32_t seed);

}  // namespace nibble::cuda
