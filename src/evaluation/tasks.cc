#include "evaluation/tasks.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/error.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/printable.h"

namespace nibble {
namespace {

constexpr size_t kMaxLineBytes = size_t{4} << 20;
constexpr size_t kMaxChoices = 26;  // one letter each

// One example before it is put together: shots need its parts.
struct Parts {
  std::string description;  // before the shots
  TaskExample example;
};

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'; }

std::string_view strip_right(std::string_view text) {
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}
std::string_view strip(std::string_view text) {
  text = strip_right(text);
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  return text;
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

void replace_all(std::string* text, std::string_view from, std::string_view to) {
  for (size_t at = text->find(from); at != std::string::npos; at = text->find(from, at + to.size()))
    text->replace(at, from.size(), to);
}

// Brackets are leavings of the WikiHow half of HellaSwag.
std::string clean_hellaswag(std::string_view raw) {
  std::string text(strip(raw));
  replace_all(&text, " [title]", ". ");
  for (size_t open = text.find('['); open != std::string::npos; open = text.find('[', open)) {
    const size_t close = text.find(']', open);
    if (close == std::string::npos) break;
    if (text.find('\n', open) < close) {  // as a regular expression's dot, which stops at line ends
      ++open;
      continue;
    }
    text.erase(open, close - open + 1);
  }
  // One pass, as str.replace: three spaces become two.
  std::string result;
  for (size_t at = 0; at < text.size(); ++at) {
    result += text[at];
    if (text[at] == ' ' && at + 1 < text.size() && text[at + 1] == ' ') ++at;
  }
  return result;
}

// As str.capitalize() on ASCII letters; others stay as they are.
std::string capitalize(std::string text) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (i == 0 && text[i] >= 'a' && text[i] <= 'z') text[i] = static_cast<char>(text[i] - 'a' + 'A');
    if (i > 0 && text[i] >= 'A' && text[i] <= 'Z') text[i] = static_cast<char>(text[i] - 'A' + 'a');
  }
  return text;
}

std::vector<std::string> read_choices(const Json& object, const char* key, const std::string& source) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) fail("{}: '{}' is no list of texts", source, key);
  if (found->size() < 2 || found->size() > kMaxChoices) {
    fail("{}: '{}' has {} entries, expected 2 to {}", source, key, found->size(), kMaxChoices);
  }
  std::vector<std::string> choices;
  for (const Json& choice : *found) {
    if (!choice.is_string())
      fail("{}: '{}' has an entry of type {}, expected texts", source, key, choice.type_name());
    choices.push_back(choice.get<std::string>());
    if (strip(choices.back()).empty()) fail("{}: '{}' has an empty text", source, key);
  }
  return choices;
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) return std::nullopt;
  return value;
}

int64_t read_answer(const Json& object, const char* key, const std::vector<std::string>& choices,
                    bool letters, const std::string& source) {
  const auto found = object.find(key);
  if (found == object.end()) fail("{}: '{}' is missing", source, key);
  const auto count = static_cast<int64_t>(choices.size());
  std::optional<int64_t> answer;
  if (found->is_number_integer()) {
    answer = json_int(object, key, {}, source);
  } else if (found->is_string()) {
    const std::string text = found->get<std::string>();
    const auto choice = std::find(choices.begin(), choices.end(), text);
    if (letters && text.size() == 1 && text[0] >= 'A' && text[0] <= 'Z') {
      answer = text[0] - 'A';
    } else if (choice != choices.end()) {
      answer = choice - choices.begin();
    } else {
      answer = whole_number(strip(text));
    }
  }
  if (!answer || *answer < 0 || *answer >= count) {
    fail("{}: '{}' is {}, expected {}0 to {}", source, key,
         printable(found->dump(-1, ' ', true, Json::error_handler_t::replace), 60),
         letters ? "a letter or " : "", count - 1);
  }
  return *answer;
}

Parts cloze(const Json& object, const std::string& source) {
  const std::string text = json_string(object, "text", {}, source);
  const std::string_view whole = strip_right(text);
  const size_t space = whole.rfind(' ');
  if (space == std::string_view::npos || strip(whole.substr(0, space)).empty()) {
    fail("{}: 'text' has no word before its last one", source);
  }
  Parts parts;
  parts.example.context = whole.substr(0, space);
  parts.example.continuations = {std::string(whole.substr(space))};
  return parts;
}

Parts hellaswag(const Json& object, const std::string& source) {
  std::string context;
  if (object.contains("ctx_a") && object.contains("ctx_b")) {
    context =
        json_string(object, "ctx_a", {}, source) + " " + capitalize(json_string(object, "ctx_b", {}, source));
  } else {
    context = json_string(object, "ctx", {}, source);
  }
  const std::string activity = json_string(object, "activity_label", "", source);
  const std::vector<std::string> endings = read_choices(object, "endings", source);
  Parts parts;
  parts.example.context = clean_hellaswag(activity.empty() ? context : activity + ": " + context);
  parts.example.answer = read_answer(object, "label", endings, false, source);
  for (const std::string& ending : endings) {
    const std::string cleaned = clean_hellaswag(ending);
    if (strip(cleaned).empty()) fail("{}: 'endings' has a text of nothing but brackets", source);
    parts.example.continuations.push_back(" " + cleaned);
    parts.example.characters.push_back(count_characters(cleaned));
  }
  return parts;
}

