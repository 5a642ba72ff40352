// nibble perplexity, inspect, bench and doctor on the fixtures.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "io/safetensors.h"
#include "program.h"

namespace nibble::e2e {
namespace {

class Perplexity : public testing::TestWithParam<const char*> {};

TEST_P(Perplexity, EqualsTheReference) {
  const Json reference = read_json(fixture(std::string(GetParam()) + "/reference.json")).at("perplexity");
  const Json result = nibble_json({"perplexity", fixture(GetParam()), "-f", fixture("text/valid.txt"), "-c",
                                   "256", "--chunks", "60", "--no-special"});
  EXPECT_NEAR(result.at("perplexity").get<double>() / reference.at("value").get<double>(), 1.0, 2e-4);
  EXPECT_EQ(result.at("tokens"), reference.at("tokens"));
  EXPECT_EQ(result.at("windows"), 60);
  EXPECT_GT(result.at("perplexity_stderr"), 0.0);
  EXPECT_FALSE(result.contains("kl_divergence"));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Perplexity, testing::Values("llama_outliers", "qwen3"));

TEST(PerplexityCommand, AModelDoesNotDivergeFromItself) {
  const std::string model = fixture("llama_outliers");
  const Json result = nibble_json({"perplexity", model, "--text", fixture("text/valid.txt"), "--context",
                                   "256", "--windows", "4", "--reference", model, "--no-special"});
  EXPECT_LT(std::fabs(result.at("kl_divergence").get<double>()), 1e-6);
  EXPECT_EQ(result.at("top1_agreement"), 1.0);
  EXPECT_EQ(result.at("tokens"), 4 * 255);
  EXPECT_GE(result.at("kl_stderr"), 0.0);
  EXPECT_EQ(result.at("top1_stderr"), 0.0);
  EXPECT_LT(std::fabs(result.at("log_perplexity_ratio").get<double>()), 1e-6);
}

TEST(PerplexityCommand, AnotherModelDiverges) {
  // The same sizes and tokenizer, other weights: one norm is made twice as strong.
  const TemporaryFolder folder;
  const std::filesystem::path changed = folder / "changed";
  std::filesystem::copy(fixture("llama_outliers"), changed);
  SafetensorsFile weights = open_safetensors(fixture("llama_outliers/model.safetensors"));
  Tensor norm = Tensor::empty(DType::kF32, weights.tensors.at("model.norm.weight").shape());
  copy_to_float(weights.tensors.at("model.norm.weight"), 0, norm.elements(), norm.mutable_data<float>());
  for (int64_t i = 0; i < norm.elements(); ++i) norm.mutable_data<float>()[i] *= 2;
  weights.tensors["model.norm.weight"] = norm;
  std::filesystem::remove(changed / "model.safetensors");
  write_safetensors(changed / "model.safetensors", weights.tensors);

  const Json result = nibble_json({"perplexity", changed, "-f", fixture("text/valid.txt"), "-c", "128",
                                   "--chunks", "5", "--reference", fixture("llama_outliers")});
  EXPECT_GT(result.at("kl_divergence"), 0.01);
  EXPECT_EQ(result.at("top1_agreement"), 1.0);  // doubling all logits changes no order

  const Json reference = nibble_json({"perplexity", fixture("llama_outliers"), "-f",
                                      fixture("text/valid.txt"), "-c", "128", "--chunks", "5"});
  const double perplexity = result.at("perplexity").get<double>();
  EXPECT_NEAR(result.at("log_perplexity_ratio").get<double>(),
              std::log(perplexity / reference.at("perplexity").get<double>()), 1e-6);
  EXPECT_GT(result.at("log_perplexity_ratio_stderr"), 0.0);
  EXPECT_LT(result.at("log_perplexity_ratio_stderr"),
            result.at("perplexity_stderr").get<double>() / perplexity);
}

TEST(PerplexityCommand, WithABosTheSameTokensAreScored) {
  const std::string model = fixture("llama_outliers"), text = fixture("text/valid.txt");
  const Json with = nibble_json({"perplexity", model, "-f", text, "-c", "512", "--chunks", "3"});
  const Json without =
      nibble_json({"perplexity", model, "-f", text, "-c", "512", "--chunks", "3", "--no-special"});
  EXPECT_EQ(with.at("bos"), 1);
  EXPECT_TRUE(without.at("bos").is_null());
  EXPECT_EQ(with.at("tokens"), without.at("tokens"));
  EXPECT_NE(with.at("perplexity"), without.at("perplexity"));
  EXPECT_NEAR(with.at("perplexity").get<double>() / without.at("perplexity").get<double>(), 1.0, 0.05);
}

TEST(PerplexityCommand, IdsGiveTheSameAsTheirText) {
  const TemporaryFolder folder;
  const std::string model = fixture("llama_outliers"), text = fixture("text/valid.txt");
  const Json ids = nibble_json({"tokenize", model, "--file", text, "--no-special"}).at("ids");
  for (const Shape& shape : {Shape{3 * 128}, Shape{3, 128}}) {
    Tensor tensor = Tensor::empty(DType::kI64, shape);
    for (int64_t i = 0; i < 3 * 128; ++i)
      tensor.mutable_data<int64_t>()[i] = ids.at(static_cast<size_t>(i)).get<int64_t>();
    const std::filesystem::path path = folder / ("ids" + std::to_string(shape.size()) + ".safetensors");
    write_safetensors(path, {{"input_ids", tensor}});
    const Json of_ids = nibble_json({"perplexity", model, "--ids-file", path, "-c", "128"});
    const Json of_text = nibble_json({"perplexity", model, "-f", text, "-c", "128", "--chunks", "3"});
    EXPECT_EQ(of_ids, of_text);
  }
}

TEST(PerplexityCommand, NarrowerCachesLoseMore) {
  const std::string model = fixture("llama_outliers");
  double previous = 0;
  for (const std::vector<std::string>& types : {std::vector<std::string>{"--cache-type", "q8"},
                                                {"-ctk", "q8_0", "-ctv", "q4_0"},
                                                {"--cache-type", "q4"}}) {
    std::vector<std::string> arguments = {"perplexity",  model, "-f",          fixture("text/valid.txt"),
                                          "-c",          "128", "--chunks",    "4",
                                          "--reference", model, "--no-special"};
    arguments.insert(arguments.end(), types.begin(), types.end());
    const Json result = nibble_json(arguments);
    EXPECT_GT(result.at("kl_divergence"), previous);
    EXPECT_LT(result.at("kl_divergence"), 0.05);
    previous = result.at("kl_divergence");
    EXPECT_EQ(result.at("cache_type_v"), types[0] == "-ctk" ? "q4" : types[1]);
    EXPECT_EQ(result.at("cache_type_k"), types[0] == "-ctk" ? "q8" : types[1]);
  }
  const Json ran = nibble_json({"run", model, "-p", "Anne Elliot", "-n", "4", "--temp", "0", "--ignore-eos",
                                "-ctk", "q4_0", "-ctv", "q8_0"});
  EXPECT_EQ(ran.at("output_ids").size(), ran.at("prompt_ids").size() + 4);
  const auto cache_bytes = [&](const std::string& type) {
    return nibble_json({"bench", model, "-p", "8", "-n", "2", "-r", "1", "--cache-type", type})
        .at("cache_bytes")
        .get<int64_t>();
  };
  EXPECT_EQ(cache_bytes("q8") * 32 * 10, cache_bytes("f32") * 85);  // 8.5 bits a value, heads of 64
  EXPECT_EQ(cache_bytes("q4") * 32, cache_bytes("f32") * 5);
  const Result refused =
      nibble({"perplexity", model, "-f", fixture("text/valid.txt"), "--cache-type-v", "q5"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("'q5', expected one of f32, f16, q8"), std::string::npos) << refused.err;
}

TEST(PerplexityCommand, TooLittleTextIsRefusedWithCounts) {
  const TemporaryFolder folder;
  std::ofstream(folder / "short.txt") << "Hello world";
  const Result result = nibble({"perplexity", fixture("llama_outliers"), "-f", folder / "short.txt"});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("has 5 tokens, less than one window of 512"), std::string::npos) << result.err;
}

TEST(PerplexityCommand, OneWindowHasNoStandardError) {
  const Json result = nibble_json(
      {"perplexity", fixture("qwen3"), "-f", fixture("text/valid.txt"), "-c", "64", "--chunks", "1"});
  EXPECT_TRUE(result.at("perplexity_stderr").is_null());
}

TEST(PerplexityCommand, WindowsBeyondTheContextAreRefused) {
  const Result result =
      nibble({"perplexity", fixture("qwen3"), "-f", fixture("text/valid.txt"), "-c", "4096"});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("4096"), std::string::npos) << result.err;
}

TEST(PerplexityCommand, ModelsOfDifferentVocabulariesAreNotCompared) {
  const Result result = nibble({"perplexity", fixture("qwen3"), "-f", fixture("text/valid.txt"), "-c", "64",
                                "--chunks", "1", "--reference", fixture("llama_outliers")});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("cannot be compared"), std::string::npos) << result.err;
}

