#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <map>
#include <string>
#include <vector>

#include "base/half.h"
#include "io/safetensors.h"
#include "unit/io_bad_case.h"
#include "unit/io_samples.h"

namespace nibble {
namespace {

using samples::floats;
using samples::safetensors;

SafetensorsFile parse(std::string_view bytes) {
  const samples::ExactBytes exact(bytes);
  return parse_safetensors(exact.span(), exact.owner(), "file.safetensors");
}

TEST(Safetensors, ReadsTensorsAndMetadata) {
  const SafetensorsFile file = parse(samples::good_safetensors());
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  const Tensor& a = file.tensors.at("a");
  EXPECT_EQ(a.dtype(), DType::kF32);
  EXPECT_EQ(a.shape(), (Shape{2, 3}));
  EXPECT_EQ(std::vector<float>(a.values<float>().begin(), a.values<float>().end()),
            (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(file.tensors.at("b").elements(), 0);
  EXPECT_EQ(f16_to_float(file.tensors.at("c").data<uint16_t>()[0]), 1.0f);
}

TEST(Safetensors, AnEmptyFileOfNoTensorsIsWellFormed) {
  EXPECT_TRUE(parse(safetensors("{}")).tensors.empty());
  EXPECT_TRUE(parse(safetensors("{}      ")).tensors.empty());
}

// A header of odd length puts every tensor at an odd address.
TEST(Safetensors, CopiesUnalignedTensors) {
  for (size_t padding = 0; padding < 8; ++padding) {
    std::string header = R"({"a":{"dtype":"F64","shape":[2],"data_offsets":[1,17]},)"
                         R"("b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
    header.append(padding, ' ');
    const SafetensorsFile file = parse(safetensors(header, "\7" + samples::raw(0.5) + samples::raw(-3.0)));
    const Tensor& a = file.tensors.at("a");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.raw()) % 8, 0u);
    EXPECT_EQ(a.data<double>()[0], 0.5);
    EXPECT_EQ(a.data<double>()[1], -3.0);
    EXPECT_EQ(file.tensors.at("b").data<uint8_t>()[0], 7);
  }
}

TEST(Safetensors, RemembersTensorsOfUnsupportedTypes) {
  const SafetensorsFile file = parse(safetensors(
      R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      "1234" + floats({2})));
  EXPECT_EQ(file.tensors.size(), 1u);
  EXPECT_EQ(file.unsupported, (std::map<std::string, std::string>{{"a", "F8_E4M3"}}));
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = samples::good_safetensors();
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(parse(std::string_view(whole).substr(0, size)), Error) << size << " bytes";
  }
}

// One tensor of the given entry before `bytes` bytes of data.
std::string one(const std::string& entry, size_t bytes) {
  return safetensors("{\"w\":" + entry + "}", std::string(bytes, '\0'));
}

class BadSafetensors : public testing::TestWithParam<BadCase> {};
TEST_P(BadSafetensors, IsRefused) {
  expect_error("file.safetensors", [] { parse(GetParam().bytes); });
  expect_error(GetParam().message, [] { parse(GetParam().bytes); });
}
INSTANTIATE_TEST_SUITE_P(
    Table, BadSafetensors,
    testing::Values(
        BadCase{"Empty", "", "too few"}, BadCase{"SevenBytes", "1234567", "too few"},
        BadCase{"HeaderBeyondFile", samples::raw(uint64_t{100}) + "{}", "truncated"},
        BadCase{"HeaderHuge", samples::raw(uint64_t{100'000'001}) + "{}", "above the limit"},
        BadCase{"HeaderWraps", samples::raw(UINT64_MAX) + "{}", "above the limit"},
        BadCase{"HeaderEmpty", safetensors(""), "does not start with '{'"},
        BadCase{"HeaderArray", safetensors("[]"), "does not start with '{'"},
        BadCase{"HeaderSpaceFirst", safetensors(" {}"), "does not start with '{'"},
        BadCase{"HeaderBroken", safetensors("{\"w\":"), "not valid JSON"},
        BadCase{"HeaderInvalidUtf8", safetensors("{\"\xff\":1}"), "not valid JSON"},
        BadCase{"HeaderDeep", safetensors("{\"w\":" + std::string(100000, '[')), "nested deeper"},
        BadCase{"EntryIsNumber", one("1", 0), "must be an object"},
        BadCase{"DtypeMissing", one(R"({"shape":[1],"data_offsets":[0,4]})", 4), "'dtype' must be a string"},
        BadCase{"DtypeNumber", one(R"({"dtype":4,"shape":[1],"data_offsets":[0,4]})", 4),
                "'dtype' must be a string"},
        BadCase{"ShapeMissing", one(R"({"dtype":"F32","data_offsets":[0,4]})", 4),
                "'shape' must be an array"},
        BadCase{"ShapeNegative", one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4),
                "non-negative"},
        BadCase{"ShapeFraction", one(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})", 4),
                "non-negative"},
        BadCase{"ShapeString", one(R"({"dtype":"F32","shape":["1"],"data_offsets":[0,4]})", 4),
                "non-negative"},
        BadCase{"ShapeBeyondInt64",
                one(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]})", 4), "too large"},
        BadCase{"ShapeOverflows",
                one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0),
                "too many elements"},
        BadCase{"ShapeOverflowsInBytes",
                one(R"({"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]})", 0),
                "too many elements"},
        BadCase{"ShapeOverflowsToMatch",  // 2^62 * 4 * 4 bytes is 0 modulo 2^64
                one(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})", 0),
                "too many elements"},
        BadCase{"ShapeOfManyDimensions",
                one(
                    "{\"dtype\":\"F32\",\"shape\":[1" +
                        [] {
                          std::string text;
                          for (int i = 0; i < 40; ++i) text += ",1";
                          return text;
                        }() +
                        "],\"data_offsets\":[0,4]}",
                    4),
                "41 dimensions"},
        BadCase{"BytesTooFew", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4),
                "needs 8 bytes"},
        BadCase{"BytesTooMany", one(R"({"dtype":"BF16","shape":[1],"data_offsets":[0,4]})", 4),
                "needs 2 bytes"},
        BadCase{"OffsetsMissing", one(R"({"dtype":"F32","shape":[1]})", 4), "'data_offsets' must be"},
        BadCase{"OffsetsThree", one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})", 4),
                "'data_offsets' must be"},
        BadCase{"OffsetsNegative", one(R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})", 4),
                "non-negative"},
        BadCase{"OffsetsBackwards", one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4),
                "backwards"},
        BadCase{"OffsetsOutside", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 4),
                "outside the file"},
        BadCase{
            "OffsetsFarOutside",
            one(R"({"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]})",
                4),
            "outside the file"},
        BadCase{"OffsetsOutsideOfUnsupportedType",
                one(R"({"dtype":"F8_E4M3","shape":[9],"data_offsets":[0,9]})", 4), "outside the file"},
        BadCase{"HoleAtStart", one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8), "hole"},
        BadCase{"HoleBetween",
                safetensors(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                            R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                            "123"),
                "hole"},
        BadCase{"Overlap",
                safetensors(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                            R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                            "123"),
                "overlap"},
        BadCase{"SameBytesTwice",
                safetensors(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                            R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                            "12"),
                "overlap"},
        BadCase{"BytesAfterTheLast", one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 5),
                "1 bytes follow"},
        BadCase{"DuplicateName",
                safetensors(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                            R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                            "12"),
                "'a' appears twice"},
        BadCase{"MetadataNumber", safetensors(R"({"__metadata__":{"a":1}})"), "must be a string"},
        BadCase{"MetadataArray", safetensors(R"({"__metadata__":[]})"), "must be an object"}),
    bad_case_name);

