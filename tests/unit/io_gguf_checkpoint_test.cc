#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/gguf.h"
#include "unit/io_bad_case.h"
#include "unit/io_samples.h"

namespace nibble {
namespace {

using samples::Gguf;

Checkpoint open(const Gguf& file) {
  const std::string bytes = file.bytes();
  const samples::ExactBytes exact(bytes);
  return gguf_checkpoint(parse_gguf(exact.span(), exact.owner(), "file.gguf"));
}

std::vector<float> first_of_each_row(const CheckpointTensor& tensor) {
  const Tensor values = tensor.read_f32();
  const int64_t rows = tensor.shape[0], width = values.elements() / rows;
  std::vector<float> first;
  for (int64_t row = 0; row < rows; ++row) first.push_back(values.data<float>()[row * width]);
  return first;
}

TEST(GgufCheckpoint, TurnsMetadataIntoAConfig) {
  const Checkpoint model = open(samples::llama_gguf_with_tensors());
  EXPECT_EQ(model.kind(), CheckpointKind::kGguf);
  EXPECT_EQ(model.config(), Json({{"model_type", "llama"},
                                  {"hidden_act", "silu"},
                                  {"hidden_size", 8},
                                  {"num_hidden_layers", 1},
                                  {"intermediate_size", 12},
                                  {"num_attention_heads", 2},
                                  {"num_key_value_heads", 1},
                                  {"head_dim", 4},
                                  {"max_position_embeddings", 64},
                                  {"rms_norm_eps", static_cast<double>(1e-5f)},
                                  {"rope_theta", 500000.0},
                                  {"vocab_size", 4},
                                  {"tie_word_embeddings", true},
                                  {"attention_bias", true},
                                  {"mlp_bias", false},
                                  {"bos_token_id", 0},
                                  {"eos_token_id", 1}}));
  EXPECT_EQ(model.generation_config(), Json({{"bos_token_id", 0}, {"eos_token_id", 1}}));
  EXPECT_EQ(model.gguf_metadata().at("tokenizer.ggml.tokens").size(), 4u);
}

TEST(GgufCheckpoint, MapsNames) {
  const Checkpoint model = open(samples::llama_gguf_with_tensors());
  for (const char* name : {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight",
                           "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.q_proj.bias",
                           "model.layers.0.self_attn.v_proj.weight", "model.norm.weight",
                           "model.layers.0.mlp.down_proj.weight"}) {
    EXPECT_NE(model.find(name), nullptr) << name;
  }
  EXPECT_EQ(model.require("model.layers.0.mlp.down_proj.weight").storage_type, "Q8_0");
  EXPECT_FALSE(model.require("model.layers.0.mlp.down_proj.weight").plain.has_value());
  EXPECT_TRUE(model.require("model.norm.weight").plain.has_value());
}

TEST(GgufCheckpoint, KeepsNamesItDoesNotKnow) {
  Gguf file = samples::llama_gguf();
  const std::vector<std::string> names = {"blk.00.attn_q.weight",
                                          "blk..attn_q.weight",
                                          "blk.x.attn_q.weight",
                                          "blk.0.other.weight",
                                          "attn_q.weight",
                                          "token_embd",
                                          "blk.0",
                                          "rope_freqs.weight",
                                          ".weight"};
  for (const std::string& name : names) file.add_f32(name, {8, 8}, std::vector<float>(64));
  const Checkpoint model = open(file);
  for (const std::string& name : names) EXPECT_NE(model.find(name), nullptr) << name;
}

// Heads of 4: the file keeps rows (0, 2), (1, 3) of a head as neighbours, so Hugging Face's order 0 1 2 3 is
// the file's 0 2 1 3.
TEST(GgufCheckpoint, UndoesTheRowOrderOfLlama) {
  const Checkpoint model = open(samples::llama_gguf_with_tensors());
  const std::vector<float> q = {0, 2, 1, 3, 4, 6, 5, 7}, k = {0, 2, 1, 3}, unchanged = {0, 1, 2, 3};
  EXPECT_EQ(first_of_each_row(model.require("model.layers.0.self_attn.q_proj.weight")), q);
  EXPECT_EQ(first_of_each_row(model.require("model.layers.0.self_attn.q_proj.bias")), q);
  EXPECT_EQ(first_of_each_row(model.require("model.layers.0.self_attn.k_proj.weight")), k);
  EXPECT_EQ(first_of_each_row(model.require("model.layers.0.self_attn.v_proj.weight")), unchanged);
  EXPECT_EQ(first_of_each_row(model.require("model.embed_tokens.weight")), unchanged);
  EXPECT_FALSE(model.require("model.layers.0.self_attn.q_proj.weight").plain.has_value());
  std::vector<float> two(16);
  model.require("model.layers.0.self_attn.q_proj.weight").read_rows(4, 2, two.data());
  EXPECT_EQ(two[0], 4.0f);
  EXPECT_EQ(two[8], 6.0f);
}

TEST(GgufCheckpoint, LeavesTheRowsOfOtherArchitecturesAlone) {
  Gguf file;
  file.text("general.architecture", "qwen2").u32("qwen2.attention.head_count", 2);
  file.add_f32("blk.0.attn_q.weight", {8, 8}, samples::rows_of({0, 1, 2, 3, 4, 5, 6, 7}, 8));
  const Checkpoint model = open(file);
  const CheckpointTensor& q = model.require("model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(first_of_each_row(q), (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_TRUE(q.plain.has_value());
}

TEST(GgufCheckpoint, ConfigVariants) {
  const auto config = [](auto&& change) {
    Gguf file = samples::llama_gguf();
    change(file);
    return open(file).config();
  };
  EXPECT_EQ(config([](Gguf& f) { f.u32("llama.attention.key_length", 6); }).at("head_dim"), 6);
  EXPECT_EQ(config([](Gguf& f) { f.f32("llama.rope.scaling.factor", 4.0f); }).at("rope_scaling"),
            Json({{"rope_type", "linear"}, {"factor", 4.0}}));
  EXPECT_EQ(config([](Gguf& f) { f.f32("llama.rope.scale_linear", 2.0f); }).at("rope_scaling").at("factor"),
            2.0);
  EXPECT_FALSE(config([](Gguf& f) {
                 f.text("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 4.0f);
               }).contains("rope_scaling"));
  const Json yarn = config([](Gguf& f) {
    f.text("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0f);
    f.u32("llama.rope.scaling.original_context_length", 32);
  });
  EXPECT_EQ(yarn.at("rope_scaling"),
            Json({{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32}}));
  EXPECT_EQ(config([](Gguf& f) {
              f.add_f32("rope_freqs.weight", {2}, {1, 8});
            }).at("nibble_rope_factors"),
            true);
  const Json window = config([](Gguf& f) { f.u32("llama.attention.sliding_window", 16); });
  EXPECT_EQ(window.at("sliding_window"), 16);
  EXPECT_EQ(window.at("model_type"), "mistral");
  const Json untied = config([](Gguf& f) { f.add_f32("output.weight", {8, 4}, std::vector<float>(32)); });
  EXPECT_EQ(untied.at("tie_word_embeddings"), false);
  EXPECT_EQ(config([](Gguf&) {}).at("vocab_size"), 4) << "a file without tensors counts its tokens";
}

TEST(GgufCheckpoint, AChatModelStopsAtBothEnds) {
  const Checkpoint model = open(samples::llama_gguf().u32("tokenizer.ggml.eot_token_id", 3));
  EXPECT_EQ(model.generation_config().at("eos_token_id"), Json::array({1, 3}));
}

TEST(GgufCheckpoint, NamesTypesThatItCannotDecode) {
  Gguf file = samples::llama_gguf();
  file.add({"blk.0.attn_q.weight", {256, 8}, 12, std::string(8 * 144, '\0')});
  const Checkpoint model = open(file);
  expect_error("tensor 'model.layers.0.self_attn.q_proj.weight' has type Q4_K, which is not supported yet",
               [&] { model.require("model.layers.0.self_attn.q_proj.weight"); });
}

TEST(GgufCheckpoint, RefusesWhatContradictsItself) {
  const auto refuse = [](const std::string& message, auto&& change) {
    Gguf file = samples::llama_gguf();
    change(file);
    expect_error("file.gguf", [&] { open(file); });
    expect_error(message, [&] { open(file); });
  };
  expect_error("'general.architecture' is missing", [] { open(Gguf()); });
  expect_error("'general.architecture' is 3", [] { open(Gguf().u32("general.architecture", 3)); });
  expect_error("holds 'adapter'",
               [] { open(Gguf().text("general.architecture", "llama").text("general.type", "adapter")); });
  refuse("one of 3 parts", [](Gguf& f) { f.u32("split.count", 3); });
  refuse("'llama.vocab_size' is \"many\"", [](Gguf& f) { f.text("llama.vocab_size", "many"); });
  refuse("differs between layers", [](Gguf& f) { f.texts("llama.attention.key_length", {"1"}); });
  refuse("expected a finite number", [](Gguf& f) { f.f32("llama.rope.scaling.factor", NAN); });
  refuse("6 rows, which do not divide into 2 heads", [](Gguf& f) {
    f.add_f32("blk.0.attn_q.weight", {8, 6}, std::vector<float>(48));
  });
  refuse("9 rows, which do not divide into 2 heads", [](Gguf& f) {
    f.add_f32("blk.0.attn_q.weight", {8, 9}, std::vector<float>(72));
  });
  refuse("appears more than once",
         [](Gguf& f) { f.add_f32("output.weight", {1}, {1}).add_f32("lm_head.weight", {1}, {1}); });
  for (const uint32_t heads : {0u, 4000000000u}) {
    Gguf file;
    file.text("general.architecture", "llama").u32("llama.attention.head_count", heads);
    file.add_f32("blk.0.attn_q.weight", {8, 8}, std::vector<float>(64));
    expect_error("do not divide into", [&] { open(file); });
  }
  Gguf headless;
  headless.text("general.architecture", "llama")
      .add_f32("blk.0.attn_q.weight", {8, 8}, std::vector<float>(64));
  expect_error("'llama.attention.head_count' is missing", [&] { open(headless); });
}

TEST(GgufCheckpoint, OpensFilesByTheirFirstBytes) {
  const samples::TemporaryFolder folder;
  const auto path = folder.write("any-name", samples::llama_gguf_with_tensors().bytes());
  const Checkpoint model = Checkpoint::open(path);
  EXPECT_EQ(model.kind(), CheckpointKind::kGguf);
  EXPECT_EQ(model.file_bytes(), std::filesystem::file_size(path));
  EXPECT_EQ(model.require("model.norm.weight").file, path);
}

// The real file, when `make test-real` provides it.
TEST(GgufCheckpoint, OpensSmolLM2) {
  const char* path = std::getenv("NIBBLE_SMOLLM2");
  if (path == nullptr) GTEST_SKIP() << "NIBBLE_SMOLLM2 is not set";
  const Checkpoint model = Checkpoint::open(path);
  EXPECT_EQ(model.config().at("num_hidden_layers"), 30);
  EXPECT_EQ(model.config().at("hidden_size"), 576);
  EXPECT_EQ(model.tensors().size(), 272u);
  EXPECT_EQ(model.require("model.layers.29.self_attn.q_proj.weight", {576, 576}).storage_type, "Q4_1");
  EXPECT_EQ(model.require("model.embed_tokens.weight", {49152, 576}).storage_type, "Q8_0");
  EXPECT_EQ(model.gguf_metadata().at("tokenizer.ggml.tokens").size(), 49152u);
}

}  // namespace
}  // namespace nibble
