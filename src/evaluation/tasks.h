// Tasks with known answers from JSON Lines files, in the shapes in which the usual benchmarks are published.
// Formatting follows lm-evaluation-harness 0.4 (its task names in parentheses):
//
//   {"text"}                       cloze (lambada_openai): all words but the last are the context, " " + the
//                                  last word is to be predicted. White space at the end of the text is
//                                  dropped.
//   {"ctx", "endings", "label"}    HellaSwag (hellaswag): continuations " " + ending; with "activity_label",
//   the
//                                  context is "<activity_label>: <ctx>", and "ctx_a" and "ctx_b" make up ctx
//                                  where they are there. " [title]" becomes ". ", other [brackets] go.
//   {"question", "choices", "answer"}
//                                  MMLU. By letter (mmlu): question, "A. <choice>" lines, "Answer:";
//                                  continuations " A", " B", ... By continuation (mmlu_continuation):
//                                  "Question: <question>\nAnswer:"; continuations " " + choice. A "subject"
//                                  makes the description that both put in front.
//   {"prompt", "choices", "answer"}
//                                  anything: prompt and choices as they are, with a space between the two
//                                  unless there is white space already.
//
// "label" and "answer" count from 0 and may be numbers or texts of numbers; an answer may also be a letter
// (MMLU) or the text of a choice.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

enum class TaskShape { kCloze, kHellaSwag, kMmluLetters, kMmluContinuations, kChoices };
std::string_view task_shape_name(TaskShape shape) noexcept;

struct TaskExample {
  int64_t line = 0;  // of the file, from 1
  std::string context;
  std::vector<std::string> continuations;  // of a cloze: the one that is right
  std::vector<int64_t> characters;         // of each choice, without what separates it from the context
  int64_t answer = 0;                      // which continuation is right
};

struct Task {
  std::string name;    // the file's, without folder and extension
  std::string source;  // for messages
  TaskShape shape = TaskShape::kCloze;
  std::vector<TaskExample> examples;

  bool is_cloze() const { return shape == TaskShape::kCloze; }
  // Whether choices differ in length, so that accuracy by likelihood per character is worth telling.
  bool has_lengths() const { return !is_cloze() && shape != TaskShape::kMmluLetters; }
};

struct TaskOptions {
  int64_t limit = 0;                  // examples that are scored at most; 0: all
  int64_t shots = 0;                  // the first so many lines are shown solved before each of the others
  bool continuation_scoring = false;  // MMLU by continuation instead of by letter
};

// Throws Error "<source>:<line>: ..." for a line that is no JSON object of the file's shape, an empty list of
// choices, an answer out of range; Error naming the source when there is nothing to score.
Task parse_task(std::string_view text, const std::string& source, const TaskOptions& options);
Task read_task(const std::filesystem::path& path, const TaskOptions& options);

}  // namespace nibble
