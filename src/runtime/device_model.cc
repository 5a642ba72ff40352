#include "runtime/device_model.h"

#include <string_view>

#include "base/error.h"

namespace nibble {

int parse_device(const std::string& name) {
  if (name == "cpu" || name == "auto") return -1;
  if (name == "cuda") return 0;
  const std::string_view text = name;
  const std::string_view number = text.rfind("cuda:", 0) == 0 ? text.substr(5) : std::string_view();
  if (number.empty() || number.size() > 3 || number.find_first_not_of("0123456789") != std::string_view::npos)
    fail_usage("--device {}: expected cpu, cuda, cuda:N or auto", name);
  return std::stoi(std::string(number));
}

CacheType device_cache_type(CacheTypes wanted) {
  const auto kept = [](CacheType type) {
    if (type == CacheType::kQ4) fail_usage("on a GPU keys and values are kept as f16 or q8, not as q4");
    return type == CacheType::kQ8 ? CacheType::kQ8 : CacheType::kF16;
  };
  const CacheType keys = kept(wanted.keys), values = kept(wanted.values);
  if (keys != values) {
    fail_usage("on a GPU keys and values are kept alike, not as {} and {}", cache_type_name(wanted.keys),
               cache_type_name(wanted.values));
  }
  return keys;
}

#ifndef NIBBLE_WITH_CUDA
namespace {
[[noreturn]] void fail_without_cuda(int device) {
  fail("--device cuda:{}: this program was built without CUDA; use --device cpu", device);
}
}  // namespace

void require_device(int device) { fail_without_cuda(device); }
std::vector<DeviceLinearFacts> describe_device_linears(const Model&, int device) {
  fail_without_cuda(device);
}
std::unique_ptr<DeviceModel> load_device_model(const Model&, int device, int64_t, ThreadPool&) {
  fail_without_cuda(device);
}
std::unique_ptr<DeviceModel> make_synthetic_device_model(const ModelSpec&,
                                                         std::span<const PackedLinear* const>, int device,
                                                         int64_t, ThreadPool&) {
  fail_without_cuda(device);
}
#endif

}  // namespace nibble
