// Tokenizers from GGUF metadata. A tokenizer.json of the fixtures, rewritten as GGUF's converters do, must
// give the same ids.
#include "base/error.h"
#include "io_bad_case.h"
#include "io_samples.h"
#include "tokenizer_testing.h"

namespace nibble {
namespace {

struct Fixture {
  Json json;
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<std::string> tokens;

  explicit Fixture(const std::string& folder)
      : json(parse_json(read_fixture(folder + "/tokenizer.json"), folder)),
        tokenizer(Tokenizer::open(std::filesystem::path(NIBBLE_TEST_DATA) / folder)) {
    for (int32_t id = 0; id < tokenizer->vocabulary_size(); ++id) tokens.push_back(tokenizer->token_text(id));
  }
};

Json byte_level_metadata(const Fixture& from, const std::string& pre) {
  Json merges = Json::array(), types = Json::array();
  for (const Json& merge : from.json.at("model").at("merges")) {
    merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  for (size_t id = 0; id < from.tokens.size(); ++id)
    types.push_back(from.tokenizer->is_special(static_cast<int32_t>(id)) ? 3 : 1);
  return {{"tokenizer.ggml.model", "gpt2"},       {"tokenizer.ggml.pre", pre},
          {"tokenizer.ggml.tokens", from.tokens}, {"tokenizer.ggml.merges", merges},
          {"tokenizer.ggml.token_type", types},   {"tokenizer.ggml.bos_token_id", 0},
          {"tokenizer.ggml.eos_token_id", 1},     {"tokenizer.chat_template", "T"}};
}

// Tokens made by merges score minus their rank, as in a SentencePiece model that BPE trained.
Json sentencepiece_metadata(const Fixture& from) {
  std::vector<double> scores(from.tokens.size(), -1e6);
  std::vector<int> types(from.tokens.size(), 1);
  int rank = 0;
  for (const Json& merge : from.json.at("model").at("merges")) {
    const std::string made = merge[0].get<std::string>() + merge[1].get<std::string>();
    double& score = scores[static_cast<size_t>(from.tokenizer->token_id(made))];
    score = std::max(score, static_cast<double>(-rank++));
  }
  types[0] = 2;
  types[1] = types[2] = 3;
  for (size_t id = 0; id < types.size(); ++id) {
    if (from.tokens[id].starts_with("<0x")) types[id] = 6;
  }
  return {{"tokenizer.ggml.model", "llama"},   {"tokenizer.ggml.tokens", from.tokens},
          {"tokenizer.ggml.scores", scores},   {"tokenizer.ggml.token_type", types},
          {"tokenizer.ggml.bos_token_id", 1u}, {"tokenizer.ggml.eos_token_id", 2u}};
}

void expect_same_ids(const Tokenizer& got, const Tokenizer& expected) {
  std::mt19937 random(5);
  std::vector<std::string> texts = {"", " ", "Hello world", "  two  spaces\n\nand lines\t",
                                    "It's we'll they'd I'M 1234567"};
  texts.push_back(read_fixture("text/valid.txt").substr(0, 20000));
  for (int i = 0; i < 300; ++i) texts.push_back(random_text(random, 20));
  for (const std::string& text : texts) {
    SCOPED_TRACE(::testing::PrintToString(text.substr(0, 200)));
    const std::vector<int32_t> ids = expected.encode(text);
    ASSERT_EQ(got.encode(text), ids);
    ASSERT_EQ(got.decode(ids), expected.decode(ids));
  }
}

TEST(GgufTokenizer, ByteLevelAgreesWithTokenizerJson) {
  const Fixture llama3("tiny/mistral");
  const auto tokenizer = Tokenizer::from_gguf(byte_level_metadata(llama3, "llama-bpe"), "test");
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_EQ(tokenizer->eos_id(), 1);
  EXPECT_EQ(tokenizer->chat_template(), "T");
  EXPECT_TRUE(tokenizer->is_special(0));
  expect_same_ids(*tokenizer, *llama3.tokenizer);
  const Fixture qwen2("tiny/qwen2");
  expect_same_ids(*Tokenizer::from_gguf(byte_level_metadata(qwen2, "qwen2"), "test"), *qwen2.tokenizer);
}

TEST(GgufTokenizer, SentencePieceAgreesWithTokenizerJson) {
  const Fixture llama("tiny/llama");
  const auto tokenizer = Tokenizer::from_gguf(sentencepiece_metadata(llama), "test");
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  expect_same_ids(*tokenizer, *llama.tokenizer);
}

TEST(GgufTokenizer, FollowsTheFlags) {
  Json metadata = sentencepiece_metadata(Fixture("tiny/llama"));
  metadata["tokenizer.ggml.add_bos_token"] = false;
  metadata["tokenizer.ggml.add_eos_token"] = true;
  metadata["tokenizer.ggml.add_space_prefix"] = false;
  metadata["tokenizer.ggml.token_type"][700] = 4;
  const auto tokenizer = Tokenizer::from_gguf(metadata, "test");
  const std::vector<int32_t> ids = tokenizer->encode("a");
  EXPECT_EQ(ids, (std::vector<int32_t>{tokenizer->token_id("a"), 2}));
  EXPECT_EQ(tokenizer->decode(encode_plain(*tokenizer, " a")), " a");
  // A user-defined token is found in text, also without parse_special; a control token is not.
  const std::string text = "x" + tokenizer->token_text(700) + "<s>";
  const std::vector<int32_t> parsed = tokenizer->encode(text, {.add_special = false, .parse_special = false});
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), 700), 1);
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), 1), 0);
  // Some files write -1 for "none"; ids outside the vocabulary are ignored.
  metadata["tokenizer.ggml.bos_token_id"] = 4294967295u;
  metadata["tokenizer.ggml.eos_token_id"] = 5000;
  EXPECT_EQ(Tokenizer::from_gguf(metadata, "test")->bos_id(), -1);
  EXPECT_EQ(Tokenizer::from_gguf(metadata, "test")->eos_id(), -1);
  EXPECT_EQ(Tokenizer::from_gguf(metadata, "test")->encode("").size(), 0u);
}

