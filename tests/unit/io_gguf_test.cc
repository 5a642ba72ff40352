#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/half.h"
#include "io/gguf.h"
#include "unit/io_bad_case.h"
#include "unit/io_samples.h"

namespace nibble {
namespace {

using samples::Gguf;
using samples::raw;

GgufFile parse(std::string_view bytes) {
  const samples::ExactBytes exact(bytes);
  return parse_gguf(exact.span(), exact.owner(), "file.gguf");
}

std::string f16(float value) { return raw(float_to_f16(value)); }

TEST(Gguf, ReadsEveryMetadataType) {
  Gguf file;
  file.key("u8", Gguf::kU8, raw(uint8_t{200})).key("i8", Gguf::kI8, raw(int8_t{-100}));
  file.key("u16", Gguf::kU16, raw(uint16_t{60000})).key("i16", Gguf::kI16, raw(int16_t{-30000}));
  file.u32("u32", 4000000000u).key("i32", Gguf::kI32, raw(int32_t{-2000000000}));
  file.f32("f32", 0.5f).key("f64", Gguf::kF64, raw(-1e300));
  file.key("u64", Gguf::kU64, raw(UINT64_MAX)).key("i64", Gguf::kI64, raw(INT64_MIN));
  file.key("yes", Gguf::kBool, std::string(1, '\1')).key("no", Gguf::kBool, std::string(1, '\0'));
  file.text("text", "caf\xc3\xa9").texts("texts", {"", "a", "bc"});
  file.key("numbers", Gguf::kArray,
           raw(uint32_t{Gguf::kI32}) + raw(uint64_t{2}) + raw(int32_t{-1}) + raw(int32_t{7}));
  for (const uint32_t version : {2u, 3u}) {
    file.version = version;
    const GgufFile parsed = parse(file.bytes());
    EXPECT_EQ(parsed.version, version);
    EXPECT_EQ(parsed.metadata, Json({{"u8", 200},
                                     {"i8", -100},
                                     {"u16", 60000},
                                     {"i16", -30000},
                                     {"u32", 4000000000u},
                                     {"i32", -2000000000},
                                     {"f32", 0.5},
                                     {"f64", -1e300},
                                     {"u64", UINT64_MAX},
                                     {"i64", INT64_MIN},
                                     {"yes", true},
                                     {"no", false},
                                     {"text", "caf\xc3\xa9"},
                                     {"texts", {"", "a", "bc"}},
                                     {"numbers", {-1, 7}}}));
  }
}

TEST(Gguf, KeepsInvalidUtf8AsItIs) {
  const GgufFile file = parse(Gguf().text("a", "\xff\x00").texts("b", {"\x80"}).bytes());
  EXPECT_EQ(file.metadata.at("b")[0].get<std::string>(), "\x80");
  EXPECT_NO_THROW(file.metadata.dump(-1, ' ', true, Json::error_handler_t::replace));
}

TEST(Gguf, ReadsTensorsWithReversedShape) {
  const GgufFile file = parse(samples::llama_gguf_with_tensors().bytes());
  ASSERT_EQ(file.tensors.size(), 7u);
  EXPECT_EQ(file.tensors[0].name, "token_embd.weight");
  EXPECT_EQ(file.tensors[0].shape, (Shape{4, 8}));
  EXPECT_EQ(file.tensors[0].bytes, 128u);
  EXPECT_EQ(file.tensors[6].shape, (Shape{2, 32}));
  EXPECT_EQ(file.tensors[6].bytes, 68u);
}

TEST(Gguf, HonoursTheAlignment) {
  for (const uint32_t alignment : {1u, 8u, 64u, 4096u}) {
    Gguf file;
    file.alignment = alignment;
    file.u32("general.alignment", alignment).add_f32("a", {1}, {1.5f}).add_f32("b", {3}, {2, 3, 4});
    const std::string bytes = file.bytes();
    const samples::ExactBytes exact(bytes);
    const GgufFile parsed = parse_gguf(exact.span(), exact.owner(), "file.gguf");
    float value = 0;
    std::memcpy(&value, parsed.tensors[1].data + 8, sizeof(value));
    EXPECT_EQ(value, 4.0f);
    EXPECT_EQ((parsed.tensors[1].data - exact.span().data()) % alignment, 0);
  }
}

TEST(Gguf, DecodesBlocks) {
  struct Case {
    uint32_t type;
    std::string head;
    float scale, minimum, zero;
  };
  // Four-bit codes: byte j holds code j % 16 low and 15 - j % 16 high.
  for (const Case& c : {Case{2, f16(0.5f), 0.5f, 0, 8}, Case{3, f16(-0.25f) + f16(3.0f), -0.25f, 3.0f, 0}}) {
    std::string block = c.head;
    for (int j = 0; j < 16; ++j) block += static_cast<char>(j | (15 - j) << 4);
    const GgufType& type = *find_gguf_type(c.type);
    ASSERT_EQ(block.size(), type.bytes_per_block);
    std::vector<float> out(32);
    type.decode(reinterpret_cast<const std::byte*>(block.data()), 1, out.data());
    for (int j = 0; j < 16; ++j) {
      EXPECT_EQ(out[j], (static_cast<float>(j) - c.zero) * c.scale + c.minimum);
      EXPECT_EQ(out[j + 16], (static_cast<float>(15 - j) - c.zero) * c.scale + c.minimum);
    }
  }
  std::string block = f16(2.0f);
  for (int j = 0; j < 32; ++j) block += static_cast<char>(j == 0 ? -128 : j - 16);
  std::vector<float> out(32);
  find_gguf_type(8)->decode(reinterpret_cast<const std::byte*>(block.data()), 1, out.data());
  EXPECT_EQ(out[0], -256.0f);
  for (int j = 1; j < 32; ++j) EXPECT_EQ(out[j], 2.0f * static_cast<float>(j - 16));
}

TEST(Gguf, DecodesAnyRangeOfBlocks) {
  constexpr int kBlocks = 4;
  std::string bytes;
  for (int block = 0; block < kBlocks; ++block) {
    bytes += f16(static_cast<float>(block + 1));
    for (int j = 0; j < 32; ++j) bytes += static_cast<char>(j);
  }
  const samples::ExactBytes exact(bytes);
  for (int first = 0; first <= 32 * kBlocks; ++first) {
    for (int count = 0; first + count <= 32 * kBlocks; ++count) {
      std::vector<float> out(static_cast<size_t>(count));
      decode_gguf_range(*find_gguf_type(8), exact.span().data(), first, count, out.data());
      for (int i = 0; i < count; ++i) {
        const int at = first + i;
        ASSERT_EQ(out[i], static_cast<float>((at / 32 + 1) * (at % 32)));
      }
    }
  }
}

TEST(Gguf, TypeTableIsConsistent) {
  for (uint32_t id = 0; id < 64; ++id) {
    const GgufType* type = find_gguf_type(id);
    if (type == nullptr) continue;
    EXPECT_EQ(type->id, id);
    EXPECT_LE(type->weights_per_block, kMaxGgufBlockWeights);
    EXPECT_EQ(type->plain.has_value(), type->weights_per_block == 1) << type->name;
    if (type->plain) {
      EXPECT_EQ(type->bytes_per_block, dtype_size(*type->plain)) << type->name;
    }
  }
  for (const uint32_t withdrawn : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u})
    EXPECT_EQ(find_gguf_type(withdrawn), nullptr);
}

TEST(Gguf, WritesItsMetadataWithoutTensors) {
  const samples::TemporaryFolder folder;
  const GgufFile file = parse(samples::llama_gguf_with_tensors().bytes());
  write_gguf_metadata(file, folder.path() / "tokenizer.gguf");
  const GgufFile read = parse(samples::read_all(folder.path() / "tokenizer.gguf"));
  EXPECT_EQ(read.metadata, file.metadata);
  EXPECT_TRUE(read.tensors.empty());
  expect_error("cannot be written",
               [&] { write_gguf_metadata(file, folder.path() / "absent" / "tokenizer.gguf"); });
}

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string whole = samples::llama_gguf_with_tensors().bytes();
  ASSERT_NO_THROW(parse(whole));
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(parse(std::string_view(whole).substr(0, size)), Error)
        << size << " of " << whole.size() << " bytes";
  }
}

