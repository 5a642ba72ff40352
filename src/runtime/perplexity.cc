#include "runtime/perplexity.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
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

// Runs whole windows through one model and yields logits of chosen rows.
class WindowRunner {
 public:
  WindowRunner(const Engine& engine, int64_t length, int64_t windows_at_once, CacheTypes cache)
      : engine_(engine), length_(length) {
    for (int64_t i = 0; i < windows_at_once; ++i) caches_.push_back(engine.model().make_cache(length, cache));
  }

  // ids [count, length]
  void run(std::span<const int32_t> ids) {
    const Model& model = engine_.model();
    tokens_ = static_cast<int64_t>(ids.size());
    hidden_.resize(static_cast<size_t>(tokens_ * model.spec().hidden_size));
    model.embed(ids, hidden_.data());
    std::vector<SequenceSpan> spans;
    for (int64_t row = 0; row < tokens_; row += length_) {
      SequenceCache* cache = caches_[spans.size()].get();
      cache->set_length(0);
      spans.push_back({.cache = cache, .first_row = row, .count = length_, .first_position = 0});
    }
    model.run_blocks(
        hidden_.data(),
        {.sequences = spans, .tokens = tokens_, .scratch = &scratch_, .pool = engine_.pool().get()});
  }

  const float* logits(std::span<const int64_t> rows) {
    logits_.resize(rows.size() * static_cast<size_t>(engine_.vocabulary()));
    engine_.model().logits(hidden_.data(), rows, tokens_, logits_.data(), scratch_, *engine_.pool());
    return logits_.data();
  }

 private:
  const Engine& engine_;
  int64_t length_;
  int64_t tokens_ = 0;
  std::vector<std::unique_ptr<SequenceCache>> caches_;
  Scratch scratch_;
  std::vector<float> hidden_, logits_;
};

struct Totals {
  std::vector<double> nll, kl, same_top;  // sums per window
  std::vector<int64_t> counts;
};

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
  score.kl = difference / reference_total - (reference_largest + std::log(reference_total)) + log_total;
  score.same_top = top == reference_top;
  return score;
}

PerplexityResult measure_perplexity(const Engine& engine, const ScoringWindows& windows,
                                    const Engine* reference, CacheTypes cache) {
  NIBBLE_CHECK(windows.windows >= 1 && windows.length >= 2);
  const int64_t vocabulary = engine.vocabulary();
  for (const Engine* model : {&engine, reference}) {
    if (model == nullptr) continue;
    if (windows.length > model->context_length()) {
      fail("{}: windows of {} tokens are longer than the model's context of {}", model->path().string(),
           windows.length, model->context_length());
    }
    if (model->vocabulary() != vocabulary) {
      fail("{}: its vocabulary has {} tokens, but that of {} has {}: they cannot be compared",
           model->path().string(), model->vocabulary(), engine.path().string(), vocabulary);
    }
  }
  const int64_t prefix = windows.bos >= 0 ? 1 : 0;
  const int64_t rows_per_window = prefix + windows.length;
  const int64_t scored_per_window = windows.length - 1;
  const int64_t at_once = std::clamp<int64_t>(kPromptBatch / rows_per_window, 1, windows.windows);

  WindowRunner runner(engine, rows_per_window, at_once, cache);
  std::unique_ptr<WindowRunner> reference_runner;
  if (reference != nullptr)
    reference_runner = std::make_unique<WindowRunner>(*reference, rows_per_window, at_once, CacheType::kF32);

  Totals totals;
  std::vector<int32_t> batch;
  std::vector<int64_t> rows;
  std::vector<int32_t> targets;
  std::vector<TokenScore> scores;
  double nll_so_far = 0;
  Progress progress("perplexity", static_cast<double>(windows.windows));
  for (int64_t first = 0; first < windows.windows; first += at_once) {
    throw_if_interrupted();
    const int64_t count = std::min(at_once, windows.windows - first);
    batch.clear();
    rows.clear();
    targets.clear();
    for (int64_t w = 0; w < count; ++w) {
      const auto ids = std::span(windows.ids)
                           .subspan(static_cast<size_t>((first + w) * windows.length),
                                    static_cast<size_t>(windows.length));
      if (prefix > 0) batch.push_back(windows.bos);
      batch.insert(batch.end(), ids.begin(), ids.end());
      for (int64_t i = 0; i < scored_per_window; ++i) {
        rows.push_back(w * rows_per_window + prefix + i);
        targets.push_back(ids[static_cast<size_t>(i + 1)]);
      }
    }
    runner.run(batch);
    if (reference_runner) reference_runner->run(batch);

    scores.assign(rows.size(), {});
    for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(kRowsAtOnce)) {
      const size_t block = std::min<size_t>(static_cast<size_t>(kRowsAtOnce), rows.size() - at);
      const auto block_rows = std::span(rows).subspan(at, block);
      const float* logits = runner.logits(block_rows);
      const float* reference_logits = reference_runner ? reference_runner->logits(block_rows) : nullptr;
      engine.pool()->parallel_for(static_cast<int64_t>(block), [&](int64_t i, int) {
        const size_t row = at + static_cast<size_t>(i);
        scores[row] = score_token(logits + i * vocabulary,
                                  reference_logits == nullptr ? nullptr : reference_logits + i * vocabulary,
                                  vocabulary, targets[row]);
      });
    }
    for (int64_t w = 0; w < count; ++w) {
      double nll = 0, kl = 0, same_top = 0;
      for (int64_t i = 0; i < scored_per_window; ++i) {
        const TokenScore& score = scores[static_cast<size_t>(w * scored_per_window + i)];
        if (std::isnan(score.negative_log_likelihood) || std::isnan(score.kl)) {
          fail("{}: computed NaN logits at token {} of window {}", engine.path().string(), i + 1, first + w);
        }
        nll += score.negative_log_likelihood;
        kl += score.kl;
        same_top += score.same_top ? 1 : 0;
      }
      totals.nll.push_back(nll);
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
    const ClusteredMean kl = clustered_mean(totals.kl, totals.counts);
    const ClusteredMean same_top = clustered_mean(totals.same_top, totals.counts);
    result.kl_divergence = kl.mean;
    result.kl_stderr = kl.standard_error;
    result.top1_agreement = same_top.mean;
    result.top1_stderr = same_top.standard_error;
  }
  return result;
}

}  // namespace nibble