TEST(GgufTokenizer, KnowsTheNamedPreTokenizers) {
  const Fixture fixture("tiny/mistral");
  std::mt19937 random(9);
  const std::string text = random_text(random, 400) + " it's 12345 x=…, 漢字かな 한국어\r\n\n  (end)  ";
  for (const char* name :
       {"default",          "gpt-2",        "phi-2",          "mpt",          "olmo",        "jais",
        "smollm",           "starcoder",    "refact",         "command-r",    "codeshell",   "exaone",
        "falcon",           "bloom",        "poro-chat",      "gpt3-finnish", "viking",      "llama3",
        "llama-bpe",        "dbrx",         "smaug-bpe",      "glm4",         "chatglm-bpe", "qwen2",
        "deepseek-r1-qwen", "stablelm2",    "hunyuan",        "qwen35",       "gpt-4o",      "llama4",
        "tekken",           "deepseek-llm", "deepseek-coder", "deepseek-v3",  "bailingmoe",  "seed-coder",
        "exaone-moe"}) {
    SCOPED_TRACE(name);
    const auto tokenizer = Tokenizer::from_gguf(byte_level_metadata(fixture, name), "test");
    const std::string back = tokenizer->decode(encode_plain(*tokenizer, text));
    EXPECT_TRUE(back == text || back == normalize_utf8(text, NormalizationForm::kNfc));
  }
}

// Digits and spaces tell the families apart.
TEST(GgufTokenizer, PreTokenizersCutAsTheModelsDo) {
  const auto words = [](const char* pre, const std::string& text, const std::vector<std::string>& known) {
    Json base = byte_level_tokenizer();
    std::vector<std::string> tokens(256);
    for (const auto& [token, id] : base["model"]["vocab"].items()) tokens[id.get<size_t>()] = token;
    Json merges = Json::array();
    // Every word becomes reachable by merging its bytes from left to right.
    for (const std::string& word : known) {
      std::string token;
      append_byte_level(token, word.substr(0, 1));
      for (size_t i = 1; i < word.size(); ++i) {
        std::string next;
        append_byte_level(next, word.substr(i, 1));
        merges.push_back(token + " " + next);
        token += next;
        if (std::find(tokens.begin(), tokens.end(), token) == tokens.end()) tokens.push_back(token);
      }
    }
    const auto tokenizer = Tokenizer::from_gguf({{"tokenizer.ggml.model", "gpt2"},
                                                 {"tokenizer.ggml.pre", pre},
                                                 {"tokenizer.ggml.tokens", tokens},
                                                 {"tokenizer.ggml.merges", merges}},
                                                "test");
    std::vector<std::string> pieces;
    for (const int32_t id : encode_plain(*tokenizer, text))
      pieces.push_back(tokenizer->decode(std::vector<int32_t>{id}));
    return pieces;
  };
  using Words = std::vector<std::string>;
  const std::string text = " 12345";
  EXPECT_EQ(words("gpt-2", text, {" 12345"}), (Words{" 12345"}));
  EXPECT_EQ(words("smollm", text, {" 12345", "12345"}), (Words{" ", "1", "2", "3", "4", "5"}));
  EXPECT_EQ(words("falcon", text, {" 12345", "12345", "123", "45"}), (Words{" ", "123", "45"}));
  EXPECT_EQ(words("llama-bpe", text, {" 12345", "12345", "123", "45"}), (Words{" ", "123", "45"}));
  EXPECT_EQ(words("qwen2", text, {" 12345", "12345"}), (Words{" ", "1", "2", "3", "4", "5"}));
  EXPECT_EQ(words("bloom", text, {" 12345"}), (Words{" 12345"}));
}