Gguf with_tensor(Gguf::Tensor tensor) { return Gguf().add(std::move(tensor)); }
std::string array_of(uint32_t type, uint64_t count, std::string_view values = "") {
  return (raw(type) + raw(count)).append(values);
}
Gguf with_alignment(uint32_t alignment) {
  return Gguf().u32("general.alignment", alignment).add_f32("a", {1}, {1.0f});
}
Gguf with_counts(int64_t tensors, int64_t keys) {
  Gguf file;
  file.text("general.architecture", "llama").add_f32("a", {1}, {1.0f});
  file.tensor_count = tensors;
  file.key_count = keys;
  return file;
}
std::string with_version(uint32_t version) {
  Gguf file = samples::llama_gguf();
  file.version = version;
  return file.bytes();
}
std::string two_tensors(int64_t second_offset) {
  Gguf file;
  file.add_f32("a", {16}, std::vector<float>(16)).add_f32("b", {8}, std::vector<float>(8));
  file.tensors[1].offset = second_offset;
  return file.bytes();
}

class BadGguf : public testing::TestWithParam<BadCase> {};
TEST_P(BadGguf, IsRefused) {
  expect_error("file.gguf", [] { parse(GetParam().bytes); });
  expect_error(GetParam().message, [] { parse(GetParam().bytes); });
}
constexpr int64_t k2To60 = int64_t{1} << 60;
INSTANTIATE_TEST_SUITE_P(
    Header, BadGguf,
    testing::Values(BadCase{"Empty", "", "not a GGUF file"},
                    BadCase{"OtherMagic", "GGML" + raw(uint32_t{3}), "not a GGUF file"},
                    BadCase{"Version0", with_version(0), "version 0 is not supported"},
                    BadCase{"Version1", with_version(1), "version 1 is not supported"},
                    BadCase{"Version4", with_version(4), "version 4 is not supported"},
                    BadCase{"BigEndian", with_version(0x03000000), "big-endian"},
                    BadCase{"KeyCount2To60", with_counts(1, k2To60).bytes(), "cannot fit"},
                    BadCase{"KeyCountMaximal", with_counts(1, INT64_MAX).bytes(), "cannot fit"},
                    BadCase{"KeyCountOneTooMany", with_counts(1, 2).bytes(), "file.gguf"},
                    BadCase{"TensorCount2To60", with_counts(k2To60, 1).bytes(), "cannot fit"},
                    BadCase{"TensorCountOneTooMany", with_counts(2, 1).bytes(), "file.gguf"},
                    BadCase{"ManyKeys",
                            [] {
                              Gguf file;
                              file.key_count = 70000;
                              return file.bytes() + std::string(70000 * 13, '\0');
                            }(),
                            "at most 65536"}),
    bad_case_name);
