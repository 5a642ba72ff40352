// The public facade of include/nibble/nibble.h over engine, generate, perplexity and the quantization
// pipeline.
#include "base/error.h"
#include "base/thread_pool.h"
#include "nibble/nibble.h"
#include "pipeline/quantize_model.h"
#include "runtime/engine.h"
#include "runtime/generate.h"
#include "runtime/perplexity.h"
#include "runtime/token_ids.h"

namespace nibble {

std::string_view version() noexcept { return NIBBLE_VERSION; }

std::string_view stop_reason_name(StopReason reason) noexcept {
  switch (reason) {
    case StopReason::kEndOfText:
      return "end_of_text";
    case StopReason::kStopString:
      return "stop_string";
    case StopReason::kTokenLimit:
      return "token_limit";
    case StopReason::kContextFull:
      return "context_full";
    case StopReason::kInterrupted:
      return "interrupted";
  }
  return "unknown";
}

struct LanguageModel::State {
  std::unique_ptr<Engine> engine;
};

LanguageModel::LanguageModel(std::unique_ptr<State> state) : state_(std::move(state)) {}
LanguageModel::LanguageModel(LanguageModel&&) noexcept = default;
LanguageModel& LanguageModel::operator=(LanguageModel&&) noexcept = default;
LanguageModel::~LanguageModel() = default;

LanguageModel LanguageModel::load(const std::filesystem::path& path, const LoadOptions& options) {
  auto state = std::make_unique<State>();
  state->engine = Engine::open(path, std::make_shared<ThreadPool>(options.threads), options.context_length,
                               {.gpu = parse_device(options.device), .strict = options.strict});
  return LanguageModel(std::move(state));
}

std::vector<int32_t> LanguageModel::tokenize(std::string_view text, bool add_special) const {
  return state_->engine->tokenizer().encode(text, {.add_special = add_special});
}

std::string LanguageModel::detokenize(std::span<const int32_t> ids) const {
  return state_->engine->tokenizer().decode(ids);
}

Generation LanguageModel::generate(std::string_view prompt, const GenerateOptions& options,
                                   const TextCallback& on_text) {
  return nibble::generate(*state_->engine, tokenize(prompt, options.add_special), options, on_text);
}

Generation LanguageModel::generate(std::span<const int32_t> prompt_ids, const GenerateOptions& options,
                                   const TextCallback& on_text) {
  return nibble::generate(*state_->engine, prompt_ids, options, on_text);
}

PerplexityResult LanguageModel::perplexity(std::string_view text, const PerplexityOptions& options,
                                           const LanguageModel* reference) {
  return measure_perplexity(*state_->engine, text_windows(*state_->engine, text, options, "the text"),
                            reference == nullptr ? nullptr : reference->state_->engine.get(),
                            {cache_type_from_name(options.key_cache, "the type of cached keys"),
                             cache_type_from_name(options.value_cache, "the type of cached values")});
}

PerplexityResult LanguageModel::perplexity(std::span<const int32_t> ids, int64_t length,
                                           const LanguageModel* reference) {
  const ScoringWindows windows = cut_windows(ids, length, 0, -1, "the token ids");
  check_token_ids(windows.ids, vocabulary_size(), "the token ids");
  return measure_perplexity(*state_->engine, windows,
                            reference == nullptr ? nullptr : reference->state_->engine.get());
}

int64_t LanguageModel::context_length() const { return state_->engine->context_length(); }
std::string LanguageModel::device_name() const {
  return state_->engine->device() == nullptr ? "" : state_->engine->device()->device_name();
}
int64_t LanguageModel::vocabulary_size() const { return state_->engine->vocabulary(); }
int LanguageModel::threads() const { return state_->engine->pool()->size(); }

QuantizeSummary quantize(const QuantizeRequest& request) {
  QuantizeOptions options;
  options.model = request.model;
  options.output = request.output;
  options.recipe = Recipe::find(request.recipe);
  for (const std::string& setting : request.settings) options.recipe.apply_set(setting);
  options.calibration = {.text_file = request.calibration_text,
                         .ids_file = request.calibration_ids,
                         .random_tokens = request.calibration_random,
                         .sequences = request.calibration_sequences,
                         .length = request.calibration_length,
                         .seed = request.seed};
  options.embedding_bits = request.embedding_bits;
  options.resume = request.resume;
  options.force = request.force;
  options.verify = request.verify;
  ThreadPool pool(request.threads);
  const QuantizeResult result = quantize_model(options, pool);
  return {.linears = static_cast<int64_t>(result.linears.size()),
          .bits_per_weight = result.bits_per_weight,
          .source_bytes = result.source_bytes,
          .output_bytes = result.output_bytes,
          .seconds = result.seconds};
}

}  // namespace nibble
