// Broken tokenizers end in one message that says what is wrong.
#include "io_bad_case.h"
#include "tokenizer_testing.h"

namespace nibble {
namespace {

class BadTokenizer : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadTokenizer, IsRefused) {
  const testing::TemporaryFolder folder;
  write_file(folder.path() / "tokenizer.json", GetParam().bytes);
  expect_error(GetParam().message, [&] { Tokenizer::open(folder.path()); });
  expect_error("tokenizer.json", [&] { Tokenizer::open(folder.path()); });
}

// The good tokenizer with the value at a path replaced.
std::string with(const char* path, const Json& value) {
  Json tokenizer = byte_level_tokenizer({{"a", "b"}});
  tokenizer[Json::json_pointer(path)] = value;
  return tokenizer.dump();
}
std::string with_vocab(const char* token, const Json& id) {
  Json tokenizer = byte_level_tokenizer({{"a", "b"}});
  tokenizer["model"]["vocab"][token] = id;
  return tokenizer.dump();
}
Json added(const Json& id, const Json& content) {
  return Json::array({{{"id", id}, {"content", content}, {"special", true}}});
}
Json split(const Json& pattern) {
  return {{"type", "Split"}, {"pattern", pattern}, {"behavior", "Isolated"}};
}
// The same object in itself, many times over.
Json nested(const char* key, int depth) {
  Json description = {{"type", "Sequence"}, {key, Json::array()}};
  for (int i = 0; i < depth; ++i) description = {{"type", "Sequence"}, {key, Json::array({description})}};
  return description;
}

INSTANTIATE_TEST_SUITE_P(
    All, BadTokenizer,
    ::testing::Values(
        BadCase{"Empty", "", "not valid JSON"},
        BadCase{"Truncated", byte_level_tokenizer().dump().substr(0, 1000), "not valid JSON"},
        BadCase{"NoObject", "[1, 2]", "expected an object"},
        BadCase{"NoModel", "{}", "model: expected an object"},
        BadCase{"ModelIsText", with("/model", "BPE"), "model: expected an object"},
        BadCase{"WordPiece", with("/model/type", "WordPiece"), "type 'WordPiece' is not supported"},
        BadCase{"Unigram", with("/model/type", "Unigram"), "type 'Unigram' is not supported"},
        BadCase{"WordLevel", with("/model/type", "WordLevel"), "type 'WordLevel' is not supported"},
        BadCase{"TypeIsNumber", with("/model/type", 3), "'type'"},
        BadCase{"VocabIsArray", with("/model/vocab", Json::array()), "'vocab' must be an object"},
        BadCase{"IdIsText", with_vocab("xy", "7"), "expected an integer"},
        BadCase{"IdIsFraction", with_vocab("xy", 7.5), "expected an integer"},
        BadCase{"IdIsNegative", with_vocab("xy", -1), "id -1"},
        BadCase{"IdIsTooLarge", with_vocab("xy", int64_t{1} << 31), "id 2147483648"},
        BadCase{"IdIsHuge", with_vocab("xy", UINT64_MAX), "id 18446744073709551615"},
        BadCase{"IdLeavesAGap", with_vocab("xy", 100'000'000), "id 100000000"},
        BadCase{"IdTwice", with_vocab("xy", 65), "belongs to two tokens"},
        BadCase{"TokenTooLong", with_vocab(std::string(100'000, 'x').c_str(), 300), "bytes long"},
        BadCase{"NoMerges", with("/model/merges", nullptr), "'merges' must be an array"},
        BadCase{"MergeOfOne", with("/model/merges", Json::array({"ab"})), "merge 0 is not two tokens"},
        BadCase{"MergeOfThree", with("/model/merges", Json::array({"a b c"})), "merge 0 is not two tokens"},
        BadCase{"MergeOfNumbers", with("/model/merges", Json::parse("[[1, 2]]")),
                "merge 0 is not two tokens"},
        BadCase{"MergeOfUnknown", with("/model/merges", Json::array({"a b", "q\u00FFx b"})), "merge 1"},
        BadCase{"MergeMakesUnknown", with("/model/merges", Json::array({"a c"})), "makes 'ac'"},
        BadCase{"UnkUnknown", with("/model/unk_token", "<unk>"), "'unk_token'"},
        BadCase{"FuseIsText", with("/model/fuse_unk", "yes"), "'fuse_unk'"},
        BadCase{"PrefixTooLong", with("/model/continuing_subword_prefix", "####"),
                "continuing_subword_prefix"},
        BadCase{"AddedIsObject", with("/added_tokens", Json::object()), "'added_tokens' must be an array"},
        BadCase{"AddedWithoutId", with("/added_tokens", Json::parse(R"([{"content": "x"}])")),
                "'id' is missing"},
        BadCase{"AddedWithoutContent", with("/added_tokens", Json::parse(R"([{"id": 300}])")), "'content'"},
        BadCase{"AddedIdNegative", with("/added_tokens", added(-5, "<x>")), "id -5"},
        BadCase{"AddedIdHuge", with("/added_tokens", added(2147483647, "<x>")), "id 2147483647"},
        BadCase{"AddedIdTaken", with("/added_tokens", added(65, "<x>")), "belongs to two tokens"},
        BadCase{"AddedIsNumber", with("/added_tokens", Json::array({5})),
                "added_tokens[0]: expected an object"},
        BadCase{"NormalizerUnknown", with("/normalizer", {{"type", "Precompiled"}}),
                "normalizer: type 'Precompiled'"},
        BadCase{"NormalizerWithoutType", with("/normalizer", Json::object()), "'type'"},
        BadCase{"NormalizerPatternEmpty",
                with("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}}),
                "is empty"},
        BadCase{"NormalizersNested", with("/normalizer", nested("normalizers", 200)), "tokenizer.json"},
        BadCase{
            "PreTokenizerUnknown",
            with("/pre_tokenizer", {{"type", "Sequence"},
                                    {"pretokenizers", Json::array({byte_level(), {{"type", "Sudachi"}}})}}),
            "pre_tokenizer.pretokenizers[1]: type 'Sudachi'"},
        BadCase{"PreTokenizersMissing", with("/pre_tokenizer", {{"type", "Sequence"}}), "'pretokenizers'"},
        BadCase{"BadRegex", with("/pre_tokenizer", split({{"Regex", "a(b"}})), "regular expression"},
        BadCase{"BadRegexClass", with("/pre_tokenizer", split({{"Regex", "[a"}})), "unterminated class"},
        BadCase{"BadPattern", with("/pre_tokenizer", split("x")), "'pattern' must be"},
        BadCase{
            "BadBehavior",
            with("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Cut"}}),
            "'behavior' is 'Cut'"},
        BadCase{"BadReplacement", with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "__"}}),
                "'replacement'"},
        BadCase{
            "BadScheme",
            with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}}),
            "'prepend_scheme'"},
        BadCase{"DecoderUnknown", with("/decoder", {{"type", "WordPiece"}}), "decoder: type 'WordPiece'"},
        BadCase{
            "DecoderAfterFuse",
            with("/decoder", {{"type", "Sequence"},
                              {"decoders", Json::array({{{"type", "Fuse"}}, {{"type", "ByteFallback"}}})}}),
            "decoder.decoders[1]"},
        BadCase{"DecoderStripNegative",
                with("/decoder", {{"type", "Strip"}, {"content", "x"}, {"start", -1}, {"stop", 0}}),
                "'start' is -1"},
        BadCase{"PostProcessorUnknown", with("/post_processor", {{"type", "Magic"}}),
                "post_processor: type 'Magic'"},
        BadCase{
            "PostProcessorId",
            with("/post_processor", {{"type", "BertProcessing"}, {"cls", {"x", 9999}}, {"sep", {"x", 0}}}),
            "id 9999 is outside"},
        BadCase{"PostProcessorWithoutSequence",
                with("/post_processor", {{"type", "TemplateProcessing"}, {"single", Json::array()}}),
                "0 times"},
        BadCase{"PostProcessorUnknownToken",
                with("/post_processor", {{"type", "TemplateProcessing"},
                                         {"single", Json::parse(R"([{"SpecialToken": {"id": "x"}}])")}}),
                "'special_tokens'"},
        BadCase{"PostProcessorItem",
                with("/post_processor", {{"type", "TemplateProcessing"}, {"single", {1, 2}}}), "neither"}),
    bad_case_name);

