// Continuing a prompt, one token after another.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/nibble.h"
#include "runtime/engine.h"
#include "runtime/sampler.h"

namespace nibble {

// Looks for stop texts in text that arrives in pieces. What could still become one is held back.
class StopFilter {
 public:
  // Throws UsageError for an empty text.
  explicit StopFilter(std::vector<std::string> stops);
  // The text that is now certain to be wanted. Once a stop text was found: the text before it, and stopped()
  // is true.
  std::string push(std::string_view piece);
  // What is held back at the end of the text.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

// Throws Error when the prompt is empty, longer than the context (with both counts), or has ids outside the
// vocabulary. Ctrl-C ends it with what there is (StopReason::kInterrupted). Special tokens appear in the
// text, but for the one that ends it.
Generation generate(const Engine& engine, std::span<const int32_t> prompt_ids, const GenerateOptions& options,
                    const TextCallback& on_text);

}  // namespace nibble
