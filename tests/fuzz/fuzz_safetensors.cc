#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "fuzz/fuzz_target.h"
#include "io/checkpoint_builder.h"
#include "io/safetensors.h"
#include "unit/io_samples.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  try {
    const SafetensorsFile file =
        parse_safetensors({reinterpret_cast<const std::byte*>(data), size}, nullptr, "fuzz.safetensors");
    for (const auto& [name, tensor] : file.tensors) {
      unsigned sum = 0;
      for (size_t i = 0; i < tensor.bytes(); ++i) sum += std::to_integer<unsigned>(tensor.raw()[i]);
      static_cast<void>(sum);
      const CheckpointTensor readable = plain_tensor(name, tensor, file.path);
      try {
        readable.read_f32();
      } catch (const Error&) {  // integers are no floats
      }
    }
  } catch (const Error&) {  // refused, as it should be
  }
  return 0;
}

namespace nibble::fuzz {

std::vector<std::string> fuzz_seeds() {
  using samples::safetensors;
  return {
      samples::good_safetensors(),
      safetensors("{}"),
      safetensors(R"({"a":{"dtype":"F64","shape":[2],"data_offsets":[1,17]},)"
                  R"("b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                  std::string(17, '\7')),
      safetensors(R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]},)"
                  R"("b":{"dtype":"I64","shape":[1,1,1],"data_offsets":[4,12]}})",
                  std::string(12, '\7')),
      safetensors(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})"),
      safetensors(R"({"a":{"dtype":"BOOL","shape":[0,9223372036854775807],"data_offsets":[0,0]}})"),
      safetensors("{\"a\":" + std::string(100, '[')),
  };
}

}  // namespace nibble::fuzz
