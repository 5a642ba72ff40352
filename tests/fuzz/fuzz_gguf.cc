#include <string>
#include <vector>

#include "base/error.h"
#include "fuzz/fuzz_target.h"
#include "io/gguf.h"
#include "unit/io_samples.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  try {
    const GgufFile file = parse_gguf({reinterpret_cast<const std::byte*>(data), size}, nullptr, "fuzz.gguf");
    file.metadata.dump(-1, ' ', true, Json::error_handler_t::replace);
    const Checkpoint model = gguf_checkpoint(file);
    model.config().dump(-1, ' ', true, Json::error_handler_t::replace);
    for (const auto& [name, tensor] : model.tensors()) {
      try {
        tensor.read_f32();
      } catch (const Error&) {  // integers are no floats
      }
    }
  } catch (const Error&) {  // refused, as it should be
  }
  return 0;
}

namespace nibble::fuzz {

std::vector<std::string> fuzz_seeds() {
  using samples::Gguf;
  using samples::raw;
  Gguf types;
  types.text("general.architecture", "qwen2").u32("general.alignment", 8);
  types.alignment = 8;
  for (const uint32_t type : {0u, 1u, 2u, 3u, 8u, 12u, 14u, 24u, 26u, 28u, 30u}) {
    const GgufType& row = *find_gguf_type(type);
    types.add({"blk.0.t" + std::to_string(type),
               {row.weights_per_block, 2},
               type,
               std::string(2 * row.bytes_per_block, '\x11')});
  }
  Gguf arrays;
  for (uint32_t type = 0; type <= Gguf::kF64; ++type) {
    const uint64_t width = type == Gguf::kString || type == Gguf::kArray ? 16 : 8;
    arrays.key("k" + std::to_string(type), Gguf::kArray,
               raw(type) + raw(uint64_t{1}) + std::string(width, '\0'));
  }
  Gguf version2 = samples::llama_gguf_with_tensors();
  version2.version = 2;
  Gguf window = samples::llama_gguf();
  window.u32("llama.attention.sliding_window", 8).f32("llama.rope.scaling.factor", 4.0f);
  window.u32("tokenizer.ggml.eot_token_id", 3).u32("split.count", 1);
  return {samples::llama_gguf_with_tensors().bytes(),
          version2.bytes(),
          types.bytes(),
          arrays.bytes(),
          window.bytes(),
          Gguf().bytes()};
}

}  // namespace nibble::fuzz
