#include <gtest/gtest.h>

#include <string>

#include "io/json.h"
#include "io/printable.h"
#include "unit/io_bad_case.h"
#include "unit/io_samples.h"

namespace nibble {
namespace {

std::string nested(int depth) {
  return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
}

TEST(Json, BuildsTheSameDocumentAsThePlainParser) {
  const std::string text =
      R"({"a":[1,-2,3.5e2,true,null,{"b":[],"c":{}}],"text":"\u00e9\n\"","big":18446744073709551615,"empty":""})";
  EXPECT_EQ(parse_json(text, "t"), Json::parse(text));
  EXPECT_EQ(parse_json(" 7 ", "t"), Json(7));
  EXPECT_EQ(parse_json("\"x\"", "t"), Json("x"));
}

TEST(Json, DepthLimitIsExact) {
  EXPECT_NO_THROW(parse_json(nested(64), "t"));
  expect_error("deeper than 64", [] { parse_json(nested(65), "t"); });
  expect_error("deeper than 3", [] { parse_json(R"({"a":[{"b":[]}]})", "t", {.max_depth = 3}); });
}

TEST(Json, CommentsOnlyWhereAllowed) {
  const std::string text = "// note\n{\"a\": /* one */ 1}";
  EXPECT_EQ(parse_json(text, "t", {.allow_comments = true}), Json({{"a", 1}}));
  expect_error("not valid JSON", [&] { parse_json(text, "t"); });
}

TEST(Json, SizeLimit) {
  expect_error("more than the limit", [] { parse_json("[1,2,3]", "t", {.max_bytes = 6}); });
}

TEST(Json, ValueLimitCountsEverything) {
  EXPECT_NO_THROW(parse_json("[1,{\"a\":2}]", "t", {.max_values = 4}));
  expect_error("more than 3 values", [] { parse_json("[1,{\"a\":2}]", "t", {.max_values = 3}); });
}

class BadJson : public testing::TestWithParam<BadCase> {};
TEST_P(BadJson, IsRefused) {
  expect_error("file.json", [] { parse_json(GetParam().bytes, "file.json"); });
  expect_error(GetParam().message, [] { parse_json(GetParam().bytes, "file.json"); });
}
INSTANTIATE_TEST_SUITE_P(
    Table, BadJson,
    testing::Values(BadCase{"Empty", "", "not valid JSON"},
                    BadCase{"Truncated", "{\"a\": 1", "not valid JSON"},
                    BadCase{"TrailingText", "{} x", "not valid JSON"},
                    BadCase{"TrailingComma", "[1,]", "not valid JSON"},
                    BadCase{"NotANumber", "[NaN]", "not valid JSON"},
                    BadCase{"NumberTooLarge", "[1e999]", "not valid JSON"},
                    BadCase{"DuplicateKey", R"({"a":1,"b":{"c":1,"c":2}})", "key 'c' appears twice"},
                    BadCase{"DuplicateKeyByEscape", R"({"a":1,"\u0061":2})", "key 'a' appears twice"},
                    BadCase{"InvalidUtf8", "[\"\xff\"]", "not valid JSON"},
                    BadCase{"OverlongUtf8", "[\"\xc0\xaf\"]", "not valid JSON"},
                    BadCase{"LoneSurrogate", R"(["\ud800"])", "not valid JSON"},
                    BadCase{"ControlCharacter", "[\"a\nb\"]", "not valid JSON"},
                    BadCase{"NulByte", std::string("[1\0]", 4), "not valid JSON"},
                    BadCase{"DeepArrays", std::string(1 << 20, '['), "deeper than"},
                    BadCase{"DeepObjects",
                            [] {
                              std::string text;
                              for (int i = 0; i < 100000; ++i) text += "{\"a\":";
                              return text;
                            }(),
                            "deeper than"}),
    bad_case_name);

TEST(Json, TypedAccess) {
  const Json object = parse_json(
      R"({"int":-5,"big":9223372036854775808,"real":2.5,"whole":3,"yes":true,"text":"t","none":null,"list":[1]})",
      "t");
  EXPECT_EQ(json_int(object, "int", std::nullopt, "t"), -5);
  EXPECT_EQ(json_int(object, "absent", 7, "t"), 7);
  EXPECT_EQ(json_int(object, "none", 8, "t"), 8);
  EXPECT_EQ(json_number(object, "real", std::nullopt, "t"), 2.5);
  EXPECT_EQ(json_number(object, "whole", std::nullopt, "t"), 3.0);
  EXPECT_TRUE(json_bool(object, "yes", std::nullopt, "t"));
  EXPECT_FALSE(json_bool(object, "absent", false, "t"));
  EXPECT_EQ(json_string(object, "text", std::nullopt, "t"), "t");
  EXPECT_EQ(json_string(object, "absent", "d", "t"), "d");

  expect_error("t: 'real' is 2.5, expected an integer", [&] { json_int(object, "real", 1, "t"); });
  expect_error("t: 'big' is 9223372036854775808, expected an integer below 2^63",
               [&] { json_int(object, "big", 1, "t"); });
  expect_error("t: 'text' is \"t\", expected an integer", [&] { json_int(object, "text", 1, "t"); });
  expect_error("t: 'absent' is missing", [&] { json_int(object, "absent", std::nullopt, "t"); });
  expect_error("t: 'none' is missing", [&] { json_string(object, "none", std::nullopt, "t"); });
  expect_error("t: 'list' is an array, expected a number", [&] { json_number(object, "list", 1.0, "t"); });
  expect_error("t: 'int' is -5, expected true or false", [&] { json_bool(object, "int", true, "t"); });
  expect_error("t: 'yes' is true, expected a string", [&] { json_string(object, "yes", "", "t"); });
  expect_error("expected an object that holds 'a', found array",
               [] { json_int(Json::array(), "a", 1, "t"); });
}

TEST(Json, MessagesShowNoControlCharacters) {
  const Json object = {{"a", "\x1b[31m"}};
  try {
    json_int(object, "a", 1, "t");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\x1b'), std::string::npos);
  }
}

TEST(Json, ReadsFiles) {
  const samples::TemporaryFolder folder;
  EXPECT_EQ(read_json_file(folder.write("a.json", "[1]")), Json::array({1}));
  expect_error("empty.json: not valid JSON", [&] { read_json_file(folder.write("empty.json", "")); });
  expect_error("cannot open", [&] { read_json_file(folder.path() / "absent.json"); });
  expect_error("not a regular file", [&] { read_json_file(folder.path()); });
}

TEST(Printable, EscapesAndCuts) {
  EXPECT_EQ(printable("a b~"), "a b~");
  EXPECT_EQ(printable(std::string("\x00\x1b\x7f\xc3\xa9", 5)), "\\x00\\x1b\\x7f\\xc3\\xa9");
  EXPECT_EQ(printable("abcdef", 3), "abc...");
}

}  // namespace
}  // namespace nibble
