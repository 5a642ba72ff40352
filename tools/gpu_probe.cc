#include "gpu_probe.h"

#include <dlfcn.h>

#include "base/format.h"

namespace nibble {
namespace {

// The few entry points of the CUDA driver API that are needed, with the types of cuda.h.
using CuInit = int (*)(unsigned int flags);
using CuDriverGetVersion = int (*)(int* version);
using CuDeviceGetCount = int (*)(int* count);
using CuDeviceGet = int (*)(int* device, int ordinal);
using CuDeviceGetName = int (*)(char* name, int length, int device);
using CuDeviceTotalMem = int (*)(size_t* bytes, int device);
using CuDeviceGetAttribute = int (*)(int* value, int attribute, int device);
constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;
constexpr int kNoDevice = 100;  // CUDA_ERROR_NO_DEVICE

template <typename Function>
Function entry(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

}  // namespace

GpuReport probe_gpus() {
  GpuReport report;
  // Left open: the driver's threads and exit handlers do not survive being unloaded.
  void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) {
    report.problem = "no NVIDIA driver (libcuda.so.1)";
    return report;
  }
  const auto init = entry<CuInit>(library, "cuInit");
  const auto version = entry<CuDriverGetVersion>(library, "cuDriverGetVersion");
  const auto count = entry<CuDeviceGetCount>(library, "cuDeviceGetCount");
  const auto get = entry<CuDeviceGet>(library, "cuDeviceGet");
  const auto get_name = entry<CuDeviceGetName>(library, "cuDeviceGetName");
  const auto total_memory = entry<CuDeviceTotalMem>(library, "cuDeviceTotalMem_v2");
  const auto attribute = entry<CuDeviceGetAttribute>(library, "cuDeviceGetAttribute");
  if (init == nullptr || version == nullptr || count == nullptr || get == nullptr || get_name == nullptr ||
      total_memory == nullptr || attribute == nullptr) {
    report.problem = "libcuda.so.1 lacks functions of the driver API";
    return report;
  }
  version(&report.driver_version);
  if (const int code = init(0); code != 0) {
    report.problem =
        code == kNoDevice ? "the driver finds no GPU" : format_text("cuInit fails with code {}", code);
    return report;
  }
  int devices = 0;
  if (const int code = count(&devices); code != 0 || devices == 0) {
    report.problem =
        code == 0 ? "the driver finds no GPU" : format_text("cuDeviceGetCount fails with code {}", code);
    return report;
  }
  for (int ordinal = 0; ordinal < devices; ++ordinal) {
    int device = 0;
    char name[256] = {};
    size_t bytes = 0;
    GpuDevice found;
    if (get(&device, ordinal) != 0) continue;
    if (get_name(name, sizeof name - 1, device) == 0) found.name = name;
    if (total_memory(&bytes, device) == 0) found.memory_bytes = bytes;
    attribute(&found.compute_major, kComputeCapabilityMajor, device);
    attribute(&found.compute_minor, kComputeCapabilityMinor, device);
    report.devices.push_back(std::move(found));
  }
  return report;
}

}  // namespace nibble