Parts mmlu(const Json& object, bool by_continuation, const std::string& source) {
  const std::string question(strip(json_string(object, "question", {}, source)));
  const std::vector<std::string> choices = read_choices(object, "choices", source);
  std::string subject = json_string(object, "subject", "", source);
  replace_all(&subject, "_", " ");
  Parts parts;
  parts.example.answer = read_answer(object, "answer", choices, true, source);
  if (!subject.empty()) {
    parts.description =
        by_continuation
            ? "The following are questions (with answers) about " + subject + ".\n\n"
            : "The following are multiple choice questions (with answers) about " + subject + ".\n\n";
  }
  parts.example.context = by_continuation ? "Question: " + question + "\nAnswer:" : question;
  for (size_t i = 0; i < choices.size(); ++i) {
    const std::string letter(1, static_cast<char>('A' + static_cast<int>(i)));
    if (!by_continuation) parts.example.context += "\n" + letter + ". " + choices[i];
    parts.example.continuations.push_back(" " + (by_continuation ? choices[i] : letter));
    parts.example.characters.push_back(by_continuation ? count_characters(choices[i]) : 1);
  }
  if (!by_continuation) parts.example.context += "\nAnswer:";
  return parts;
}

Parts any_choices(const Json& object, const std::string& source) {
  Parts parts;
  parts.example.context = json_string(object, "prompt", {}, source);
  const std::vector<std::string> choices = read_choices(object, "choices", source);
  parts.example.answer = read_answer(object, "answer", choices, false, source);
  const bool separated = parts.example.context.empty() || is_space(parts.example.context.back());
  for (const std::string& choice : choices) {
    parts.example.continuations.push_back(separated || is_space(choice.front()) ? choice : " " + choice);
    parts.example.characters.push_back(count_characters(choice));
  }
  return parts;
}

std::optional<TaskShape> shape_of(const Json& object, const TaskOptions& options) {
  if (!object.is_object()) return std::nullopt;
  if (object.contains("endings")) return TaskShape::kHellaSwag;
  if (object.contains("question") && object.contains("choices"))
    return options.continuation_scoring ? TaskShape::kMmluContinuations : TaskShape::kMmluLetters;
  if (object.contains("prompt") && object.contains("choices")) return TaskShape::kChoices;
  if (object.contains("text")) return TaskShape::kCloze;
  return std::nullopt;
}

Parts read_parts(const Json& object, TaskShape shape, const std::string& source) {
  switch (shape) {
    case TaskShape::kCloze:
      return cloze(object, source);
    case TaskShape::kHellaSwag:
      return hellaswag(object, source);
    case TaskShape::kMmluLetters:
    case TaskShape::kMmluContinuations:
      return mmlu(object, shape == TaskShape::kMmluContinuations, source);
    case TaskShape::kChoices:
      break;
  }
  return any_choices(object, source);
}

}  // namespace

std::string_view task_shape_name(TaskShape shape) noexcept {
  switch (shape) {
    case TaskShape::kCloze:
      return "cloze";
    case TaskShape::kHellaSwag:
      return "hellaswag";
    case TaskShape::kMmluLetters:
      return "mmlu";
    case TaskShape::kMmluContinuations:
      return "mmlu_continuation";
    case TaskShape::kChoices:
      return "choices";
  }
  return "unknown";
}

Task parse_task(std::string_view text, const std::string& source, const TaskOptions& options) {
  Task task = {.name = std::filesystem::path(source).stem().string(), .source = source};
  std::optional<TaskShape> shape;
  std::string shots;
  int64_t shown = 0;
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  for (int64_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view content = strip(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (content.empty()) continue;
    if (options.limit > 0 && static_cast<int64_t>(task.examples.size()) == options.limit) break;
    const std::string place = format_text("{}:{}", source, line);
    const Json object = parse_json(content, place, {.max_bytes = kMaxLineBytes, .max_values = 4096});
    const std::optional<TaskShape> found = shape_of(object, options);
    if (!found) {
      fail(
          "{}: no example of a known task; expected an object with 'text', with 'ctx', 'endings' and "
          "'label', "
          "with 'question', 'choices' and 'answer', or with 'prompt', 'choices' and 'answer'",
          place);
    }
    if (!shape) shape = found;
    if (*found != *shape) {
      fail("{}: is of the shape '{}', but the lines before it are of '{}'", place, task_shape_name(*found),
           task_shape_name(*shape));
    }
    Parts parts = read_parts(object, *shape, place);
    TaskExample& example = parts.example;
    if (shown < options.shots) {
      shots += example.context + example.continuations[static_cast<size_t>(example.answer)] + "\n\n";
      ++shown;
      continue;
    }
    example.line = line;
    example.context = parts.description + shots + example.context;
    task.examples.push_back(std::move(example));
  }
  if (task.examples.empty()) {
    if (shown == 0) fail("{}: has no examples", source);
    fail("{}: has no examples to score beside the {} that are shown solved", source, shown);
  }
  task.shape = *shape;
  return task;
}

Task read_task(const std::filesystem::path& path, const TaskOptions& options) {
  const auto file = MappedFile::open(path);
  return parse_task({reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()},
                    path.string(), options);
}

}  // namespace nibble