INSTANTIATE_TEST_SUITE_P(
    Metadata, BadGguf,
    testing::Values(
        BadCase{"DuplicateKey", Gguf().u32("a", 1).u32("a", 2).bytes(), "'a' appears twice"},
        BadCase{"EmptyKey", Gguf().u32("", 1).bytes(), "is empty"},
        BadCase{"LongKey", Gguf().u32(std::string(65536, 'k'), 1).bytes(), "at most 65535"},
        BadCase{"ValueType13", Gguf().key("a", 13, raw(uint64_t{0})).bytes(), "value type 13"},
        BadCase{"ValueTypeMaximal", Gguf().key("a", UINT32_MAX, raw(uint64_t{0})).bytes(),
                "value type 4294967295"},
        BadCase{"BoolOfTwo", Gguf().key("a", Gguf::kBool, std::string(1, '\2')).bytes(), "bool of value 2"},
        BadCase{"StringBeyondFile", Gguf().key("a", Gguf::kString, raw(uint64_t{100}) + "abc").bytes(),
                "length 100"},
        BadCase{"String2To63", Gguf().key("a", Gguf::kString, raw(uint64_t{1} << 63) + "abc").bytes(),
                "truncated"},
        BadCase{"StringMaximal", Gguf().key("a", Gguf::kString, raw(UINT64_MAX) + "abc").bytes(),
                "truncated"},
        BadCase{"ArrayBeyondFile", Gguf().key("a", Gguf::kArray, array_of(Gguf::kU8, 100)).bytes(),
                "cannot fit"},
        BadCase{"Array2To60", Gguf().key("a", Gguf::kArray, array_of(Gguf::kU64, 1ull << 60)).bytes(),
                "cannot fit"},
        BadCase{"ArrayWraps", Gguf().key("a", Gguf::kArray, array_of(Gguf::kU64, (1ull << 61) + 1)).bytes(),
                "cannot fit"},
        BadCase{"ArrayOfStringsBeyondFile",
                Gguf().key("a", Gguf::kArray, array_of(Gguf::kString, 3, std::string(16, '\0'))).bytes(),
                "cannot fit"},
        BadCase{"ArrayOfType99", Gguf().key("a", Gguf::kArray, array_of(99, 0)).bytes(), "value type 99"},
        BadCase{"NestedArray",
                Gguf().key("a", Gguf::kArray, array_of(Gguf::kArray, 1, array_of(Gguf::kU8, 0))).bytes(),
                "array of arrays"},
        BadCase{
            "ArrayTooLong",
            Gguf()
                .key("a", Gguf::kArray, array_of(Gguf::kU8, (1 << 24) + 1, std::string((1 << 24) + 1, '\0')))
                .bytes(),
            "at most 16777216"},
        BadCase{"Alignment0", with_alignment(0).bytes(), "expected a power of two"},
        BadCase{"Alignment3", with_alignment(3).bytes(), "expected a power of two"},
        BadCase{"AlignmentLarge", with_alignment(1u << 31).bytes(), "outside the file"},
        BadCase{"AlignmentOfType64", Gguf().key("general.alignment", Gguf::kU64, raw(uint64_t{32})).bytes(),
                "general.alignment has value type 10"},
        BadCase{"AlignmentSigned", Gguf().key("general.alignment", Gguf::kI32, raw(int32_t{-32})).bytes(),
                "general.alignment has value type 5"},
        BadCase{"AlignmentText", Gguf().text("general.alignment", "32").bytes(),
                "general.alignment has value type 8"}),
    bad_case_name);
