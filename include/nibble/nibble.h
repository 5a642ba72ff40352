// The public face of nibble: load a model, continue a prompt, measure perplexity, quantize. Everything here
// is plain C++; nothing of the libraries that nibble is made of shows through. The command line is built on
// these calls.
//
// Every function throws nibble::Error (a std::runtime_error whose text names the file, the value and what was
// expected) for a request that cannot be met; nibble::UsageError, derived from it, for options that make no
// sense.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct LoadOptions {
  int threads = 0;             // 0: the cores of the process's affinity and cgroup
  int64_t context_length = 0;  // positions; 0: the model's own
  std::string device = "cpu";  // "cpu", "cuda" or "cuda:N"
  bool strict = false;         // on a GPU: refuse models of which something runs on a slower path there
};

// How the next token is drawn. What is not set comes from the model's generation_config.json; see sampler.h
// for the rules.
struct SamplingOptions {
  std::optional<double> temperature;     // 0: always the most likely token
  std::optional<int64_t> top_k;          // 0: off
  std::optional<double> top_p;           // 1: off
  std::optional<double> min_p;           // 0: off
  std::optional<double> repeat_penalty;  // 1: off
  int64_t repeat_last = 64;              // tokens that the penalty looks back on; -1: all of them
  std::optional<uint64_t> seed;          // not set: a different one each time
};

enum class StopReason { kEndOfText, kStopString, kTokenLimit, kContextFull, kInterrupted };
// "end_of_text", "stop_string", "token_limit", "context_full", "interrupted"
std::string_view stop_reason_name(StopReason reason) noexcept;

struct GenerateOptions {
  int64_t max_tokens = 128;  // -1: until the text ends or the context is full
  SamplingOptions sampling;
  bool ignore_end_of_text = false;
  bool add_special = true;        // start with the tokens that the tokenizer adds to a text (BOS)
  std::vector<std::string> stop;  // texts that end the generation and are not part of it
  // How keys and values are kept: "f32", "f16", "q8" (8.5 bits a value) or "q4" (5 bits).
  std::string key_cache = "f16", value_cache = "f16";
};

struct Generation {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t>
      output_ids;    // the prompt's first; the end-of-text token is included when one was drawn
  std::string text;  // of the continuation only
  StopReason stop_reason = StopReason::kTokenLimit;
  uint64_t seed = 0;  // that was used
  double prompt_seconds = 0, decode_seconds = 0;
  int64_t generated_tokens() const {
    return static_cast<int64_t>(output_ids.size()) - static_cast<int64_t>(prompt_ids.size());
  }
};

// Receives text as it becomes final, always whole UTF-8 characters; returns false to stop.
using TextCallback = std::function<bool(std::string_view text)>;

struct PerplexityOptions {
  int64_t window = 512;     // tokens per window
  int64_t max_windows = 0;  // 0: all that the text fills
  bool add_special = true;  // the model's BOS starts each window and is not counted
  // How the model keeps keys and values, as in GenerateOptions; a reference always keeps F32.
  std::string key_cache = "f32", value_cache = "f32";
};

// `*_stderr` are standard errors clustered by window; NaN for a single window.
struct PerplexityResult {
  double perplexity = 0, perplexity_stderr = 0;
  int64_t tokens = 0;  // scored
  int64_t windows = 0;
  bool has_reference = false;
  // ln(perplexity / the reference's). Its error is of the difference token by token, much smaller than what
  // either perplexity has by itself: the same text is hard or easy for both.
  double log_perplexity_ratio = 0, log_perplexity_ratio_stderr = 0;
  double kl_divergence = 0, kl_stderr = 0;  // KL(reference || model), nats per scored token
  double top1_agreement = 0,
         top1_stderr = 0;  // share of scored tokens with the same most likely token, 0 .. 1
};

// A loaded model with its tokenizer and threads. One call at a time.
class LanguageModel {
 public:
  // A Hugging Face folder, a GGUF file or a nibble folder.
  static LanguageModel load(const std::filesystem::path& path, const LoadOptions& options = {});
  LanguageModel(LanguageModel&&) noexcept;
  LanguageModel& operator=(LanguageModel&&) noexcept;
  ~LanguageModel();

  std::vector<int32_t> tokenize(std::string_view text, bool add_special = true) const;
  std::string detokenize(std::span<const int32_t> ids) const;

  Generation generate(std::string_view prompt, const GenerateOptions& options = {},
                      const TextCallback& on_text = {});
  Generation generate(std::span<const int32_t> prompt_ids, const GenerateOptions& options = {},
                      const TextCallback& on_text = {});

  // Of a text; with a reference model (sharing this one's vocabulary) also how far this one is from it.
  PerplexityResult perplexity(std::string_view text, const PerplexityOptions& options = {},
                              const LanguageModel* reference = nullptr);
  // Of token ids [sequences, length], each sequence scored alone.
  PerplexityResult perplexity(std::span<const int32_t> ids, int64_t length,
                              const LanguageModel* reference = nullptr);

  int64_t context_length() const;
  std::string device_name() const;  // of the GPU; empty on the CPU
  int64_t vocabulary_size() const;
  int threads() const;

 private:
  struct State;
  explicit LanguageModel(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct QuantizeRequest {
  std::filesystem::path model;
  std::filesystem::path output;       // the nibble folder to write
  std::string recipe = "quik-4b";     // a built-in name or a recipe file
  std::vector<std::string> settings;  // "field=value" or "role.field=value", applied in order
  // Calibration: exactly one source where the recipe needs one.
  std::filesystem::path calibration_text;
  std::filesystem::path calibration_ids;  // safetensors with "input_ids" [sequences, length]
  bool calibration_random = false;
  std::optional<int64_t> calibration_sequences, calibration_length;
  uint64_t seed = 0;
  int embedding_bits = 8;  // 16, 8 or 4: embedding table and head
  bool resume = false, force = false, verify = false;
  int threads = 0;
};

struct QuantizeSummary {
  int64_t linears = 0;
  double bits_per_weight = 0;  // of the quantized linears, metadata included
  uint64_t source_bytes = 0, output_bytes = 0;
  double seconds = 0;
};

QuantizeSummary quantize(const QuantizeRequest& request);

std::string_view version() noexcept;

}  // namespace nibble
