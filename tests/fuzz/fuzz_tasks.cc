// Task files of `nibble evaluate`.
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "evaluation/tasks.h"
#include "fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const TaskOptions& options :
       {TaskOptions{}, TaskOptions{.limit = 2, .shots = 1}, TaskOptions{.continuation_scoring = true}}) {
    try {
      const Task task = parse_task(text, "fuzz.jsonl", options);
      for (const TaskExample& example : task.examples) {
        // What scoring relies on.
        if (example.continuations.empty() || example.answer < 0 ||
            example.answer >= static_cast<int64_t>(example.continuations.size())) {
          __builtin_trap();
        }
        if (!task.is_cloze() && example.characters.size() != example.continuations.size()) __builtin_trap();
        for (const int64_t characters : example.characters) {
          if (characters < 1) __builtin_trap();
        }
      }
    } catch (const Error&) {  // refused, as it should be
    }
  }
  return 0;
}

namespace nibble::fuzz {

std::vector<std::string> fuzz_seeds() {
  return {
      "{\"text\": \"One two three\"}\n{\"text\": \"four five\"}\n",
      R"({"ctx": "a [title] b", "activity_label": "c", "ctx_a": "a", "ctx_b": "b", "endings": ["[x] d", "e  f"], "label": "1"})",
      R"({"question": "q", "subject": "s_t", "choices": ["a", "b"], "answer": "B"})"
      "\r\n"
      R"({"question": "r", "choices": ["a", "b", "c"], "answer": 2})",
      "\xef\xbb\xbf{\"prompt\": \"p\\n\", \"choices\": [\"\\u00e9\", \" b\"], \"answer\": \" b\"}",
      R"({"prompt": "", "choices": ["a", "b"], "answer": -1})",
      R"({"ctx": "[[]][", "endings": ["]", "["], "label": 0})",
  };
}

}  // namespace nibble::fuzz
