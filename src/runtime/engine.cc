#include "runtime/engine.h"

#include <algorithm>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"

namespace nibble {

std::unique_ptr<Engine> Engine::open(const std::filesystem::path& path, std::shared_ptr<ThreadPool> pool,
                                     int64_t context_length) {
  if (context_length < 0)
    fail_usage("the context length is {}, expected at least 1, or 0 for the model's own", context_length);
  const double started = monotonic_seconds();
  std::unique_ptr<Engine> engine(new Engine(Checkpoint::open(path), std::move(pool)));
  const int64_t own_context = read_model_spec(engine->checkpoint_).context_length;
  engine->context_length_ = context_length > 0 ? context_length : own_context;
  if (context_length > own_context) {
    log_warning("{}: a context of {} tokens was asked for, but the model was made for {}", path.string(),
                context_length, own_context);
  }
  engine->model_ =
      Model::load(engine->checkpoint_, *engine->pool_, {.context_length = engine->context_length_ + 1});
  engine->load_seconds_ = monotonic_seconds() - started;
  log_debug("{}: loaded in {}, {} beside the file", path.string(), format_seconds(engine->load_seconds_),
            format_bytes(static_cast<double>(engine->model_->prepared_bytes())));
  throw_if_interrupted();
  return engine;
}

const Tokenizer& Engine::tokenizer() const {
  if (!tokenizer_) tokenizer_ = Tokenizer::open(checkpoint_.path());
  return *tokenizer_;
}

int32_t Engine::bos_id() const {
  const int32_t configured = model_->spec().bos_id;
  return configured >= 0 ? configured : tokenizer().bos_id();
}

Session::Session(const Engine& engine, int64_t capacity, CacheTypes types)
    : engine_(engine), capacity_(capacity) {
  if (capacity < 1 || capacity > engine.context_length()) {
    fail("{}: a sequence of {} tokens was asked for, but the context is {}", engine.path().string(), capacity,
         engine.context_length());
  }
  cache_ = engine.model().make_cache(capacity, types);
}

void Session::truncate(int64_t length) {
  NIBBLE_CHECK(length >= 0 && length <= length_);
  cache_->set_length(length);
  length_ = length;
}

void Session::check_fits(size_t count) const {
  if (count == 0) fail("{}: no tokens to run", engine_.path().string());
  const int64_t total = length_ + static_cast<int64_t>(count);
  if (total > capacity_) {
    fail("{}: {} tokens do not fit: the sequence has room for {}", engine_.path().string(), total, capacity_);
  }
}

void Session::run_batch(std::span<const int32_t> ids) {
  throw_if_interrupted();
  const int64_t count = static_cast<int64_t>(ids.size());
  const Model& model = engine_.model();
  hidden_.resize(static_cast<size_t>(count * model.spec().hidden_size));
  model.embed(ids, hidden_.data());
  const SequenceSpan span = {
      .cache = cache_.get(), .first_row = 0, .count = count, .first_position = length_};
  const RunContext context = {
      .sequences = {&span, 1}, .tokens = count, .scratch = &scratch_, .pool = engine_.pool().get()};
  model.run_blocks(hidden_.data(), context);
  length_ += count;
  cache_->set_length(length_);
}

std::span<const float> Session::append(std::span<const int32_t> ids) {
  check_fits(ids.size());
  int64_t last_rows = 0;
  while (!ids.empty()) {
    const size_t count = std::min<size_t>(ids.size(), static_cast<size_t>(kPromptBatch));
    run_batch(ids.first(count));
    last_rows = static_cast<int64_t>(count);
    ids = ids.subspan(count);
  }
  logits_.resize(static_cast<size_t>(engine_.vocabulary()));
  const int64_t row = last_rows - 1;
  engine_.model().logits(hidden_.data(), {&row, 1}, last_rows, logits_.data(), scratch_, *engine_.pool());
  return logits_;
}

void Session::append(std::span<const int32_t> ids, float* logits) {
  check_fits(ids.size());
  while (!ids.empty()) {
    const size_t count = std::min<size_t>(ids.size(), static_cast<size_t>(kPromptBatch));
    run_batch(ids.first(count));
    engine_.model().logits(hidden_.data(), {}, static_cast<int64_t>(count), logits, scratch_,
                           *engine_.pool());
    logits += static_cast<int64_t>(count) * engine_.vocabulary();
    ids = ids.subspan(count);
  }
}

}  // namespace nibble
