#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "unit/io_bad_case.h"
#include "unit/io_samples.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using samples::TemporaryFolder;

std::string one_tensor(const std::string& name, float value) {
  return samples::safetensors("{\"" + name + R"(":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})",
                              samples::floats({value, value + 1, value + 2, value + 3}));
}

// Two shards of one tensor each.
void write_shards(const TemporaryFolder& folder) {
  folder.write("config.json", R"({"model_type":"llama"})");
  folder.write("model-1.safetensors", one_tensor("a", 1));
  folder.write("model-2.safetensors", one_tensor("b", 5));
}
void write_index(const TemporaryFolder& folder, const std::string& weight_map) {
  folder.write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":" + weight_map + "}");
}
constexpr const char* kGoodMap = R"({"a":"model-1.safetensors","b":"model-2.safetensors"})";

TEST(HfFolder, OpensTheFixtures) {
  const fs::path data = NIBBLE_TEST_DATA;
  const Checkpoint model = Checkpoint::open(data / "tiny" / "qwen2");
  EXPECT_EQ(model.kind(), CheckpointKind::kHuggingFace);
  EXPECT_EQ(model.config().at("model_type"), "qwen2");
  EXPECT_TRUE(model.gguf_metadata().is_null());
  ASSERT_EQ(model.files().size(), 1u);
  EXPECT_EQ(model.file_bytes(), fs::file_size(model.files()[0]));
  const int64_t hidden = model.config().at("hidden_size").get<int64_t>();
  const int64_t vocabulary = model.config().at("vocab_size").get<int64_t>();
  const CheckpointTensor& embedding = model.require("model.embed_tokens.weight", {vocabulary, hidden});
  EXPECT_EQ(embedding.storage_type, "BF16");
  EXPECT_EQ(embedding.stored_bytes, static_cast<size_t>(vocabulary * hidden * 2));
  // Rows from the middle equal the same rows of the whole.
  const Tensor whole = embedding.read_f32();
  std::vector<float> rows(static_cast<size_t>(3 * hidden));
  embedding.read_rows(5, 3, rows.data());
  for (size_t i = 0; i < rows.size(); ++i)
    ASSERT_EQ(rows[i], whole.data<float>()[5 * hidden + static_cast<int64_t>(i)]);
}

TEST(HfFolder, OpensShards) {
  const TemporaryFolder folder;
  write_shards(folder);
  write_index(folder, kGoodMap);
  folder.write("generation_config.json", R"({"eos_token_id":[1,2]})");
  const Checkpoint model = Checkpoint::open(folder.path());
  EXPECT_EQ(model.tensors().size(), 2u);
  EXPECT_EQ(model.files().size(), 2u);
  EXPECT_EQ(model.generation_config().at("eos_token_id"), Json::array({1, 2}));
  EXPECT_EQ(model.require("b").read_f32().data<float>()[3], 8.0f);
  EXPECT_EQ(model.require("b").file.filename(), "model-2.safetensors");
  EXPECT_EQ(model.find("c"), nullptr);
  expect_error("tensor 'c' is missing", [&] { model.require("c"); });
  expect_error("tensor 'a' has shape [2, 2], expected [4]", [&] { model.require("a", {4}); });
}

TEST(HfFolder, FollowsLinksAsTheHuggingFaceCacheMakesThem) {
  const TemporaryFolder blobs, folder;
  write_shards(blobs);
  fs::create_symlink(blobs.path() / "model-1.safetensors", folder.path() / "model.safetensors");
  fs::create_symlink(blobs.path() / "config.json", folder.path() / "config.json");
  EXPECT_EQ(Checkpoint::open(folder.path()).tensors().size(), 1u);
}

TEST(HfFolder, AnIntegerTensorIsPlainButNoFloats) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write(
      "model.safetensors",
      samples::safetensors(R"({"ids":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}})", "12345678"));
  const Checkpoint model = Checkpoint::open(folder.path());
  ASSERT_TRUE(model.require("ids").plain.has_value());
  EXPECT_EQ(model.require("ids").plain->dtype(), DType::kI32);
  expect_error("tensor 'ids' has type I32, expected floats", [&] { model.require("ids").read_f32(); });
}

