// Task files: shapes, formatting after lm-evaluation-harness, and what is refused.
#include <gtest/gtest.h>

#include "base/error.h"
#include "evaluation/tasks.h"

namespace nibble {
namespace {

Task parse(const std::string& text, const TaskOptions& options = {}) {
  return parse_task(text, "folder/quiz.jsonl", options);
}

std::string message_of(const std::string& text, const TaskOptions& options = {}) {
  try {
    parse(text, options);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Tasks, AClozeAsksForTheLastWord) {
  const Task task = parse("{\"text\": \"One two  three.\\n\"}\n\n{\"text\": \"a b\"}");
  EXPECT_EQ(task.name, "quiz");
  EXPECT_EQ(task.shape, TaskShape::kCloze);
  EXPECT_FALSE(task.has_lengths());
  ASSERT_EQ(task.examples.size(), 2u);
  EXPECT_EQ(task.examples[0].context, "One two ");
  EXPECT_EQ(task.examples[0].continuations, std::vector<std::string>{" three."});
  EXPECT_EQ(task.examples[0].answer, 0);
  EXPECT_EQ(task.examples[1].line, 3);
}

TEST(Tasks, HellaSwagIsCleanedAndPutTogether) {
  const Task task = parse(
      R"({"activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he STARTS", "ctx": "unused", "endings": [" is [substeps] using wrap.", "pulls [title] up"], "label": "1"})"
      "\n"
      R"({"ctx": "[header] How to [title] Begin   now", "endings": ["\u00e9t\u00e9", "b"], "label": 0})");
  EXPECT_EQ(task.shape, TaskShape::kHellaSwag);
  EXPECT_TRUE(task.has_lengths());
  EXPECT_EQ(task.examples[0].context, "Roof shingle removal: A man is sitting on a roof. He starts");
  EXPECT_EQ(task.examples[0].continuations, (std::vector<std::string>{" is using wrap.", " pulls. up"}));
  EXPECT_EQ(task.examples[0].characters, (std::vector<int64_t>{14, 9}));
  EXPECT_EQ(task.examples[0].answer, 1);
  EXPECT_EQ(task.examples[1].context, " How to. Begin  now");
  EXPECT_EQ(task.examples[1].characters[0], 3);  // characters, not bytes
}

TEST(Tasks, MmluByLetterAndByContinuation) {
  const std::string line =
      R"({"question": " Two and two? ", "subject": "abstract_algebra", "choices": ["3", "four"], "answer": "B"})";
  const Task letters = parse(line);
  EXPECT_EQ(letters.shape, TaskShape::kMmluLetters);
  EXPECT_FALSE(letters.has_lengths());
  EXPECT_EQ(letters.examples[0].context,
            "The following are multiple choice questions (with answers) about abstract algebra.\n\nTwo and "
            "two?\nA. "
            "3\nB. four\nAnswer:");
  EXPECT_EQ(letters.examples[0].continuations, (std::vector<std::string>{" A", " B"}));
  EXPECT_EQ(letters.examples[0].answer, 1);

  const Task continuations = parse(line, {.continuation_scoring = true});
  EXPECT_EQ(continuations.shape, TaskShape::kMmluContinuations);
  EXPECT_EQ(continuations.examples[0].context,
            "The following are questions (with answers) about abstract algebra.\n\nQuestion: Two and "
            "two?\nAnswer:");
  EXPECT_EQ(continuations.examples[0].continuations, (std::vector<std::string>{" 3", " four"}));
  EXPECT_EQ(continuations.examples[0].characters, (std::vector<int64_t>{1, 4}));
}

TEST(Tasks, ChoicesGetOneSpace) {
  const Task task = parse(R"({"prompt": "a", "choices": ["b", " c"], "answer": "b"}
{"prompt": "a\n", "choices": ["b", "c"], "answer": "1"}
{"prompt": "", "choices": ["b", "c"], "answer": 1})");
  EXPECT_EQ(task.shape, TaskShape::kChoices);
  EXPECT_EQ(task.examples[0].continuations, (std::vector<std::string>{" b", " c"}));
  EXPECT_EQ(task.examples[0].answer, 0);
  EXPECT_EQ(task.examples[1].continuations, (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(task.examples[1].answer, 1);
  EXPECT_EQ(task.examples[2].continuations[0], "b");
}

TEST(Tasks, ShotsAreShownSolvedAndNotScored) {
  const std::string text = R"({"prompt": "1?", "choices": ["x", "y"], "answer": 1}
{"prompt": "2?", "choices": ["x", "y"], "answer": 0}
{"prompt": "3?", "choices": ["x", "y"], "answer": 0}
{"prompt": "4?", "choices": ["x", "y"], "answer": 0})";
  const Task task = parse(text, {.limit = 1, .shots = 2});
  ASSERT_EQ(task.examples.size(), 1u);
  EXPECT_EQ(task.examples[0].context, "1? y\n\n2? x\n\n3?");
  EXPECT_EQ(task.examples[0].line, 3);
  EXPECT_EQ(message_of(text, {.shots = 4}),
            "folder/quiz.jsonl: has no examples to score beside the 4 that are shown solved");
}

TEST(Tasks, ByteOrderMarksAndCarriageReturnsAreNoMatter) {
  const Task task = parse("\xef\xbb\xbf{\"text\": \"a b\"}\r\n{\"text\": \"c d\"}\r\n");
  ASSERT_EQ(task.examples.size(), 2u);
  EXPECT_EQ(task.examples[1].context, "c");
}

TEST(Tasks, BadLinesAreNamed) {
  const std::string good = "{\"text\": \"a b\"}\n";
  const auto expect = [&](const std::string& text, const std::string& message) {
    EXPECT_NE(message_of(text).find(message), std::string::npos) << message_of(text);
  };
  expect(good + "\n{\"text\": ", "folder/quiz.jsonl:3: not valid JSON");
  expect(good + "[1]", "folder/quiz.jsonl:2: no example of a known task");
  expect(good + "{\"texts\": \"a b\"}", "folder/quiz.jsonl:2: no example of a known task");
  expect(good + R"({"prompt": "a", "choices": ["b", "c"], "answer": 0})",
         "folder/quiz.jsonl:2: is of the shape 'choices'");
  expect("{\"text\": \"word\"}", "folder/quiz.jsonl:1: 'text' has no word before its last one");
  expect("{\"text\": 5}", "folder/quiz.jsonl:1: 'text' is 5, expected a string");
  expect(R"({"ctx": "a", "endings": ["b", "c"]})", "folder/quiz.jsonl:1: 'label' is missing");
  expect(R"({"ctx": "a", "endings": ["b", "c"], "label": 2})", "'label' is 2, expected 0 to 1");
  expect(R"({"ctx": "a", "endings": ["b", "c"], "label": -1})", "'label' is -1, expected 0 to 1");
  expect(R"({"ctx": "a", "endings": ["b", "c"], "label": ""})", "'label' is \"\", expected 0 to 1");
  expect(R"({"ctx": "a", "endings": ["b", "c"], "label": 0.5})", "'label' is 0.5, expected 0 to 1");
  expect(R"({"ctx": "a", "endings": [], "label": 0})", "'endings' has 0 entries, expected 2 to 26");
  expect(R"({"ctx": "a", "endings": ["b"], "label": 0})", "'endings' has 1 entries, expected 2 to 26");
  expect(R"({"ctx": "a", "endings": "bc", "label": 0})", "'endings' is no list of texts");
  expect(R"({"ctx": "a", "endings": ["b", 7], "label": 0})", "'endings' has an entry of type number");
  expect(R"({"ctx": "a", "endings": ["b", "[x]"], "label": 0})", "nothing but brackets");
  expect(R"({"prompt": "a", "choices": ["b", " "], "answer": 0})", "'choices' has an empty text");
  expect(R"({"question": "a", "choices": ["b", "c"], "answer": "C"})",
         "'answer' is \"C\", expected a letter or 0 to 1");
  expect(R"({"question": "a", "choices": ["b", "c"], "answer": 18446744073709551615})",
         "'answer' is 18446744073709551615");
  expect("", "folder/quiz.jsonl: has no examples");
  expect("\n \n", "folder/quiz.jsonl: has no examples");
}

}  // namespace
}  // namespace nibble