TEST(BadFolder, IsRefused) {
  const testing::TemporaryFolder folder;
  expect_error("no tokenizer.json", [&] { Tokenizer::open(folder.path()); });
  write_file(folder.path() / "tokenizer.model", "x");
  expect_error("SentencePiece", [&] { Tokenizer::open(folder.path()); });
  expect_error("neither a model folder nor a GGUF file",
               [&] { Tokenizer::open(folder.path() / "tokenizer.model"); });
  expect_error("missing.gguf", [&] { Tokenizer::open(folder.path() / "missing.gguf"); });
  write_file(folder.path() / "tokenizer.json", byte_level_tokenizer().dump());
  EXPECT_EQ(Tokenizer::open(folder.path())->vocabulary_size(), 256);
  for (const auto& [config, message] : std::vector<std::pair<std::string, std::string>>{
           {"[]", "expected an object"},
           {"{", "not valid JSON"},
           {R"({"bos_token": 5})", "'bos_token'"},
           {R"({"bos_token": {"x": 1}})", "'bos_token'"},
           {R"({"add_bos_token": "yes"})", "'add_bos_token'"},
           {R"({"chat_template": 5})", "'chat_template'"},
           {R"({"chat_template": [{"name": "x"}]})", "'template'"},
           {R"({"added_tokens_decoder": {"x": {"content": "y"}}})", "not an id"},
           {R"({"added_tokens_decoder": {"99999999": {"content": "yy"}}})", "id 99999999"},
           {R"({"added_tokens_decoder": {"300": 5}})", "expected an object"}}) {
    SCOPED_TRACE(config);
    write_file(folder.path() / "tokenizer_config.json", config);
    expect_error(message, [&] { Tokenizer::open(folder.path()); });
    expect_error("tokenizer_config.json", [&] { Tokenizer::open(folder.path()); });
  }
}

