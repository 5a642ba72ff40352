#include "runtime/perplexity.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/system_info.h"
#include "runtime/token_ids.h"

namespace nibble {
namespace {

// Positions whose logits are held at a time: 128 rows of a vocabulary of 150,000 are 77 MB per model.
constexpr int64_t kRowsAtOnce = 128;

int64_t top_token(const float* logits, int64_t vocabulary) {
  int64_t best = 0;
  for (int64_t i = 1; i < vocabulary; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

// Some windows that run together, and what is scored of them.
struct WindowBatch {
  std::vector<int32_t> ids;      // [windows, rows per window]
  std::vector<int64_t> rows;     // of the scored tokens' logits, among the ids
  std::vector<int32_t> targets;  // the scored tokens
  int64_t first_scored = 0;      // how many scored tokens precede this batch
};

// Where the logits of scored tokens come from.
class LogitsSource {
 public:
  virtual ~LogitsSource() = default;
  virtual void run(const WindowBatch& batch) = 0;
  // [count, vocabulary] of the batch's rows [at, at + count); valid until the next call.
  virtual const float* logits(const WindowBatch& batch, size_t at, size_t count) = 0;
};

// Runs whole windows through one model.
class WindowRunner : public LogitsSource {
 public:
  WindowRunner(const Engine& engine, int64_t length, int64_t windows_at_once, CacheTypes cache)
      : engine_(engine), length_(length) {
    if (engine.device() != nullptr) {
      sequence_ = engine.device()->make_sequence(length, engine.cache_types(cache).keys);
      return;
    }
    for (int64_t i = 0; i < windows_at_once; ++i) caches_.push_back(engine.model().make_cache(length, cache));
  }
  // From now on the hidden states of scored tokens go there, one after another.
  void keep_states(float* states) { kept_ = states; }

  void run(const WindowBatch& batch) override {
    const Model& model = engine_.model();
    const int64_t hidden_size = model.spec().hidden_size;
    tokens_ = static_cast<int64_t>(batch.ids.size());
    hidden_.resize(static_cast<size_t>(tokens_ * hidden_size));
    if (sequence_) {
      for (int64_t row = 0; row < tokens_; row += length_) {
        sequence_->truncate(0);
        sequence_->append(
            std::span(batch.ids).subspan(static_cast<size_t>(row), static_cast<size_t>(length_)),
            hidden_.data() + row * hidden_size, nullptr);
      }
      return keep(batch);
    }
    model.embed(batch.ids, hidden_.data());
    std::vector<SequenceSpan> spans;
    for (int64_t row = 0; row < tokens_; row += length_) {
      SequenceCache* cache = caches_[spans.size()].get();
      cache->set_length(0);
      spans.push_back({.cache = cache, .first_row = row, .count = length_, .first_position = 0});
    }
    model.run_blocks(
        hidden_.data(),
        {.sequences = spans, .tokens = tokens_, .scratch = &scratch_, .pool = engine_.pool().get()});
    keep(batch);
  }

  const float* logits(const WindowBatch& batch, size_t at, size_t count) override {
    logits_.resize(count * static_cast<size_t>(engine_.vocabulary()));
    if (sequence_) {
      const int64_t hidden_size = engine_.model().spec().hidden_size;
      std::vector<float> states(count * static_cast<size_t>(hidden_size));
      for (size_t i = 0; i < count; ++i) {
        std::copy_n(hidden_.data() + batch.rows[at + i] * hidden_size, hidden_size,
                    states.data() + static_cast<int64_t>(i) * hidden_size);
      }
      engine_.device()->logits(states.data(), static_cast<int64_t>(count), logits_.data());
      return logits_.data();
    }
    engine_.model().logits(hidden_.data(), std::span(batch.rows).subspan(at, count), tokens_, logits_.data(),
                           scratch_, *engine_.pool());
    return logits_.data();
  }

 private:
  void keep(const WindowBatch& batch) {
    if (kept_ == nullptr) return;
    const int64_t hidden_size = engine_.model().spec().hidden_size;
    for (const int64_t row : batch.rows)
      kept_ = std::copy_n(hidden_.data() + row * hidden_size, hidden_size, kept_);
  }

  const Engine& engine_;
  int64_t length_;
  int64_t tokens_ = 0;
  float* kept_ = nullptr;
  std::vector<std::unique_ptr<SequenceCache>> caches_;
  std::unique_ptr<DeviceSequence> sequence_;  // instead, on a GPU: windows run one after another
  Scratch scratch_;
  std::vector<float> hidden_, logits_;
};

struct Totals {
  std::vector<double> nll, extra_nll, kl, same_top;  // sums per window; extra: beside the reference's
  std::vector<int64_t> counts;
};

// Windows are cut into batches in one way only, so that a recorded reference gives the bits of one that runs.
struct Layout {
  explicit Layout(const ScoringWindows& windows)
      : prefix(windows.bos >= 0 ? 1 : 0),
        rows_per_window(prefix + windows.length),
        scored_per_window(windows.length - 1),
        at_once(std::clamp<int64_t>(kPromptBatch / rows_per_window, 1, windows.windows)) {}
  int64_t prefix, rows_per_window, scored_per_window, at_once;
};

void check_context(const Engine& engine, const ScoringWindows& windows) {
  NIBBLE_CHECK(windows.windows >= 1 && windows.length >= 2);
  if (windows.length > engine.context_length()) {
    fail("{}: windows of {} tokens are longer than the model's context of {}", engine.path().string(),
         windows.length, engine.context_length());
  }
}

void check_vocabulary(const std::string& reference, int64_t reference_vocabulary, const Engine& engine) {
  if (reference_vocabulary != engine.vocabulary()) {
    fail("{}: its vocabulary has {} tokens, but that of {} has {}: they cannot be compared", reference,
         reference_vocabulary, engine.path().string(), engine.vocabulary());
  }
}

}  // namespace

ScoringWindows cut_windows(std::span<const int32_t> ids, int64_t length, int64_t max_windows, int32_t bos,
                           const std::string& source) {
  if (length < 2) fail_usage("a window of {} tokens has nothing to score, expected at least 2", length);
  if (max_windows < 0)
    fail_usage("the number of windows is {}, expected at least 1, or 0 for all", max_windows);
  const int64_t available = static_cast<int64_t>(ids.size()) / length;
  if (available == 0) fail("{}: has {} tokens, less than one window of {}", source, ids.size(), length);
  if (max_windows > available) {
    log_warning("{}: {} windows of {} tokens were asked for, but its {} tokens fill only {}", source,
                max_windows, length, ids.size(), available);
  }
  ScoringWindows result;
  result.windows = max_windows > 0 ? std::min(max_windows, available) : available;
  result.length = length;
  result.bos = bos;
  result.ids.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(result.windows * length));
  return result;
}

ScoringWindows text_windows(const Engine& engine, std::string_view text, const PerplexityOptions& options,
                            const std::string& source) {
  const std::vector<int32_t> ids = engine.tokenizer().encode(text, {.add_special = false});
  check_token_ids(ids, engine.vocabulary(), source);
  const int32_t bos = options.add_special ? engine.bos_id() : -1;
  return cut_windows(ids, options.window, options.max_windows, bos, source);
}

ScoringWindows ids_file_windows(const Engine& engine, const std::filesystem::path& path, int64_t window,
                                int64_t max_windows, bool add_special) {
  const TokenIds file = read_token_ids_file(path, engine.vocabulary());
  if (file.is_matrix && window > 0 && window != file.length) {
    fail_usage("--ctx-size {}: the sequences of {} are windows of {} tokens", window, path.string(),
               file.length);
  }
  if (window == 0) window = file.is_matrix ? file.length : PerplexityOptions().window;
  return cut_windows(file.ids, window, max_windows, add_special ? engine.bos_id() : -1, path.string());
}

ClusteredMean clustered_mean(std::span<const double> sums, std::span<const int64_t> counts) {
  NIBBLE_CHECK(sums.size() == counts.size() && !sums.empty());
  double sum = 0, count = 0;
  for (size_t w = 0; w < sums.size(); ++w) {
    sum += sums[w];
    count += static_cast<double>(counts[w]);
  }
  const double mean = sum / count;
  if (sums.size() == 1) return {mean, std::nan("")};
  double squares = 0;
  for (size_t w = 0; w < sums.size(); ++w) {
    const double residual = sums[w] - static_cast<double>(counts[w]) * mean;
    squares += residual * residual;
  }
  const double clusters = static_cast<double>(sums.size());
  return {mean, std::sqrt(clusters / (clusters - 1) * squares) / count};
}

TokenScore score_token(const float* logits, const float* reference, int64_t vocabulary, int32_t target) {
  const int64_t top = top_token(logits, vocabulary);
  const double largest = logits[top];
  double total = 0;
  for (int64_t i = 0; i < vocabulary; ++i) total += std::exp(logits[i] - largest);
  const double log_total = largest + std::log(total);
  TokenScore score;
  score.negative_log_likelihood = log_total - logits[target];
  if (reference == nullptr) return score;

  // sum p (log p - log q) = sum e^(r - max) (r - q) / Z - log-total of r + log-total of q
  const int64_t reference_top = top_token(reference, vocabulary);
  const double reference_largest = reference[reference_top];
  double reference_total = 0, difference = 0;
  for (int64_t i = 0; i < vocabulary; ++i) {
    const double weight = std::exp(reference[i] - reference_largest);
    reference_total += weight;
    if (weight > 0) difference += weight * (static_cast<double>(reference[i]) - logits[i]);
  }
  const double reference_log_total = reference_largest + std::log(reference_total);
  score.reference_negative_log_likelihood = reference_log_total - reference[target];
  score.kl = difference / reference_total - reference_log_total + log_total;
  score.same_top = top == reference_top;
  return score;
}

namespace {

PerplexityResult score_windows(const Engine& engine, const ScoringWindows& windows, LogitsSource& model,
                               LogitsSource* reference) {
  const Layout layout(windows);
  const int64_t vocabulary = engine.vocabulary(), scored_per_window = layout.scored_per_window;
  Totals totals;
  WindowBatch batch;
  std::vector<TokenScore> scores;
  double nll_so_far = 0;
  Progress progress("perplexity", static_cast<double>(windows.windows));
  for (int64_t first = 0; first < windows.windows; first += layout.at_once) {
    throw_if_interrupted();
    const int64_t count = std::min(layout.at_once, windows.windows - first);
    batch.ids.clear();
    batch.rows.clear();
    batch.targets.clear();
    batch.first_scored = first * scored_per_window;
    for (int64_t w = 0; w < count; ++w) {
      const auto ids = std::span(windows.ids)
                           .subspan(static_cast<size_t>((first + w) * windows.length),
                                    static_cast<size_t>(windows.length));
      if (layout.prefix > 0) batch.ids.push_back(windows.bos);
      batch.ids.insert(batch.ids.end(), ids.begin(), ids.end());
      for (int64_t i = 0; i < scored_per_window; ++i) {
        batch.rows.push_back(w * layout.rows_per_window + layout.prefix + i);
        batch.targets.push_back(ids[static_cast<size_t>(i + 1)]);
      }
    }
    model.run(batch);
    if (reference != nullptr) reference->run(batch);

    scores.assign(batch.rows.size(), {});
    for (size_t at = 0; at < batch.rows.size(); at += static_cast<size_t>(kRowsAtOnce)) {
      const size_t block = std::min<size_t>(static_cast<size_t>(kRowsAtOnce), batch.rows.size() - at);
      const float* logits = model.logits(batch, at, block);
      const float* reference_logits = reference == nullptr ? nullptr : reference->logits(batch, at, block);
      engine.pool()->parallel_for(static_cast<int64_t>(block), [&](int64_t i, int) {
        const size_t row = at + static_cast<size_t>(i);
        scores[row] = score_token(logits + i * vocabulary,
                                  reference_logits == nullptr ? nullptr : reference_logits + i * vocabulary,
                                  vocabulary, batch.targets[row]);
      });
    }
    for (int64_t w = 0; w < count; ++w) {
      double nll = 0, reference_nll = 0, kl = 0, same_top = 0;
      for (int64_t i = 0; i < scored_per_window; ++i) {
        const TokenScore& score = scores[static_cast<size_t>(w * scored_per_window + i)];
        if (std::isnan(score.negative_log_likelihood) || std::isnan(score.kl)) {
          fail("{}: computed NaN logits at token {} of window {}", engine.path().string(), i + 1, first + w);
        }
        nll += score.negative_log_likelihood;
        reference_nll += score.reference_negative_log_likelihood;
        kl += score.kl;
        same_top += score.same_top ? 1 : 0;
      }
      totals.nll.push_back(nll);
      totals.extra_nll.push_back(nll - reference_nll);
      totals.kl.push_back(kl);
      totals.same_top.push_back(same_top);
      totals.counts.push_back(scored_per_window);
      nll_so_far += nll;
    }
    const int64_t done = first + count;
    if (done == windows.windows) break;
    progress.update(static_cast<double>(done),
                    format_text("window {}/{}, perplexity {:.4f}", done, windows.windows,
                                std::exp(nll_so_far / static_cast<double>(done * scored_per_window))));
  }
  progress.finish();

  PerplexityResult result;
  const ClusteredMean nll = clustered_mean(totals.nll, totals.counts);
  result.perplexity = std::exp(nll.mean);
  result.perplexity_stderr = result.perplexity * nll.standard_error;
  result.windows = windows.windows;
  result.tokens = windows.windows * scored_per_window;
  if (reference != nullptr) {
    result.has_reference = true;
    const ClusteredMean extra_nll = clustered_mean(totals.extra_nll, totals.counts);
    const ClusteredMean kl = clustered_mean(totals.kl, totals.counts);
    const ClusteredMean same_top = clustered_mean(totals.same_top, totals.counts);
    result.log_perplexity_ratio = extra_nll.mean;
    result.log_perplexity_ratio_stderr = extra_nll.standard_error;
    result.kl_divergence = kl.mean;
    result.kl_stderr = kl.standard_error;
    result.top1_agreement = same_top.mean;
    result.top1_stderr = same_top.standard_error;
  }
  return result;
}

}  // namespace

PerplexityResult measure_perplexity(const Engine& engine, const ScoringWindows& windows,
                                    const Engine* reference, CacheTypes cache) {
  check_context(engine, windows);
  const Layout layout(windows);
  WindowRunner runner(engine, layout.rows_per_window, layout.at_once, cache);
  if (reference == nullptr) return score_windows(engine, windows, runner, nullptr);
  check_context(*reference, windows);
  check_vocabulary(reference->path().string(), reference->vocabulary(), engine);
  WindowRunner reference_runner(*reference, layout.rows_per_window, layout.at_once, CacheType::kF32);
  return score_windows(engine, windows, runner, &reference_runner);
}

struct RecordedReference::State : LogitsSource {
  State(Checkpoint opened, std::shared_ptr<ThreadPool> threads)
      : checkpoint(std::move(opened)), pool(std::move(threads)) {
    // The position tables are not used: the states are behind all blocks.
    shell = Model::load_shell(checkpoint, *pool, {.context_length = 1});
  }
  void run(const WindowBatch&) override {}
  const float* logits(const WindowBatch& batch, size_t at, size_t count) override {
    const ModelSpec& spec = shell->spec();
    buffer.resize(count * static_cast<size_t>(spec.vocabulary));
    rows.resize(count);
    std::iota(rows.begin(), rows.end(), int64_t{0});
    shell->logits(states.data() + (batch.first_scored + static_cast<int64_t>(at)) * spec.hidden_size, rows,
                  static_cast<int64_t>(count), buffer.data(), scratch, *pool);
    return buffer.data();
  }

