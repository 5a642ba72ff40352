// The speed of single linears on a GPU, through the interface that its models use: every format with a row in
// backend/cuda/linear_table.cc is measured alike. Nothing here needs CUDA to compile.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "formats/format.h"

namespace nibble {

// What one GPU can do at most, measured before its kernels are.
struct DeviceLimits {
  std::string device;                // "NVIDIA H100 80GB HBM3"
  double read_bytes_per_second = 0;  // of memory
  // Of the tensor cores, two operations per multiply-add; 0 where they were not measured (before Hopper).
  double int8_operations_per_second = 0, half_operations_per_second = 0;
  size_t blas_version = 0;   // of cuBLASLt, such as 130100
  size_t rotated_bytes = 0;  // of weights, between two uses of the same ones
};

// Linears of one input, fused where their kernel can.
struct BenchedLinears {
  std::string name;
  int64_t out_features = 0, in_features = 0;  // of all together
  std::vector<PackedLinear> linears;          // empty: uniform random FP16 made on the device
};

struct LinearSpeed {
  double seconds = 0;  // of one pass
  double half_seconds =
      0;  // of cuBLASLt's fastest FP16 products of the same shapes, measured in turns with it
  // The least time that weights, inputs and outputs, or the operations, take at the limits, whichever is
  // longer for each product; 0 where the limit is not known. `limit`: "memory", "INT8" or "FP16", what most
  // of it is.
  double floor_seconds = 0;
  std::string limit;
  size_t weight_bytes = 0, workspace_bytes = 0;  // on the device
  std::string kernel;                            // of the table: "cuda-quik"
  std::string path, arithmetic;  // "quik-product", "int8xint8->int32, as int8"; several are joined with " | "
  bool slower = false;           // of any: announced when a model takes it
};

class DeviceLinearBench {
 public:
  virtual ~DeviceLinearBench() = default;
  virtual const DeviceLimits& limits() const = 0;
  // Runs groups `which` one after another in one graph over copies of their weights that together exceed the
  // L2, so that none is still there when its turn comes again, and FP16 products of their shapes likewise.
  // Random inputs. Medians over `repetitions` turns. Throws Error when memory does not suffice.
  virtual LinearSpeed measure(std::span<const size_t> which, int tokens, int repetitions) = 0;
};

// Uploads the groups and measures the limits. Throws Error as require_device() does, and when cuBLASLt cannot
// be opened.
std::unique_ptr<DeviceLinearBench> make_device_linear_bench(int device, std::vector<BenchedLinears> groups,
                                                            ThreadPool& pool);

}  // namespace nibble