TEST(HfFolder, UnsupportedTypesAreNamedWhenAskedFor) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("model.safetensors",
               samples::safetensors(R"({"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", "1234"));
  const Checkpoint model = Checkpoint::open(folder.path());
  EXPECT_EQ(model.unsupported().at("w"), "F8_E4M3");
  expect_error("tensor 'w' has type F8_E4M3, which is not supported yet", [&] { model.find("w"); });
  expect_error("tensor 'w' has type F8_E4M3, which is not supported yet", [&] { model.require("w"); });
}

TEST(HfFolder, KindFollowsQuantizationConfig) {
  const TemporaryFolder folder;
  folder.write("model.safetensors", one_tensor("a", 1));
  const auto open_with = [&](const std::string& config) {
    folder.write("config.json", config);
    return Checkpoint::open(folder.path()).kind();
  };
  EXPECT_EQ(open_with(R"({"quantization_config":{"quant_method":"nibble"}})"), CheckpointKind::kNibble);
  EXPECT_EQ(open_with(R"({"quantization_config":null})"), CheckpointKind::kHuggingFace);
  expect_error("quantized with 'gptq'",
               [&] { open_with(R"({"quantization_config":{"quant_method":"gptq"}})"); });
  expect_error("quantized with 'awq'",
               [&] { open_with(R"({"quantization_config":{"quant_method":"awq"}})"); });
  expect_error("does not name", [&] { open_with(R"({"quantization_config":{"bits":4}})"); });
  expect_error("must be an object", [&] { open_with(R"({"quantization_config":[1]})"); });
  expect_error("'quant_method' is 4", [&] { open_with(R"({"quantization_config":{"quant_method":4}})"); });
}

// Index files that must be refused; `bytes` is the weight_map beside the two good shards.
class BadIndex : public testing::TestWithParam<BadCase> {};
TEST_P(BadIndex, IsRefused) {
  const TemporaryFolder folder;
  write_shards(folder);
  fs::create_directories(folder.path() / "sub");
  folder.write("sub/model-1.safetensors", one_tensor("a", 1));
  folder.write("notes.txt", "no tensors");
  folder.write("copy-of-a.safetensors", one_tensor("a", 1));
  write_index(folder, GetParam().bytes);
  expect_error(folder.path().string(), [&] { Checkpoint::open(folder.path()); });
  expect_error(GetParam().message, [&] { Checkpoint::open(folder.path()); });
}
INSTANTIATE_TEST_SUITE_P(
    Table, BadIndex,
    testing::Values(
        BadCase{"NoMap", "null", "'weight_map' must be an object"},
        BadCase{"EmptyMap", "{}", "names no tensors"}, BadCase{"Broken", "{", "not valid JSON"},
        BadCase{"ShardIsNumber", R"({"a":1})", "must be a string"},
        BadCase{"Parent", R"({"a":"../model-1.safetensors"})", "not a plain file name"},
        BadCase{"ParentAlone", R"({"a":".."})", "not a plain file name"},
        BadCase{"Subfolder", R"({"a":"sub/model-1.safetensors"})", "not a plain file name"},
        BadCase{"Absolute", R"({"a":"/etc/passwd"})", "not a plain file name"},
        BadCase{"Backslash", R"({"a":"..\\model-1.safetensors"})", "not a plain file name"},
        BadCase{"NulByte", R"({"a":"model-1.safetensors\u0000"})", "not a plain file name"},
        BadCase{"EmptyName", R"({"a":""})", "not a plain file name"},
        BadCase{"OtherFile", R"({"a":"notes.txt"})", "not a .safetensors file"},
        BadCase{"MissingShard",
                R"({"a":"model-1.safetensors","b":"model-7.safetensors","c":"model-8.safetensors"})",
                "shard 'model-7.safetensors' is missing (2 of 3 shards are)"},
        BadCase{"MissingTensor", R"({"a":"model-1.safetensors","z":"model-1.safetensors"})",
                "tensor 'z' is not in shard 'model-1.safetensors'"},
        BadCase{"WrongShard", R"({"a":"model-2.safetensors","b":"model-1.safetensors"})", "the index says"},
        BadCase{"TensorInTwoShards", R"({"a":"model-1.safetensors","b":"copy-of-a.safetensors"})",
                "more than once"}),
    bad_case_name);

TEST(HfFolder, RefusesFoldersWithoutAModel) {
  const TemporaryFolder folder;
  const auto open = [&] { Checkpoint::open(folder.path()); };
  expect_error("neither model.safetensors nor", open);
  folder.write("pytorch_model.bin", "x");
  expect_error("'pytorch_model.bin', a pickle file", open);
  folder.write("small.gguf", "x");
  expect_error("to open 'small.gguf' give the path of that file", open);
  folder.write("model-00001-of-00002.safetensors", one_tensor("a", 1));
  expect_error("found 'model-00001-of-00002.safetensors', but neither", open);
  folder.write("model.safetensors", one_tensor("a", 1));
  expect_error("config.json is missing", open);
  folder.write("config.json", "[]");
  expect_error("config.json: expected a JSON object", open);
  folder.write("config.json", "{");
  expect_error("config.json: not valid JSON", open);
  folder.write("config.json", "{}");
  folder.write("generation_config.json", "3");
  expect_error("generation_config.json: expected a JSON object", open);
  fs::remove(folder.path() / "generation_config.json");
  folder.write("model.safetensors", "");
  expect_error("model.safetensors: not a safetensors file", open);
}

TEST(HfFolder, RefusesOtherPaths) {
  const TemporaryFolder folder;
  expect_error("no such file or folder", [&] { Checkpoint::open(folder.path() / "absent"); });
  expect_error("neither a file nor a folder", [] { Checkpoint::open("/dev/null"); });
  expect_error("not a model", [&] { Checkpoint::open(folder.write("notes.txt", "text")); });
  expect_error("not a model", [&] { Checkpoint::open(folder.write("empty.gguf", "")); });
  expect_error("give the folder",
               [&] { Checkpoint::open(folder.write("a.safetensors", one_tensor("a", 1))); });
  expect_error("pickle", [&] { Checkpoint::open(folder.write("a.pt", "PK")); });
}

}  // namespace
}  // namespace nibble
