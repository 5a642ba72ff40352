#include "runtime/engine.h"

#include <algorithm>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"

namespace nibble {
namespace {

void announce_slower_paths(const DeviceModel& device, const std::string& path, bool strict) {
  int64_t count = 0;
  std::string example;
  for (const DeviceLinearFacts& facts : device.linears()) {
    if (!facts.slower) continue;
    count += static_cast<int64_t>(facts.names.size());
    if (!example.empty()) continue;
    example = format_text("{} (format {})", facts.names.front(), facts.format);
    for (const auto& [kernel, reason] : facts.refused) example += format_text(", {}: {}", kernel, reason);
  }
  if (count == 0) return;
  const std::string what =
      format_text("{}: {} linears are taken apart to FP16 on {}, for want of a kernel, such as {}", path,
                  count, device.device_name(), example);
  if (strict) fail("{}; --strict allows no slower path", what);
  log_warning("{}", what);
}

}  // namespace

std::unique_ptr<Engine> Engine::open(const std::filesystem::path& path, std::shared_ptr<ThreadPool> pool,
                                     int64_t context_length, const EngineDevice& device) {
  if (context_length < 0)
    fail_usage("the context length is {}, expected at least 1, or 0 for the model's own", context_length);
  const double started = monotonic_seconds();
  if (device.gpu >= 0) require_device(device.gpu);
  std::unique_ptr<Engine> engine(new Engine(Checkpoint::open(path), std::move(pool)));
  const int64_t own_context = read_model_spec(engine->checkpoint_).context_length;
  engine->context_length_ = context_length > 0 ? context_length : own_context;
  if (context_length > own_context) {
    log_warning("{}: a context of {} tokens was asked for, but the model was made for {}", path.string(),
                context_length, own_context);
  }
  engine->model_ = Model::load(engine->checkpoint_, *engine->pool_,
                               {.context_length = engine->context_length_ + 1, .prepare = device.gpu < 0});
  if (device.gpu >= 0) {
    engine->device_ =
        load_device_model(*engine->model_, device.gpu, engine->context_length_ + 1, *engine->pool_);
    log_info("{}: on {}, {} of weights", path.string(), engine->device_->device_name(),
             format_bytes(static_cast<double>(engine->device_->weight_bytes())));
    announce_slower_paths(*engine->device_, path.string(), device.strict);
  }
  engine->load_seconds_ = monotonic_seconds() - started;
  log_debug("{}: loaded in {}, {} beside the file", path.string(), format_seconds(engine->load_seconds_),
            format_bytes(device.gpu < 0 ? static_cast<double>(engine->model_->prepared_bytes()) : 0.0));
  throw_if_interrupted();
  return engine;
}

CacheTypes Engine::cache_types(CacheTypes wanted) const {
  return device_ ? CacheTypes(device_cache_type(wanted)) : wanted;
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
  types = engine.cache_types(types);
  if (engine.device() != nullptr) {
    sequence_ = engine.device()->make_sequence(capacity, types.keys);
  } else {
    cache_ = engine.model().make_cache(capacity, types);
  }
}

void Session::truncate(int64_t length) {
  NIBBLE_CHECK(length >= 0 && length <= length_);
  if (sequence_) {
    sequence_->truncate(length);
  } else {
    cache_->set_length(length);
  }
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

void Session::check_ids(std::span<const int32_t> ids) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= engine_.vocabulary())
      fail("token id {} at position {} is outside the vocabulary of {}", ids[i], i, engine_.vocabulary());
  }
}

std::span<const float> Session::append(std::span<const int32_t> ids) {
  check_fits(ids.size());
  if (sequence_) {
    check_ids(ids);
    logits_.resize(static_cast<size_t>(engine_.vocabulary()));
    sequence_->append(ids, nullptr, logits_.data());
    length_ = sequence_->length();
    return logits_;
  }
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

std::span<const RankedLogit> Session::append_ranked(std::span<const int32_t> ids, size_t count) {
  NIBBLE_CHECK(ranks(count));
  check_fits(ids.size());
  check_ids(ids);
  ranked_.resize(count);
  const size_t got = sequence_->append_ranked(ids, ranked_);
  length_ = sequence_->length();
  return std::span(ranked_).first(got);
}

void Session::append(std::span<const int32_t> ids, float* logits) {
  check_fits(ids.size());
  if (sequence_) {
    check_ids(ids);
    hidden_.resize(ids.size() * static_cast<size_t>(engine_.model().spec().hidden_size));
    sequence_->append(ids, hidden_.data(), nullptr);
    length_ = sequence_->length();
    engine_.device()->logits(hidden_.data(), static_cast<int64_t>(ids.size()), logits);
    return;
  }
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
