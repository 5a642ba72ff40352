// Decoding id by id gives the text of decoding all at once, in whole characters.
#include "base/error.h"
#include "tokenizer_testing.h"

namespace nibble {
namespace {

// Ids at random, byte tokens and others in turn, so that characters break in every way.
std::vector<int32_t> random_ids(std::mt19937& random, int64_t vocabulary) {
  std::vector<int32_t> ids(random() % 24);
  for (int32_t& id : ids) {
    const auto limit =
        static_cast<uint32_t>(random() % 2 == 0 ? vocabulary : std::min<int64_t>(vocabulary, 300));
    id = static_cast<int32_t>(random() % limit);
  }
  return ids;
}

void expect_streams_like_decode(const Tokenizer& tokenizer, uint32_t seed) {
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> ids;
    if (round % 4 == 0) {
      ids = tokenizer.encode(random_text(random, 12));
    } else {
      ids = random_ids(random, tokenizer.vocabulary_size());
    }
    const bool skip_special = round % 2 == 0;
    const std::string whole = tokenizer.decode(ids, skip_special);
    ASSERT_TRUE(is_valid_utf8(whole));

    const size_t prompt = ids.empty() ? 0 : random() % (ids.size() + 1);
    StreamDecoder all(tokenizer, skip_special), rest(tokenizer, skip_special),
        before(tokenizer, skip_special);
    std::string streamed, head, tail;
    rest.prime(std::span(ids).first(prompt));
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::string part = all.push(ids[i]);
      ASSERT_TRUE(is_valid_utf8(part));
      streamed += part;
      if (i < prompt) head += before.push(ids[i]);
      if (i >= prompt) tail += rest.push(ids[i]);
    }
    streamed += all.finish();
    tail += rest.finish();
    ASSERT_EQ(streamed, whole);
    ASSERT_EQ(head + tail, whole) << "primed with " << prompt << " of " << ids.size();
  }
}

Json sequence(std::vector<Json> decoders) { return {{"type", "Sequence"}, {"decoders", decoders}}; }
Json replace(const char* pattern, const char* content) {
  return {{"type", "Replace"}, {"pattern", {{"String", pattern}}}, {"content", content}};
}

TEST(StreamDecoder, AgreesWithDecodeForTheFixtures) {
  const std::filesystem::path data = NIBBLE_TEST_DATA;
  uint32_t seed = 1;
  for (const char* folder : {"tiny/llama", "tiny/mistral", "tiny/qwen2"}) {
    SCOPED_TRACE(folder);
    expect_streams_like_decode(*Tokenizer::open(data / folder), seed++);
  }
}

TEST(StreamDecoder, AgreesWithDecodeForEveryDecoder) {
  Json tokenizer = parse_json(read_fixture("tiny/llama/tokenizer.json"), "tokenizer");
  const Json decoders[] = {
      nullptr,
      {{"type", "ByteFallback"}},
      {{"type", "Fuse"}},
      {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}},
      {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "never"}},
      {{"type", "Strip"}, {"content", "▁"}, {"start", 1}, {"stop", 2}},
      sequence({{{"type", "ByteFallback"}},
                {{"type", "Fuse"}},
                replace("he", "HE!"),
                replace("▁▁", "="),
                {{"type", "Strip"}, {"content", "e"}, {"start", 2}, {"stop", 3}}}),
      {{"type", "Replace"}, {"pattern", {{"Regex", "[ae]+"}}}, {"content", "_"}},
  };
  uint32_t seed = 10;
  for (const Json& decoder : decoders) {
    SCOPED_TRACE(decoder.dump());
    tokenizer["decoder"] = decoder;
    expect_streams_like_decode(*load(tokenizer), seed++);
  }
}

TEST(StreamDecoder, HoldsBackUnfinishedCharacters) {
  const auto tokenizer = load(byte_level_tokenizer());
  StreamDecoder stream(*tokenizer);
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0x99), "");
  EXPECT_EQ(stream.push(0x82), "🙂");
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.push('a'),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_THROW(stream.push(256), Error);
}

// A prompt may end in the middle of a character, and SentencePiece drops a space only at the very start.
TEST(StreamDecoder, JoinsPromptAndContinuation) {
  const auto llama = Tokenizer::open(std::filesystem::path(NIBBLE_TEST_DATA) / "tiny/llama");
  const std::vector<int32_t> prompt = encode_plain(*llama, "Hello");
  const std::vector<int32_t> next = encode_plain(*llama, "world");
  StreamDecoder stream(*llama);
  stream.prime(prompt);
  std::string text;
  for (const int32_t id : next) text += stream.push(id);
  EXPECT_EQ(text + stream.finish(), " world");

  StreamDecoder split(*llama);
  split.prime(std::vector<int32_t>{llama->token_id("<0xC3>")});
  EXPECT_EQ(split.push(llama->token_id("<0xA9>")), "é");
}

TEST(Decode, ByteTokensThatAreNoCharacterSpoilOnlyThemselves) {
  const auto llama = Tokenizer::open(std::filesystem::path(NIBBLE_TEST_DATA) / "tiny/llama");
  const auto text = [&](std::vector<const char*> tokens) {
    std::vector<int32_t> ids;
    for (const char* token : tokens) ids.push_back(llama->token_id(token));
    return llama->decode(ids);
  };
  EXPECT_EQ(text({"<0xC3>", "<0xA9>", "<0xFF>"}), "é\xEF\xBF\xBD");
  EXPECT_EQ(text({"<0xE4>", "<0xBD>", "a"}),
            "\xEF\xBF\xBD\xEF\xBF\xBD"
            "a");
}

}  // namespace
}  // namespace nibble