INSTANTIATE_TEST_SUITE_P(
    Tensors, BadGguf,
    testing::Values(
        BadCase{"DuplicateName", Gguf().add_f32("a", {1}, {1}).add_f32("a", {1}, {1}).bytes(),
                "'a' appears twice"},
        BadCase{"NoName", Gguf().add_f32("", {1}, {1}).bytes(), "no name"},
        BadCase{"LongName", Gguf().add_f32(std::string(64, 'n'), {1}, {1}).bytes(), "at most 63"},
        BadCase{"FiveDimensions", Gguf().add_f32("a", {1, 1, 1, 1, 1}, {1}).bytes(), "5 dimensions"},
        BadCase{"ZeroDimension", Gguf().add_f32("a", {4, 0}, {1}).bytes(), "dimension 1 is 0"},
        BadCase{"DimensionBeyondInt64", Gguf().add_f32("a", {1ull << 63}, {1}).bytes(), "too large"},
        BadCase{"ElementsOverflow", Gguf().add_f32("a", {1ull << 32, 1ull << 32}, {1}).bytes(),
                "too many elements"},
        BadCase{"BytesOverflow", Gguf().add_f32("a", {1ull << 62}, {1}).bytes(), "too many elements"},
        BadCase{"Elements2To60", Gguf().add_f32("a", {1ull << 60}, {1}).bytes(), "outside the file"},
        BadCase{"UnknownType", with_tensor({"a", {1}, 99, "1234"}).bytes(), "unknown type id 99"},
        BadCase{"WithdrawnType", with_tensor({"a", {32}, 4, std::string(32, '\0')}).bytes(),
                "unknown type id 4"},
        BadCase{"RowNoMultipleOfBlock", with_tensor({"a", {33, 32}, 8, std::string(4096, '\0')}).bytes(),
                "rows of 33 do not divide"},
        BadCase{"OffsetUnaligned", two_tensors(65), "not a multiple of the alignment 32"},
        BadCase{"OffsetOutside", two_tensors(128), "outside the file"},
        BadCase{"Offset2To62", two_tensors(int64_t{1} << 62), "outside the file"},
        BadCase{"OffsetOverlaps", two_tensors(32), "'a' and 'b' overlap"},
        BadCase{"OffsetSame", two_tensors(0), "overlap"}),
    bad_case_name);

}  // namespace
}  // namespace nibble
