#include "runtime/generate.h"

#include <algorithm>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"

namespace nibble {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) fail_usage("a stop text is empty");
  }
}

std::string StopFilter::push(std::string_view piece) {
  if (stopped_) return "";
  held_ += piece;
  size_t found = std::string::npos;
  for (const std::string& stop : stops_) found = std::min(found, held_.find(stop));
  std::string certain;
  if (found != std::string::npos) {
    stopped_ = true;
    certain = held_.substr(0, found);
    held_.clear();
    return certain;
  }
  size_t keep = 0;  // the longest end of the text that is the beginning of a stop text
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) keep = length;
    }
  }
  certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return certain;
}

std::string StopFilter::finish() {
  std::string rest = std::move(held_);
  held_.clear();
  return rest;
}

Generation generate(const Engine& engine, std::span<const int32_t> prompt_ids, const GenerateOptions& options,
                    const TextCallback& on_text) {
  const int64_t context = engine.context_length();
  const int64_t prompt_length = static_cast<int64_t>(prompt_ids.size());
  if (options.max_tokens < -1) {
    fail_usage("the number of tokens to generate is {}, expected at least 0, or -1 for no limit",
               options.max_tokens);
  }
  if (prompt_length == 0) fail("{}: the prompt has no tokens, expected at least one", engine.path().string());
  if (prompt_length > context) {
    fail("{}: the prompt has {} tokens, more than the model's context of {}", engine.path().string(),
         prompt_length, context);
  }
  const std::string config_source = (engine.path() / "generation_config.json").string();
  Sampler sampler(resolve_sampling(options.sampling, engine.checkpoint().generation_config(), config_source));
  StopFilter stops(options.stop);
  StreamDecoder decoder(engine.tokenizer());
  decoder.prime(prompt_ids);

  Generation result;
  result.seed = sampler.settings().seed;
  result.prompt_ids.assign(prompt_ids.begin(), prompt_ids.end());
  result.output_ids = result.prompt_ids;
  bool wanted = true;
  const auto emit = [&](const std::string& text) {
    if (text.empty()) return;
    result.text += text;
    if (on_text) wanted = on_text(text) && wanted;
  };

  // The last token drawn is never run through the model, so its position needs no room in the cache: a
  // sequence may become one token longer than the context.
  const int64_t room = context - prompt_length + 1;
  const int64_t limit = options.max_tokens < 0 ? room : std::min(options.max_tokens, room);
  std::vector<int32_t> ends = engine.model().spec().eos_ids;
  if (ends.empty() && engine.tokenizer().eos_id() >= 0) ends.push_back(engine.tokenizer().eos_id());
  const CacheTypes cache = {cache_type_from_name(options.key_cache, "the type of cached keys"),
                            cache_type_from_name(options.value_cache, "the type of cached values")};
  Session session(engine, std::max<int64_t>(prompt_length, prompt_length + limit - 1), cache);
  result.stop_reason = options.max_tokens < 0 || limit < options.max_tokens ? StopReason::kContextFull
                                                                            : StopReason::kTokenLimit;
  const double started = monotonic_seconds();
  double prompt_done = started;
  // A GPU ranks the logits itself where a few of them decide.
  const auto next_after = [&](std::span<const int32_t> ids) {
    const std::optional<size_t> needed = sampler.ranked_needed(result.output_ids.size());
    if (needed && session.ranks(*needed))
      return sampler.sample_ranked(session.append_ranked(ids, *needed), result.output_ids);
    return sampler.sample(session.append(ids), result.output_ids);
  };
  try {
    if (limit > 0) {
      for (int64_t drawn = 0; drawn < limit; ++drawn) {
        const int32_t id =
            next_after(drawn == 0 ? prompt_ids : std::span<const int32_t>(&result.output_ids.back(), 1));
        if (drawn == 0) prompt_done = monotonic_seconds();
        result.output_ids.push_back(id);
        if (!options.ignore_end_of_text && std::find(ends.begin(), ends.end(), id) != ends.end()) {
          result.stop_reason = StopReason::kEndOfText;
          break;
        }
        emit(stops.push(decoder.push(id)));
        if (stops.stopped()) {
          result.stop_reason = StopReason::kStopString;
          break;
        }
        if (!wanted) throw Interrupted();
      }
    }
  } catch (const Interrupted&) {
    result.stop_reason = StopReason::kInterrupted;
  }
  if (!stops.stopped()) {
    emit(stops.push(decoder.finish()));
    if (stops.stopped()) {
      result.stop_reason = StopReason::kStopString;
    } else {
      emit(stops.finish());
    }
  }
  const double finished = monotonic_seconds();
  result.prompt_seconds = prompt_done - started;
  result.decode_seconds = finished - prompt_done;
  return result;
}

}  // namespace nibble
