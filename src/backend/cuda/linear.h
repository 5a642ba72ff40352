// A linear on the GPU, or several that share an input (q, k and v; gate and up), whatever its format: what
// the device's model is made of, and the table of the kernels that formats bring along.
//
// A format's kernels are rows of the table in backend/cuda/linear_table.cc, fastest first, as its CPU kernels
// are rows of LinearFormat::kernels: adding one is a folder src/formats/<format>/cuda and one line there.
// Every format ends with the row that takes its weights apart to FP16 when loading: slower, and named so.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/input_step.h"
#include "formats/format.h"

namespace nibble::cuda {

// What multiplies a certain number of tokens.
struct LinearPath {
  std::string kernel;      // "w4a16-decode"
  std::string arithmetic;  // "int4xf16->f32": operands as they enter the products, and their sums
};

// Weights prepacked in memory of the device. Immutable after construction: layers run one after another on
// one stream and may share a workspace.
class DeviceLinear {
 public:
  virtual ~DeviceLinear() = default;

  virtual int64_t in_features() const = 0;   // k
  virtual int64_t out_features() const = 0;  // n, of all fused linears together

  // Bytes of device memory that forward() may use for any number of tokens from 1 to `most_tokens`.
  virtual size_t workspace_bytes(int most_tokens) const = 0;

  // Enqueues y[t, 0..n) = x[t, 0..k) W^T + bias for t in [0, tokens), tokens >= 1. x has row stride k, y
  // `y_stride` >= n; both are 16-byte aligned and lie apart. `workspace` is 256-byte aligned and keeps
  // nothing between calls. Allocates nothing and waits for nothing, so that a graph can record it. A kernel
  // may start before its predecessor on the stream has ended (programmatic launches), but reads x and writes
  // anything only afterwards. Throws Error when a launch is refused.
  virtual void forward(const __half* x, int tokens, __half* y, int64_t y_stride, void* workspace,
                       cudaStream_t stream) const = 0;

  // Linears may take over the step that makes their input. forward_from() is forward() of what `step` yields,
  // rounded to nothing less than FP32 before a linear that quantizes quantizes it, and does what else the
  // step does (a norm's sum). Only to be called where takes() holds.
  virtual bool takes(const InputStep& step, int tokens) const {
    static_cast<void>(step), static_cast<void>(tokens);
    return false;
  }
  virtual void forward_from(const InputStep& step, int tokens, __half* y, int64_t y_stride, void* workspace,
                            cudaStream_t stream) const;

  // Called outside of any recording before forward() runs with so many tokens: for what is chosen by timing.
  virtual void prepare(int tokens, void* workspace, cudaStream_t stream) const {
    static_cast<void>(tokens), static_cast<void>(workspace), static_cast<void>(stream);
  }

  // The same weights once more in other memory, for models of synthetic layers.
  virtual std::unique_ptr<DeviceLinear> duplicate() const = 0;

  virtual LinearPath path(int tokens) const = 0;
  // Device memory that the weights take, in all their arrangements.
  virtual size_t bytes() const = 0;
};

// One way of running a format's linears on the device.
struct DeviceKernel {
  const char* name;       // "cuda-w4a16"
  bool slower = false;    // announced when it runs, refused by --strict
  bool portable = false;  // runs from compute capability 8.0 on; otherwise on Hopper only
  // Empty when it can run `linear`, fused with others to `out_features`, on `device`; else why not.
  std::string (*refusal)(const Problem& problem, const Device& device);
  // Uploads `linears` (one, or several for which the format's can_fuse held and which `fuses` accepts).
  std::unique_ptr<DeviceLinear> (*load)(std::span<const PackedLinear* const> linears, const Device& device,
                                        ThreadPool& pool);
  // Device memory that load() takes for one of the linears it is given.
  size_t (*bytes)(const PackedLinear& linear);
  // Whether `b` can stand behind `a` in one DeviceLinear, given that the format's can_fuse holds.
  bool (*fuses)(const PackedLinear& a, const PackedLinear& b);
};

// The format's rows, fastest first.
std::span<const DeviceKernel* const> device_kernels(const LinearFormat& format);

struct DeviceKernelChoice {
  const DeviceKernel* kernel = nullptr;
  std::vector<std::pair<const DeviceKernel*, std::string>> refused;  // those before it and why
};
// NIBBLE_KERNEL=<name> chooses that row for its format. Throws Error when no row accepts.
DeviceKernelChoice choose_device_kernel(const Problem& problem, const Device& device);

}  // namespace nibble::cuda
