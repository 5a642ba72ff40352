// Which NVIDIA GPUs this machine has, asked of the driver without linking to it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

struct GpuDevice {
  std::string name;
  int compute_major = 0, compute_minor = 0;
  uint64_t memory_bytes = 0;
};

struct GpuReport {
  std::string problem;  // why there are no devices, empty when there are: "no NVIDIA driver (libcuda.so.1)"
  int driver_version = 0;  // of CUDA that the driver supports: 12040 is 12.4
  std::vector<GpuDevice> devices;
};

GpuReport probe_gpus();

}  // namespace nibble
