// How well a model predicts a text, and how far it is from a reference model.
//
// Protocol: the text's tokens are cut into non-overlapping windows of N tokens; each window is scored alone,
// from its second token. Perplexity is exp of the mean negative log-likelihood over all scored tokens. With a
// BOS, every window is preceded by it: it takes part in the forward pass, but neither it nor anything else
// changes in what is counted: the same N - 1 tokens of each window are scored. KL is KL(reference || model)
// over the whole vocabulary, in nats per scored token. Softmax and all sums are in double precision.
//
// Standard errors are clustered by window, since the tokens of one window are not independent: with window
// sums s_w over n_w tokens and the mean m = sum s_w / sum n_w, var(m) = W / (W - 1) * sum (s_w - n_w m)^2 /
// (sum n_w)^2 (the linearised ratio estimator; Cochran, Sampling Techniques, section 6.4), and by the delta
// method se(ppl) = ppl * se(m). They are NaN for a single window.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nibble/nibble.h"
#include "runtime/engine.h"

namespace nibble {

struct ScoringWindows {
  std::vector<int32_t> ids;  // [windows, length]
  int64_t windows = 0;
  int64_t length = 0;
  int32_t bos = -1;  // put before each window; -1: none
};

// The first `max_windows` windows (0: all) of `length` tokens of a text's tokens. Throws UsageError for a
// length below 2, Error naming `source` and the counts when the text does not fill one window. Warns when
// there are fewer than asked for.
ScoringWindows cut_windows(std::span<const int32_t> ids, int64_t length, int64_t max_windows, int32_t bos,
                           const std::string& source);

// The windows of a text file's content, tokenized without special tokens. When options.add_special is set,
// the model's BOS (if it has one) goes before each window.
ScoringWindows text_windows(const Engine& engine, std::string_view text, const PerplexityOptions& options,
                            const std::string& source);

// The windows of a safetensors file's "input_ids" [tokens] or [windows, tokens]; with two axes, `window` must
// be the second where it is given. `window` 0: 512 tokens, or what the file's axis says.
ScoringWindows ids_file_windows(const Engine& engine, const std::filesystem::path& path, int64_t window,
                                int64_t max_windows, bool add_special);

// `cache` is how `engine` keeps keys and values; the reference keeps F32. Throws Error when the windows are
// longer than a model's context, the vocabularies differ, or a model computes NaN; Interrupted on Ctrl-C.
PerplexityResult measure_perplexity(const Engine& engine, const ScoringWindows& windows,
                                    const Engine* reference, CacheTypes cache = CacheType::kF32);

// A model's last hidden states at every scored token of some windows, with its final norm and head: its
// logits can be had again for the price of the head. One run of a reference so serves any number of models,
// with the same bits as if it had run beside each.
class RecordedReference {
 public:
  ~RecordedReference();
  RecordedReference(const RecordedReference&) = delete;
  RecordedReference& operator=(const RecordedReference&) = delete;

  const PerplexityResult& result() const;  // of the reference itself
  // Memory that recording takes: tokens x hidden size floats.
  static double bytes(const ModelSpec& spec, const ScoringWindows& windows);

 private:
  friend std::unique_ptr<RecordedReference> record_reference(const Engine&, const ScoringWindows&);
  friend PerplexityResult measure_perplexity(const Engine&, const ScoringWindows&, RecordedReference&);
  struct State;
  explicit RecordedReference(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Runs `engine` over the windows. Its weights other than embedding, final norm and head are not needed
// afterwards. Throws Error when the states do not fit into memory, and as measure_perplexity().
std::unique_ptr<RecordedReference> record_reference(const Engine& engine, const ScoringWindows& windows);
// measure_perplexity() with a reference recorded on the same windows.
PerplexityResult measure_perplexity(const Engine& engine, const ScoringWindows& windows,
                                    RecordedReference& reference);

// Mean of sum / count over clusters and its standard error, as above.
struct ClusteredMean {
  double mean = 0, standard_error = 0;
};
ClusteredMean clustered_mean(std::span<const double> sums, std::span<const int64_t> counts);

// What one position's logits say about the token that follows.
struct TokenScore {
  double negative_log_likelihood = 0;
  double reference_negative_log_likelihood = 0;
  double kl = 0;          // KL(reference || model)
  bool same_top = false;  // the lowest id among the largest logits is the same
};
// `reference` may be null; logits [vocabulary].
TokenScore score_token(const float* logits, const float* reference, int64_t vocabulary, int32_t target);

}  // namespace nibble