TEST(Safetensors, MessagesShowNoControlCharacters) {
  try {
    parse(safetensors("{\"\\u001b[2J\":{}}"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\x1b'), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("\\x1b[2J"), std::string::npos);
  }
}

TEST(SafetensorsWriter, RoundTripsEveryTypeAligned) {
  const samples::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "out.safetensors";
  std::map<std::string, Tensor> tensors;
  for (int i = static_cast<int>(DType::kF64); i <= static_cast<int>(DType::kBool); ++i) {
    const auto dtype = static_cast<DType>(i);
    for (const int64_t count : {0, 1, 3, 64}) {
      Tensor tensor = Tensor::zeros(dtype, {count});
      for (size_t b = 0; b < tensor.bytes(); ++b) tensor.mutable_raw()[b] = static_cast<std::byte>(b * 7 + i);
      tensors.emplace(std::string(dtype_name(dtype)) + "." + std::to_string(count), tensor);
    }
  }
  write_safetensors(path, tensors, {{"note", "\xc3\xa9 \"quoted\""}});

  const SafetensorsFile file = open_safetensors(path);
  EXPECT_EQ(file.metadata.at("note"), "\xc3\xa9 \"quoted\"");
  ASSERT_EQ(file.tensors.size(), tensors.size());
  const auto file_bytes = samples::read_all(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file_bytes.data(), 8);
  EXPECT_EQ((8 + header_bytes) % 64, 0u);
  for (const auto& [name, tensor] : tensors) {
    const Tensor& read = file.tensors.at(name);
    EXPECT_EQ(read.dtype(), tensor.dtype());
    EXPECT_EQ(read.shape(), tensor.shape());
    EXPECT_EQ(std::memcmp(read.raw(), tensor.raw(), tensor.bytes()), 0) << name;
    // The mapping is page-aligned, so addresses tell places in the file.
    const size_t alignment = tensor.bytes() % 64 == 0 ? 64 : dtype_size(tensor.dtype());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(read.raw()) % alignment, 0u) << name;
  }
}

TEST(SafetensorsWriter, KeepsTheDeclaredOrderOfWriting) {
  const samples::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "out.safetensors";
  SafetensorsWriter writer(
      path, {{"odd", DType::kU8, {3}}, {"wide", DType::kF32, {16}}, {"half", DType::kF16, {1}}});
  const std::vector<uint8_t> odd = {1, 2, 3};
  const std::vector<float> wide(16, 2.5f);
  writer.write(Tensor::copy_of<uint8_t>({3}, odd));
  writer.write(Tensor::copy_of<float>({16}, wide));
  Tensor half = Tensor::zeros(DType::kF16, {1});
  half.mutable_data<uint16_t>()[0] = 0x3c00;
  writer.write(half);
  writer.close();
  const SafetensorsFile file = open_safetensors(path);
  EXPECT_EQ(file.tensors.at("odd").data<uint8_t>()[2], 3);
  EXPECT_EQ(file.tensors.at("wide").data<float>()[15], 2.5f);
  EXPECT_EQ(file.tensors.at("half").data<uint16_t>()[0], 0x3c00);
}

TEST(SafetensorsWriter, LeavesNothingHalfWritten) {
  const samples::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "out.safetensors";
  {
    SafetensorsWriter writer(path, {{"a", DType::kF32, {2}}, {"b", DType::kF32, {2}}});
    writer.write(Tensor::zeros(DType::kF32, {2}));
    expect_error("only 1 of 2 tensors were written, 'b' is the next", [&] { writer.close(); });
    EXPECT_TRUE(std::filesystem::exists(path));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(SafetensorsWriter, RefusesWhatItCannotWrite) {
  const samples::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "out.safetensors";
  const auto make = [&](std::vector<SafetensorsWriter::Declaration> declarations) {
    SafetensorsWriter writer(path, std::move(declarations));
  };
  expect_error("reserved or taken", [&] { make({{"a", DType::kF32, {1}}, {"a", DType::kF32, {1}}}); });
  expect_error("reserved or taken", [&] { make({{"", DType::kF32, {1}}}); });
  expect_error("reserved or taken", [&] { make({{"__metadata__", DType::kF32, {1}}}); });
  expect_error("must be UTF-8", [&] { make({{"\xff", DType::kF32, {1}}}); });
  expect_error("cannot have shape [-1]", [&] { make({{"a", DType::kF32, {-1}}}); });
  expect_error("cannot have shape", [&] { make({{"a", DType::kF32, {int64_t{1} << 62}}}); });
  EXPECT_FALSE(std::filesystem::exists(path));

  folder.write("out.safetensors", "kept");
  expect_error("cannot create", [&] { make({}); });
  EXPECT_EQ(samples::read_all(path), "kept");
  expect_error("cannot create", [&] { write_safetensors(folder.path() / "absent" / "out", {}); });
}

TEST(SafetensorsWriter, SaysWhenThereIsNoRoom) {
  const samples::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "out.safetensors";
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit limited = {4096, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limited), 0);
  expect_error("out.safetensors: cannot", [&] {
    write_safetensors(path, {{"a", Tensor::zeros(DType::kF32, {1 << 20})}});
  });
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace nibble
