// The parts of tokenizer.json one by one. What is expected was checked against `tokenizers` 0.23.
#include "base/error.h"
#include "base/log.h"
#include "tokenizer_testing.h"

namespace nibble {
namespace {

// The pieces that text is cut into: a vocabulary without merges gives one id per byte, so cuts are made
// visible by a model that knows all words of the test as one token (ignore_merges).
class WordsTokenizer {
 public:
  explicit WordsTokenizer(Json tokenizer) : tokenizer_(std::move(tokenizer)) {
    tokenizer_["model"]["ignore_merges"] = true;
  }
  WordsTokenizer& words(const std::vector<std::string>& words) {
    for (const std::string& word : words) {
      std::string token;
      append_byte_level(token, word);
      Json& vocab = tokenizer_["model"]["vocab"];
      if (!vocab.contains(token)) vocab[token] = vocab.size();
    }
    return *this;
  }
  std::vector<std::string> cut(std::string_view text) const {
    const auto tokenizer = load(tokenizer_);
    std::vector<std::string> pieces;
    for (const int32_t id : encode_plain(*tokenizer, text)) {
      std::string bytes;
      append_byte_level_bytes(bytes, tokenizer->token_text(id));
      pieces.push_back(bytes);
    }
    return pieces;
  }

 private:
  Json tokenizer_;
};

using Words = std::vector<std::string>;

// Cuts `text` with `pre_tokenizer` before the bytes; every expected piece is made a token, and so is the
// whole text.
void expect_cut(const Json& pre_tokenizer, const std::string& text, const Words& expected) {
  SCOPED_TRACE(pre_tokenizer.dump());
  Json tokenizer = byte_level_tokenizer();
  tokenizer["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {pre_tokenizer, byte_level()}}};
  Words all = expected;
  all.push_back(text);
  EXPECT_EQ(WordsTokenizer(tokenizer).words(all).cut(text), expected);
}

Json split(const char* kind, const char* pattern, const char* behavior, bool invert = false) {
  return {{"type", "Split"}, {"pattern", {{kind, pattern}}}, {"behavior", behavior}, {"invert", invert}};
}

TEST(PreTokenizers, SplitByEveryBehavior) {
  const std::string text = "the-final--countdown";
  expect_cut(split("String", "-", "Removed"), text, {"the", "final", "countdown"});
  expect_cut(split("String", "-", "Isolated"), text, {"the", "-", "final", "-", "-", "countdown"});
  expect_cut(split("String", "-", "MergedWithPrevious"), text, {"the-", "final-", "-", "countdown"});
  expect_cut(split("String", "-", "MergedWithNext"), text, {"the", "-final", "-", "-countdown"});
  expect_cut(split("String", "-", "Contiguous"), text, {"the", "-", "final", "--", "countdown"});
  expect_cut(split("Regex", "[a-z]+", "Isolated", true), text, {"the", "-", "final", "--", "countdown"});
  expect_cut(split("Regex", "[a-z]+", "Removed", true), text, {"the", "final", "countdown"});
  expect_cut(split("Regex", "[a-z]+", "Removed"), text, {"-", "--"});
  expect_cut(split("Regex", "x*", "Isolated"), "abxx", {"a", "b", "xx"});
}

TEST(PreTokenizers, CutByCharacterProperties) {
  expect_cut({{"type", "Digits"}, {"individual_digits", true}}, "ab12½", {"ab", "1", "2", "½"});
  expect_cut({{"type", "Digits"}, {"individual_digits", false}}, "ab12½", {"ab", "12½"});
  expect_cut({{"type", "Punctuation"}, {"behavior", "Contiguous"}}, "a…!$b", {"a", "…!$", "b"});
  expect_cut({{"type", "Punctuation"}}, "a!!b", {"a", "!", "!", "b"});
  expect_cut({{"type", "WhitespaceSplit"}}, " a-b\xE3\x80\x80 c", {"a-b", "c"});
  expect_cut({{"type", "Whitespace"}}, "it's x\xE2\x80\x8Dy_1 !?",
             {"it", "'", "s", "x\xE2\x80\x8Dy_1", "!?"});
}

TEST(PreTokenizers, ByteLevelCutsAndPrefixes) {
  Json tokenizer = byte_level_tokenizer();
  tokenizer["pre_tokenizer"] = byte_level(true);
  EXPECT_EQ(
      WordsTokenizer(tokenizer).words({"it", "'s", " 12", " a", "\n\n", " b", "  "}).cut("it's 12 a\n\n b  "),
      (Words{"it", "'s", " 12", " a", "\n\n", " b", "  "}));
  tokenizer["pre_tokenizer"] = byte_level(true, true);
  EXPECT_EQ(WordsTokenizer(tokenizer).words({"it", " it", " x"}).cut("it x"), (Words{" it", " x"}));
}

TEST(PreTokenizers, MetaspacePrependsByScheme) {
  for (const auto& [scheme, expected] : {std::pair<std::string, Words>{"always", {"▁a", "▁b", "T", "▁c"}},
                                         {"first", {"▁a", "▁b", "T", "c"}},
                                         {"never", {"a", "▁b", "T", "c"}}}) {
    Json vocab = {{"a", 0}, {"b", 1}, {"c", 2}, {"▁", 3}, {"▁a", 4}, {"▁b", 5}, {"▁c", 6}};
    const Json tokenizer = {
        {"added_tokens", Json::array({{{"id", 7}, {"content", "T"}, {"special", true}}})},
        {"pre_tokenizer",
         {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", true}}},
        {"model",
         {{"type", "BPE"},
          {"vocab", vocab},
          {"merges", Json::array({"▁ a", "▁ b", "▁ c"})},
          {"unk_token", nullptr}}}};
    const auto loaded = load(tokenizer);
    Words got;
    for (const int32_t id : encode_plain(*loaded, "a bTc")) got.push_back(loaded->token_text(id));
    EXPECT_EQ(got, expected) << scheme;
  }
}

std::string normalized(const Json& normalizer, const std::string& text) {
  Json tokenizer = byte_level_tokenizer();
  tokenizer["normalizer"] = normalizer;
  const auto loaded = load(tokenizer);
  return loaded->decode(encode_plain(*loaded, text));
}

TEST(Normalizers, DoWhatTheirNamesSay) {
  EXPECT_EQ(normalized({{"type", "NFC"}}, "e\xCC\x81 \xEF\xAC\x81"), "é ﬁ");
  EXPECT_EQ(normalized({{"type", "NFD"}}, "é"), "e\xCC\x81");
  EXPECT_EQ(normalized({{"type", "NFKC"}}, "ﬁ①"), "fi1");
  EXPECT_EQ(normalized({{"type", "NFKD"}}, "ﬁé"), "fie\xCC\x81");
  EXPECT_EQ(normalized({{"type", "NFC"}}, "a\xCC\x81\xCC\xA3"), "ạ\xCC\x81");  // marks in canonical order
  EXPECT_EQ(normalized({{"type", "NFC"}}, "한"), "한");
  EXPECT_EQ(normalized({{"type", "Lowercase"}}, "ÀΣ İ"), "àσ i\xCC\x87");
  EXPECT_EQ(normalized({{"type", "StripAccents"}}, "e\xCC\x81x"), "ex");
  EXPECT_EQ(normalized({{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}}, "\n a b\xC2\xA0 "),
            "a b");
  EXPECT_EQ(normalized({{"type", "Strip"}, {"strip_left", false}, {"strip_right", true}}, " a "), " a");
  EXPECT_EQ(normalized({{"type", "Prepend"}, {"prepend", "_"}}, "ab"), "_ab");
  EXPECT_EQ(normalized({{"type", "Prepend"}, {"prepend", "_"}}, ""), "");
  EXPECT_EQ(normalized({{"type", "Replace"}, {"pattern", {{"String", "aa"}}}, {"content", "b"}}, "aaaaa"),
            "bba");
  EXPECT_EQ(
      normalized({{"type", "Replace"}, {"pattern", {{"Regex", "[aeiou]+"}}}, {"content", "$1"}}, "queue"),
      "q$1");
  EXPECT_EQ(
      normalized({{"type", "Sequence"},
                  {"normalizers", {{{"type", "NFD"}}, {{"type", "StripAccents"}}, {{"type", "Lowercase"}}}}},
                 "ÉÀ"),
      "ea");
}

Json added(int id, const std::string& content, const Json& flags = Json::object()) {
  Json token = {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", false}};
  token.update(flags);
  return token;
}

TEST(AddedTokens, AreFoundLeftmostLongestWithTheirFlags) {
  Json tokenizer = byte_level_tokenizer();
  tokenizer["normalizer"] = {{"type", "Lowercase"}};
  tokenizer["added_tokens"] = {added(256, "<a>"),
                               added(257, "<a>b"),
                               added(258, "a>"),
                               added(259, "[L]", {{"lstrip", true}}),
                               added(260, "[R]", {{"rstrip", true}}),
                               added(261, "word", {{"single_word", true}}),
                               added(262, "Up", {{"normalized", true}}),
                               added(263, "Raw")};
  const auto loaded = load(tokenizer);
  const auto ids = [&](std::string_view text) { return encode_plain(*loaded, text); };
  EXPECT_EQ(ids("<a>b<a>"), (std::vector<int32_t>{257, 256}));
  EXPECT_EQ(ids("<<a>"), (std::vector<int32_t>{'<', 256}));
  EXPECT_EQ(ids("a>"), (std::vector<int32_t>{258}));
  EXPECT_EQ(ids("x \n[L] y"), (std::vector<int32_t>{'x', 259, ' ', 'y'}));
  EXPECT_EQ(ids("x [R] \ty"), (std::vector<int32_t>{'x', ' ', 260, 'y'}));
  EXPECT_EQ(ids("[R] [L]"), (std::vector<int32_t>{260, 259}));
  EXPECT_EQ(ids("word,wordy word"), (std::vector<int32_t>{261, ',', 'w', 'o', 'r', 'd', 'y', ' ', 261}));
  EXPECT_EQ(ids("UP up uP"), (std::vector<int32_t>{262, ' ', 262, ' ', 262}));
  EXPECT_EQ(ids("Raw raw"), (std::vector<int32_t>{263, ' ', 'r', 'a', 'w'}));
}

TEST(Bpe, UnknownCharactersFollowTheOptions) {
  const auto ids = [](const Json& options) {
    Json model = {{"type", "BPE"},
                  {"vocab", {{"a", 0}, {"?", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}, {"b", 4}}},
                  {"merges", Json::array()}};
    model.update(options);
    return encode_plain(*load({{"model", model}}), "aéüxb");
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(ids(Json::object()), (Ids{0, 4}));
  EXPECT_EQ(ids({{"unk_token", "?"}}), (Ids{0, 1, 1, 1, 4}));
  EXPECT_EQ(ids({{"unk_token", "?"}, {"fuse_unk", true}}), (Ids{0, 1, 4}));
  EXPECT_EQ(ids({{"unk_token", "?"}, {"byte_fallback", true}}), (Ids{0, 2, 3, 1, 1, 4}));
  EXPECT_EQ(ids({{"unk_token", "?"}, {"byte_fallback", true}, {"fuse_unk", true}}), (Ids{0, 2, 3, 1, 4}));
}

TEST(Bpe, PrefixAndSuffixMarkPlacesInWords) {
  const Json tokenizer = {
      {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
      {"model",
       {{"type", "BPE"},
        {"continuing_subword_prefix", "##"},
        {"end_of_word_suffix", "</w>"},
        {"vocab", {{"a", 0}, {"##b", 1}, {"##b</w>", 2}, {"ab</w>", 3}, {"a</w>", 4}, {"##bb</w>", 5}}},
        {"merges", Json::array({"a ##b</w>", "##b ##b</w>"})}}}};
  EXPECT_EQ(encode_plain(*load(tokenizer), "ab a abb"), (std::vector<int32_t>{3, 4, 0, 5}));
}

// Byte-pair encoding as its definition reads: again and again, the pair of lowest rank, the leftmost of
// those.
std::vector<std::string> merge_naively(std::vector<std::string> symbols,
                                       const std::vector<std::pair<std::string, std::string>>& merges) {
  for (;;) {
    size_t best_rank = merges.size(), best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank] == std::pair(symbols[i], symbols[i + 1])) {
          best_rank = rank;
          best = i;
        }
      }
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, AgreesWithTheDefinitionOnWordsOfEveryLength) {
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    while (merges.size() < 30) {
      const std::pair<std::string, std::string> merge{tokens[random() % tokens.size()],
                                                      tokens[random() % tokens.size()]};
      if (merge.first.size() + merge.second.size() > 8) continue;
      if (std::find(merges.begin(), merges.end(), merge) != merges.end()) continue;
      merges.push_back(merge);
      const std::string made = merge.first + merge.second;
      if (std::find(tokens.begin(), tokens.end(), made) == tokens.end()) tokens.push_back(made);
    }
    const auto tokenizer = load(byte_level_tokenizer(merges));
    for (const size_t length : {0, 1, 2, 5, 31, 32, 33, 40, 150}) {
      std::string word;
      std::vector<std::string> symbols;
      for (size_t i = 0; i < length; ++i)
        symbols.push_back(word += static_cast<char>('a' + random() % 3)), symbols.back().erase(0, i);
      std::vector<std::string> got;
      for (const int32_t id : encode_plain(*tokenizer, word)) got.push_back(tokenizer->token_text(id));
      EXPECT_EQ(got, merge_naively(symbols, merges)) << word;
    }
  }
}

TEST(Bpe, LongWordsAreNotQuadratic) {
  std::vector<std::pair<std::string, std::string>> merges = {
      {"a", "a"}, {"aa", "aa"}, {"a", "b"}, {"b", "a"}, {"ab", "ab"}};
  const auto tokenizer = load(byte_level_tokenizer(merges));
  constexpr size_t kLength = 1'000'000;
  std::mt19937 random(3);
  std::string mixed;
  for (size_t i = 0; i < kLength; ++i) mixed += static_cast<char>('a' + random() % 2);
  // Quadratic merging would take hours, not the seconds that ctest allows.
  EXPECT_EQ(encode_plain(*tokenizer, std::string(kLength, 'a')).size(), kLength / 4);
  EXPECT_EQ(tokenizer->decode(encode_plain(*tokenizer, mixed)), mixed);
  const auto llama = Tokenizer::open(std::filesystem::path(NIBBLE_TEST_DATA) / "tiny/llama");
  EXPECT_EQ(llama->decode(encode_plain(*llama, mixed)), mixed);
  const std::string spaces(kLength, ' ');
  EXPECT_EQ(llama->decode(encode_plain(*llama, spaces)), spaces);
}

// A megabyte takes well under a tenth of a second; the bound leaves room for sanitizers and busy machines,
// not for anything that is worse than linear.
TEST(Encode, IsLinearInLongTexts) {
  const std::string book = read_fixture("text/valid.txt");
  std::string text, letters;
  while (text.size() < 4'000'000) text += book;
  for (int i = 0; i < 2'000'000; ++i) letters += i % 2 == 0 ? static_cast<char>('a' + i % 26) : ' ';
  for (const char* folder : {"tiny/llama", "tiny/qwen2"}) {
    const auto tokenizer = Tokenizer::open(std::filesystem::path(NIBBLE_TEST_DATA) / folder);
    for (const std::string* input : {&text, &letters}) {
      const double started = monotonic_seconds();
      const std::vector<int32_t> ids = encode_plain(*tokenizer, *input);
      EXPECT_LT(monotonic_seconds() - started, 15.0);
      EXPECT_EQ(tokenizer->decode(ids), *input);
    }
  }
}

TEST(PostProcessors, PutTokensAround) {
  Json tokenizer = byte_level_tokenizer();
  tokenizer["added_tokens"] = {added(256, "<s>", {{"special", true}}),
                               added(257, "</s>", {{"special", true}})};
  const Json content = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto special = [](const char* name) {
    return Json{{"SpecialToken", {{"id", name}, {"type_id", 0}}}};
  };
  const Json tokens = {{"bos", {{"id", "bos"}, {"ids", {256, 256}}, {"tokens", {"<s>", "<s>"}}}},
                       {"</s>", {{"id", "</s>"}, {"ids", {257}}, {"tokens", {"</s>"}}}}};
  tokenizer["post_processor"] = {{"type", "Sequence"},
                                 {"processors",
                                  {byte_level(),
                                   {{"type", "TemplateProcessing"},
                                    {"single", {special("bos"), content, special("</s>")}},
                                    {"special_tokens", tokens}}}}};
  EXPECT_EQ(load(tokenizer)->encode("x"), (std::vector<int32_t>{256, 256, 'x', 257}));
  EXPECT_EQ(load(tokenizer)->encode("x", {.add_special = false}), (std::vector<int32_t>{'x'}));
  for (const char* type : {"RobertaProcessing", "BertProcessing"}) {
    tokenizer["post_processor"] = {{"type", type}, {"cls", {"<s>", 256}}, {"sep", {"</s>", 257}}};
    EXPECT_EQ(load(tokenizer)->encode("x"), (std::vector<int32_t>{256, 'x', 257}));
  }
  // tokenizer_config.json has the last word, as in transformers.
  const Json config = {{"bos_token", {{"content", "<s>"}}}, {"eos_token", "</s>"}, {"add_bos_token", true}};
  EXPECT_EQ(load(tokenizer, config)->encode("x"), (std::vector<int32_t>{256, 'x'}));
  EXPECT_EQ(load(tokenizer, {{"eos_token", "</s>"}, {"add_eos_token", true}})->encode("x"),
            (std::vector<int32_t>{'x', 257}));
}

TEST(FolderTokenizer, ReadsTheFilesBesideIt) {
  const testing::TemporaryFolder folder;
  Json tokenizer = byte_level_tokenizer();
  tokenizer["added_tokens"] = Json::array({added(256, "<s>", {{"special", true}})});
  write_file(folder.path() / "tokenizer.json", tokenizer.dump());
  write_file(folder.path() / "generation_config.json", R"({"bos_token_id": 256, "eos_token_id": [97, 98]})");
  EXPECT_EQ(Tokenizer::open(folder.path())->bos_id(), 256);
  EXPECT_EQ(Tokenizer::open(folder.path())->eos_id(), 'a');
  EXPECT_EQ(Tokenizer::open(folder.path())->chat_template(), "");

  const Json config = {
      {"bos_token", nullptr},
      {"eos_token", {{"content", "b"}}},
      {"added_tokens_decoder", {{"256", added(256, "<s>")}, {"257", added(257, "<x>", {{"special", true}})}}},
      {"chat_template", {{{"name", "tool"}, {"template", "T"}}, {{"name", "default"}, {"template", "D"}}}}};
  write_file(folder.path() / "tokenizer_config.json", config.dump());
  auto loaded = Tokenizer::open(folder.path());
  EXPECT_EQ(loaded->bos_id(), -1);
  EXPECT_EQ(loaded->eos_id(), 'b');
  EXPECT_TRUE(loaded->is_special('b'));
  EXPECT_EQ(loaded->encode("<x><s>"), (std::vector<int32_t>{257, 256}));
  EXPECT_EQ(loaded->chat_template(), "D");
  write_file(folder.path() / "chat_template.jinja", "J");
  EXPECT_EQ(Tokenizer::open(folder.path())->chat_template(), "J");
}

TEST(FolderTokenizer, ReadsMergesOfBothStyles) {
  Json tokenizer = byte_level_tokenizer({{"a", "b"}, {"ab", "c"}});
  const auto pairs = encode_plain(*load(tokenizer), "abcab");
  tokenizer["model"]["merges"] = {"a b", "ab c"};
  EXPECT_EQ(encode_plain(*load(tokenizer), "abcab"), pairs);
  EXPECT_EQ(pairs, (std::vector<int32_t>{257, 256}));
}

TEST(Encode, AcceptsAnyBytes) {
  const auto tokenizer = load(byte_level_tokenizer());
  const auto text = [&](std::string_view bytes) {
    return tokenizer->decode(encode_plain(*tokenizer, bytes));
  };
  EXPECT_EQ(text("a\xFFz"), "a\xEF\xBF\xBDz");
  EXPECT_EQ(text("\xE4\xBD"), "\xEF\xBF\xBD");  // one unfinished character
  EXPECT_EQ(text("\xE4\xBDz"), "\xEF\xBF\xBDz");
  EXPECT_EQ(text("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
  EXPECT_EQ(text("\xC0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD");                  // overlong
  EXPECT_EQ(text(std::string("\0x", 2)), std::string("\0x", 2));
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    std::string bytes;
    for (size_t i = random() % 40; i > 0; --i) bytes += static_cast<char>(random());
    EXPECT_EQ(text(bytes), sanitize_utf8(bytes));
    EXPECT_TRUE(is_valid_utf8(text(bytes)));
  }
}

}  // namespace
}  // namespace nibble