TEST(GgufTokenizer, OpensFilesOfUnknownArchitecture) {
  const testing::TemporaryFolder folder;
  samples::Gguf file;
  file.text("general.architecture", "no-such-model")
      .text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", "gpt-2");
  file.texts("tokenizer.ggml.tokens", {"a", "b", "ab"}).texts("tokenizer.ggml.merges", {"a b"});
  write_file(folder.path() / "model.gguf", file.bytes());
  EXPECT_EQ(Tokenizer::open(folder.path() / "model.gguf")->encode("abb"), (std::vector<int32_t>{2, 1}));
  // What a quantized folder keeps of such a source.
  std::filesystem::rename(folder.path() / "model.gguf", folder.path() / "tokenizer.gguf");
  EXPECT_EQ(Tokenizer::open(folder.path())->encode("abb"), (std::vector<int32_t>{2, 1}));
}

TEST(GgufTokenizer, RefusesBrokenMetadata) {
  const Json good = {{"tokenizer.ggml.model", "gpt2"},
                     {"tokenizer.ggml.pre", "gpt-2"},
                     {"tokenizer.ggml.tokens", {"a", "b", "ab"}},
                     {"tokenizer.ggml.token_type", {1, 1, 1}},
                     {"tokenizer.ggml.merges", Json::array({"a b"})}};
  EXPECT_EQ(Tokenizer::from_gguf(good, "test")->encode("ab"), (std::vector<int32_t>{2}));
  const auto refuse = [&](const char* message, const char* key, const Json& value) {
    SCOPED_TRACE(std::string(key) + " = " + value.dump(-1, ' ', true, Json::error_handler_t::replace));
    Json bad = good;
    bad[key] = value;
    expect_error(message, [&] { Tokenizer::from_gguf(bad, "test"); });
  };
  refuse("has no tokenizer", "tokenizer.ggml.model", nullptr);
  refuse("'t5'", "tokenizer.ggml.model", "t5");
  refuse("'bert'", "tokenizer.ggml.model", "bert");
  refuse("expected", "tokenizer.ggml.model", 1);
  refuse("'no-such'", "tokenizer.ggml.pre", "no-such");
  refuse("missing or empty", "tokenizer.ggml.tokens", nullptr);
  refuse("missing or empty", "tokenizer.ggml.tokens", Json::array());
  refuse("expected an array", "tokenizer.ggml.tokens", "a");
  refuse("expected a string", "tokenizer.ggml.tokens", {"a", "b", 3});
  refuse("two ids", "tokenizer.ggml.tokens", {"a", "b", "a"});
  refuse("UTF-8", "tokenizer.ggml.tokens", {"a", "b", std::string(1, '\xFF')});
  refuse("3 tokens", "tokenizer.ggml.token_type", {1, 1});
  refuse("not an integer", "tokenizer.ggml.token_type", {1, 1, "x"});
  refuse("'tokenizer.ggml.merges' is missing", "tokenizer.ggml.merges", nullptr);
  refuse("two tokens", "tokenizer.ggml.merges", Json::array({"ab"}));
  refuse("two tokens", "tokenizer.ggml.merges", Json::array({"a "}));
  refuse("not in the vocabulary", "tokenizer.ggml.merges", Json::array({"a x"}));
  refuse("not in the vocabulary", "tokenizer.ggml.merges", Json::array({"b a"}));
  refuse("expected a string", "tokenizer.ggml.merges", Json::array({7}));
  refuse("bos_token_id", "tokenizer.ggml.bos_token_id", "a");

  Json scores = {{"tokenizer.ggml.model", "llama"}, {"tokenizer.ggml.tokens", {"a", "b", "ab"}}};
  EXPECT_EQ(Tokenizer::from_gguf(scores, "test")->encode("ab", {.add_special = false}).back(), 2);
  scores["tokenizer.ggml.scores"] = {0.0, 1.0};
  expect_error("3 tokens", [&] { Tokenizer::from_gguf(scores, "test"); });
  scores["tokenizer.ggml.scores"] = {0.0, 1.0, "x"};
  expect_error("not a number", [&] { Tokenizer::from_gguf(scores, "test"); });
  scores["tokenizer.ggml.scores"] = {0.0, 1.0, std::nan("")};
  expect_error("not a number", [&] { Tokenizer::from_gguf(scores, "test"); });
  expect_error("no metadata", [] { Tokenizer::from_gguf(nullptr, "test"); });
}

}  // namespace
}  // namespace nibble