// Replaces parts of a good tokenizer at random: each result loads and works, or is refused with an Error.
TEST(BadTokenizers, NeverCrash) {
  std::mt19937 random(17);
  const Json values[] = {nullptr,
                         true,
                         -1,
                         0,
                         1,
                         1 << 30,
                         0.5,
                         "",
                         "▁",
                         "\xC3\xA9",
                         "(",
                         "Sequence",
                         "Regex",
                         "Strip",
                         Json::array(),
                         Json::object(),
                         Json::array({1, "x"}),
                         {{"type", "NFC"}},
                         {{"String", " "}}};
  Json full = parse_json(read_fixture("tiny/llama/tokenizer.json"), "llama");
  // A small vocabulary keeps the loop fast and mutations interesting.
  Json vocab = Json::object();
  for (const auto& [token, id] : full["model"]["vocab"].items()) {
    if (id.get<int>() < 360) vocab[token] = id;
  }
  full["model"]["vocab"] = vocab;
  full["model"]["merges"] = Json::array({"▁ t", "h e"});
  Json& added_tokens = full["added_tokens"];
  added_tokens.erase(added_tokens.begin() + 4, added_tokens.end());
  full["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       Json::array({split({{"Regex", "\\s+"}}), {{"type", "Digits"}, {"individual_digits", true}}})}};
  int loaded = 0, refused = 0;
  for (int round = 0; round < 600; ++round) {
    Json tokenizer = full;
    for (uint32_t changes = 1 + random() % 2; changes > 0; --changes) {
      Json* place = &tokenizer;
      const uint32_t depth = 1 + random() % 5;
      for (uint32_t i = 0; i < depth && place->is_structured() && !place->empty(); ++i) {
        auto item = place->begin();
        std::advance(item, random() % place->size());
        place = &*item;
      }
      *place = values[random() % std::size(values)];
    }
    try {
      const auto made = load(tokenizer);
      const std::vector<int32_t> ids = made->encode("the <s> caf\xC3\xA9 12  \xF0\x9F\x99\x82\n");
      EXPECT_TRUE(is_valid_utf8(made->decode(ids)));
      ++loaded;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(loaded, 50);
  EXPECT_GT(refused, 50);
}

}  // namespace
}  // namespace nibble
