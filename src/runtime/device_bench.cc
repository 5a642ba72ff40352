#include "runtime/device_bench.h"

#include "runtime/device_model.h"

namespace nibble {

#ifndef NIBBLE_WITH_CUDA
std::unique_ptr<DeviceLinearBench> make_device_linear_bench(int device, std::vector<BenchedLinears>,
                                                            ThreadPool&) {
  require_device(device);  // says that there is no CUDA here
  return nullptr;
}
#endif

}  // namespace nibble