TEST(Inspect, KeysOfAFloatModel) {
  const Json result = nibble_json({"inspect", fixture("llama_outliers"), "--kernels"});
  EXPECT_EQ(result.at("linears").size(), 3u * 7u);
  EXPECT_EQ(result.at("linears").at(0).at("name"), "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(result.at("linears").at(20).at("name"), "model.layers.2.mlp.down_proj");
  for (const Json& linear : result.at("linears")) {
    EXPECT_EQ(linear.at("format"), "dense");
    EXPECT_EQ(linear.at("bits"), 16);
    EXPECT_EQ(linear.at("outlier_columns"), 0);
    EXPECT_EQ(linear.at("sparse_values"), 0);
    EXPECT_FALSE(linear.at("kernel").get<std::string>().empty());
    EXPECT_FALSE(linear.at("arithmetic").get<std::string>().empty());
    EXPECT_TRUE(linear.at("refused").is_array());
  }
  EXPECT_DOUBLE_EQ(result.at("bits_per_weight").get<double>(), 16.0);
  EXPECT_EQ(result.at("mac_share"), (Json{{"16", 1.0}}));
  EXPECT_EQ(result.at("file_bytes"), std::filesystem::file_size(fixture("llama_outliers/model.safetensors")));
  EXPECT_NEAR(result.at("file_bits_per_weight").get<double>(), 16.0, 0.1);
}

TEST(Inspect, ForcedPathsShowInTheKernels) {
  const Json result =
      nibble_json({"inspect", fixture("tiny/qwen2"), "--kernels"}, {.environment = {"NIBBLE_CPU=scalar"}});
  for (const Json& linear : result.at("linears")) {
    EXPECT_EQ(linear.at("kernel"), "dense-reference");
    EXPECT_FALSE(linear.at("refused").empty());
  }
}

TEST(Inspect, UnknownArchitecturesStillShowTheirTensors) {
  const TemporaryFolder folder;
  const std::filesystem::path model = folder / "model";
  std::filesystem::copy(fixture("tiny/llama"), model);
  std::filesystem::remove(model / "config.json");
  std::ofstream(model / "config.json") << R"({"model_type": "from-the-future"})";
  const Json result = nibble_json({"inspect", model});
  EXPECT_EQ(result.at("architecture_known"), false);
  EXPECT_EQ(result.at("tensors").size(), open_safetensors(model / "model.safetensors").tensors.size());
  const Result plain = nibble({"inspect", model});
  EXPECT_EQ(plain.code, 0);
  EXPECT_NE(plain.out.find("model.embed_tokens.weight"), std::string::npos);
}

TEST(Bench, Keys) {
  const Json result =
      nibble_json({"bench", fixture("tiny/llama"), "-p", "32", "-n", "8", "-r", "3", "-b", "2", "-d", "16"});
  EXPECT_GT(result.at("prompt_tokens_per_second"), 0.0);
  EXPECT_GT(result.at("decode_tokens_per_second"), 0.0);
  EXPECT_EQ(result.at("prompt_samples").size(), 3u);
  EXPECT_EQ(result.at("decode_samples").size(), 3u);
  EXPECT_GT(result.at("peak_memory_bytes"), 1000000);
  std::vector<double> samples = result.at("prompt_samples");
  std::sort(samples.begin(), samples.end());
  EXPECT_EQ(result.at("prompt_tokens_per_second"), samples[1]);
  int64_t linears = 0;
  for (const auto& [kernel, count] : result.at("kernels").items()) linears += count.get<int64_t>();
  EXPECT_EQ(linears, 2 * 7);
}

TEST(Bench, PartsCanBeLeftOut) {
  const Json result = nibble_json({"bench", fixture("tiny/llama"), "-p", "0", "-n", "4", "-r", "1"});
  EXPECT_TRUE(result.at("prompt_tokens_per_second").is_null());
  EXPECT_GT(result.at("decode_tokens_per_second"), 0.0);
}

TEST(Bench, MoreThanTheContextIsRefused) {
  const Result result = nibble({"bench", fixture("tiny/llama"), "-p", "1000"});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("1000 tokens are more than the model's context of 512"), std::string::npos)
      << result.err;
}

