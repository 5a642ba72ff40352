// nibble logits: the logits after every token of a sequence, as a safetensors file.
#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "io/atomic_output.h"
#include "io/safetensors.h"
#include "json_output.h"
#include "runtime/engine.h"
#include "runtime/token_ids.h"

namespace nibble {
namespace {

struct LogitsCommand {
  std::filesystem::path model, output, ids_file;
  std::string prompt;
  bool no_special = false;
  std::string key_cache = "f32", value_cache = "f32";
};

int write_logits(const LogitsCommand& options, const CommonOptions& common) {
  // Claimed first: a place that cannot be written should be refused before the work, not after.
  AtomicOutput output(options.output, false, true);
  const auto engine =
      Engine::open(options.model, std::make_shared<ThreadPool>(common.threads), 0, common.engine_device());
  const CacheTypes cache = engine->cache_types({cache_type_from_name(options.key_cache, "--cache-type-k"),
                                                cache_type_from_name(options.value_cache, "--cache-type-v")});
  std::vector<int32_t> ids;
  if (!options.ids_file.empty()) {
    TokenIds file = read_token_ids_file(options.ids_file, engine->vocabulary());
    if (file.sequences != 1) {
      fail("{}: 'input_ids' has {} sequences, expected one", options.ids_file.string(), file.sequences);
    }
    ids = std::move(file.ids);
  } else {
    ids = engine->tokenizer().encode(options.prompt, {.add_special = !options.no_special});
    if (ids.empty()) fail("the text of -p has no tokens");
    check_token_ids(ids, engine->vocabulary(), "the text of -p");
  }
  const int64_t count = static_cast<int64_t>(ids.size());
  if (count > engine->context_length()) {
    fail("{}: {} tokens are more than the model's context of {}", options.model.string(), count,
         engine->context_length());
  }
  Tensor id_tensor = Tensor::empty(DType::kI64, {count});
  for (int64_t i = 0; i < count; ++i) id_tensor.mutable_data<int64_t>()[i] = ids[static_cast<size_t>(i)];
  Tensor logits = Tensor::empty(DType::kF32, {count, engine->vocabulary()});
  Session(*engine, count, cache).append(ids, logits.mutable_data<float>());

  SafetensorsWriter writer(output.temporary_path(), {{"input_ids", DType::kI64, id_tensor.shape()},
                                                     {"logits", DType::kF32, logits.shape()}});
  writer.write(id_tensor);
  writer.write(logits);
  writer.close();
  output.commit();
  if (common.json) {
    write_json(
        {{"output", options.output.string()}, {"tokens", count}, {"vocabulary", engine->vocabulary()}});
  } else {
    log_info("{}: logits [{}, {}]", options.output.string(), count, engine->vocabulary());
  }
  return kExitDone;
}

}  // namespace

Action add_logits(CLI::App& command) {
  const auto common = add_common_options(command);
  const auto options = std::make_shared<LogitsCommand>();
  add_model_argument(command, &options->model);
  command
      .add_option("-o,--output", options->output,
                  "The safetensors file to write: 'input_ids' [n] and 'logits' [n, vocabulary]")
      ->required()
      ->type_name("FILE");
  auto* input = command.add_option_group("tokens", "What to run (one of these)");
  input->add_option("--ids-file", options->ids_file, "A safetensors file with 'input_ids' [n]")
      ->type_name("FILE");
  input->add_option("-p,--prompt", options->prompt, "A text")->type_name("TEXT");
  input->require_option(1);
  command.add_flag("--no-special", options->no_special,
                   "Do not start with the tokens that the tokenizer adds (BOS)");
  add_cache_options(command, &options->key_cache, &options->value_cache);
  set_examples(command, {"nibble logits MODEL -p 'Hello world' -o logits.safetensors",
                         "nibble logits MODEL --ids-file ids.safetensors -o logits.safetensors"});
  return [options, common] {
    common->apply(true);
    return write_logits(*options, *common);
  };
}

}  // namespace nibble