  Checkpoint checkpoint;
  std::shared_ptr<ThreadPool> pool;
  std::unique_ptr<Model> shell;
  ScoringWindows windows;
  std::vector<float> states;  // [scored tokens, hidden]
  PerplexityResult result;
  Scratch scratch;
  std::vector<float> buffer;
  std::vector<int64_t> rows;
};

RecordedReference::RecordedReference(std::unique_ptr<State> state) : state_(std::move(state)) {}
RecordedReference::~RecordedReference() = default;
const PerplexityResult& RecordedReference::result() const { return state_->result; }

double RecordedReference::bytes(const ModelSpec& spec, const ScoringWindows& windows) {
  return 4.0 * static_cast<double>(windows.windows) * static_cast<double>(windows.length - 1) *
         static_cast<double>(spec.hidden_size);
}

std::unique_ptr<RecordedReference> record_reference(const Engine& engine, const ScoringWindows& windows) {
  check_context(engine, windows);
  const ModelSpec& spec = engine.model().spec();
  const double bytes = RecordedReference::bytes(spec, windows);
  if (bytes > 0.8 * static_cast<double>(available_memory_bytes())) {
    fail(
        "{}: keeping the hidden states of {} windows of {} tokens takes {}, and {} are available; score "
        "fewer windows",
        engine.path().string(), windows.windows, windows.length, format_bytes(bytes),
        format_bytes(static_cast<double>(available_memory_bytes())));
  }
  auto state = std::make_unique<RecordedReference::State>(Checkpoint::open(engine.path()), engine.pool());
  state->windows = windows;
  state->states.resize(static_cast<size_t>(bytes / 4));
  const Layout layout(windows);
  WindowRunner runner(engine, layout.rows_per_window, layout.at_once, CacheType::kF32);
  runner.keep_states(state->states.data());
  state->result = score_windows(engine, windows, runner, nullptr);
  return std::unique_ptr<RecordedReference>(new RecordedReference(std::move(state)));
}

PerplexityResult measure_perplexity(const Engine& engine, const ScoringWindows& windows,
                                    RecordedReference& reference) {
  check_context(engine, windows);
  const Layout layout(windows);
  RecordedReference::State& state = *reference.state_;
  check_vocabulary(state.checkpoint.path().string(), state.shell->spec().vocabulary, engine);
  if (state.windows.ids != windows.ids || state.windows.length != windows.length ||
      state.windows.bos != windows.bos) {
    fail("{}: was recorded on other windows than are to be scored", state.checkpoint.path().string());
  }
  WindowRunner runner(engine, layout.rows_per_window, layout.at_once, CacheType::kF32);
  return score_windows(engine, windows, runner, &state);
}

}  // namespace nibble