TEST(Bench, ShapesNeedNoModel) {
  const Json one = nibble_json({"bench", "--shape", "3x40x72", "--recipe", "quik-8b", "-r", "1"});
  ASSERT_EQ(one.at("shapes").size(), 1u);
  const Json& shape = one.at("shapes").at(0);
  EXPECT_EQ(shape.at("m"), 3);
  EXPECT_EQ(shape.at("n"), 40);
  EXPECT_EQ(shape.at("k"), 72);
  EXPECT_EQ(shape.at("arithmetic"), "int8xint8->int32");
  const double operations = 2.0 * 3 * 40 * 72;
  EXPECT_NEAR(
      shape.at("operations_per_second").get<double>() * shape.at("seconds").get<double>() / operations, 1,
      1e-9);

  const Json block = nibble_json({"bench", "--shape", "smollm2-135m", "-p", "4", "-r", "1", "-t", "1"});
  EXPECT_EQ(block.at("recipe"), "quik-4b");
  EXPECT_EQ(block.at("shapes").size(), 4u * 2u);  // q k v, o, gate up, down; prompt and decode
  EXPECT_EQ(block.at("shapes").at(0).at("n"), 576 + 2 * 192);
  EXPECT_EQ(block.at("shapes").at(6).at("arithmetic"), "int8xint8->int32");  // down projections
  EXPECT_EQ(nibble_json({"bench", "--shape", "1x8x8", "--recipe", "none", "-r", "1"})
                .at("shapes")
                .at(0)
                .at("format"),
            "dense");
}

TEST(Doctor, SaysWhatWouldRun) {
  const Json result = nibble_json({"doctor"});
  EXPECT_GE(result.at("threads"), 1);
  EXPECT_GT(result.at("available_memory_bytes"), 0);
  EXPECT_EQ(result.at("cpu_paths").at(0), "scalar");
  EXPECT_TRUE(result.contains("blas"));
  EXPECT_TRUE(result.at("gpus").is_array());
  EXPECT_FALSE(result.at("kernels").empty());
  const Result plain = nibble({"doctor"});
  EXPECT_EQ(plain.code, 0);
  EXPECT_NE(plain.out.find("GPU"), std::string::npos);
}

TEST(Doctor, AForcedPathChoosesOtherKernels) {
  for (const Json& row : nibble_json({"doctor"}, {.environment = {"NIBBLE_CPU=scalar"}}).at("kernels")) {
    EXPECT_TRUE(row.at("kernel").get<std::string>().ends_with("reference")) << row.dump();
  }
}

}  // namespace
}  // namespace nibble::e2e
