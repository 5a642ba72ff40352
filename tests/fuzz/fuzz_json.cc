// JSON text as a document, as a config that typed access reads, and as the index of a sharded model.
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "fuzz/fuzz_target.h"
#include "io/checkpoint_builder.h"
#include "io/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto attempt = [](auto&& body) {
    try {
      body();
    } catch (const Error&) {  // refused, as it should be
    }
  };
  attempt([&] { parse_json(text, "fuzz.json", {.allow_comments = true}); });
  attempt([&] {
    const Json json = parse_json(text, "fuzz.json");
    // A parsed document survives writing and reading again.
    if (parse_json(json.dump(), "again.json") != json) __builtin_trap();
    for (const char* key : {"weight_map", "hidden_size", "rope_theta", "tie_word_embeddings", "model_type"}) {
      attempt([&] { json_int(json, key, 0, "fuzz.json"); });
      attempt([&] { json_number(json, key, 0.0, "fuzz.json"); });
      attempt([&] { json_bool(json, key, false, "fuzz.json"); });
      attempt([&] { json_string(json, key, "", "fuzz.json"); });
    }
    for (const auto& [tensor, shard] : parse_shard_index(json, "fuzz.json")) {
      if (shard.empty() || shard.find('/') != std::string::npos || shard == "..") __builtin_trap();
    }
  });
  return 0;
}

namespace nibble::fuzz {

std::vector<std::string> fuzz_seeds() {
  return {
      R"({"metadata":{"total_size":1},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})",
      R"({"weight_map":{"a":"../x.safetensors"}})",
      R"({"model_type":"llama","hidden_size":64,"rope_theta":1e4,"tie_word_embeddings":false,"eos_token_id":[1,2]})",
      R"({"hidden_size":-1,"rope_theta":18446744073709551615,"model_type":"\u00e9\ud83d\ude42\n","x":null})",
      "[[[[{\"a\":[{}]}]]]]",
      "// note\n{\"a\": /* b */ [1, 2.5e-3, true, null]}",
      std::string(70, '[') + std::string(70, ']'),
      "\"\\ud800\"",
      "1e999",
  };
}

}  // namespace nibble::fuzz
