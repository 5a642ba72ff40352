// nibble quantize, and what becomes of its results.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>
#include <set>
#include <thread>

#include "io/safetensors.h"
#include "program.h"
#include "random_model.h"

namespace nibble::e2e {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> quantize_arguments(const fs::path& output, const std::string& recipe,
                                            const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {"quantize",    fixture("llama_outliers"),
                                        "-o",          output.string(),
                                        "--recipe",    recipe,
                                        "--calib-ids", fixture("llama_outliers/calibration_ids.safetensors")};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::vector<std::string> recipe_names() {
  std::vector<std::string> names;
  const Json listed = nibble_json({"quantize", "--list-recipes"});
  for (const Json& recipe : listed.at("recipes")) names.push_back(recipe.at("name"));
  EXPECT_GE(names.size(), 3u);
  return names;
}

// Every weight file of a model folder, by name.
std::map<std::string, std::string> weight_files(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files[entry.path().filename()] = read_file(entry.path());
  }
  return files;
}

TEST(Quantize, WritesAModelThatInspectsMeasuresAndRuns) {
  const TemporaryFolder folder;
  const fs::path output = folder / "quik";
  const Json result = nibble_json(quantize_arguments(
      output, "quik-4b", {"--calib-sequences", "16", "--embedding-bits", "16", "--verify"}));
  EXPECT_EQ(result.at("verified"), true);
  EXPECT_EQ(result.at("linears").size(), 21u);
  for (const Json& linear : result.at("linears")) {
    EXPECT_GT(linear.at("output_error"), 0.0);
    EXPECT_LT(linear.at("output_error"), 0.02) << linear.at("name");
  }

  const Json inspected = nibble_json({"inspect", output});
  ASSERT_EQ(inspected.at("linears").size(), 21u);
  for (const Json& linear : inspected.at("linears")) {
    const bool down = linear.at("name").get<std::string>().ends_with("down_proj");
    EXPECT_EQ(linear.at("format"), "quik");
    EXPECT_EQ(linear.at("bits"), down ? 8 : 4);
    EXPECT_EQ(linear.at("arithmetic"), down ? "int8xint8->int32" : "int4xint4->int32");
    EXPECT_EQ(linear.at("outlier_columns"), down ? 64 : 32);
  }
  EXPECT_NEAR(inspected.at("bits_per_weight").get<double>(), result.at("bits_per_weight").get<double>(),
              1e-9);
  double shares = 0;
  for (const auto& [bits, share] : inspected.at("mac_share").items()) shares += share.get<double>();
  EXPECT_NEAR(shares, 1.0, 1e-9);

  const Json measured =
      nibble_json({"perplexity", output, "-f", fixture("text/valid.txt"), "-c", "256", "--chunks", "10",
                   "--no-special", "--reference", fixture("llama_outliers")});
  EXPECT_LT(measured.at("kl_divergence"), 0.09);  // 0.06 with all calibration sequences
  EXPECT_GT(measured.at("kl_divergence"), 0.03);
  const Json ran =
      nibble_json({"run", output, "-p", "Anne Elliot was", "-n", "8", "--temp", "0", "--ignore-eos"});
  EXPECT_EQ(ran.at("output_ids").size(), ran.at("prompt_ids").size() + 8);
}

// The order that the methods must have where a model has real outlier channels.
TEST(Quantize, MoreBitsAndOutlierColumnsLoseLess) {
  const TemporaryFolder folder;
  std::map<std::string, double> divergence;
  for (const std::string recipe : {"quik-8b", "quik-4b", "rtn-w4a4"}) {
    nibble_json(
        quantize_arguments(folder / recipe, recipe, {"--calib-sequences", "16", "--embedding-bits", "16"}));
    divergence[recipe] =
        nibble_json({"perplexity", folder / recipe, "-f", fixture("text/valid.txt"), "-c", "256", "--chunks",
                     "4", "--no-special", "--reference", fixture("llama_outliers")})
            .at("kl_divergence");
  }
  EXPECT_LT(divergence["quik-8b"] * 10, divergence["quik-4b"]);
  EXPECT_LT(divergence["quik-4b"] * 10, divergence["rtn-w4a4"]);
}

// Without any outlier column, and with the down projections as narrow as everything else in front of them.
TEST(Quantize, RotationsReplaceOutlierColumns) {
  const TemporaryFolder folder;
  std::map<std::string, double> divergence;
  for (const std::string rotation : {"none", "hadamard"}) {
    const Json result = nibble_json(quantize_arguments(
        folder / rotation, "w4a4-hadamard",
        {"--set", "rotation=" + rotation, "--calib-sequences", "16", "--embedding-bits", "16", "--verify"}));
    for (const Json& linear : result.at("linears")) EXPECT_EQ(linear.at("outlier_columns"), 0);
    divergence[rotation] =
        nibble_json({"perplexity", folder / rotation, "-f", fixture("text/valid.txt"), "-c", "256",
                     "--chunks", "4", "--no-special", "--reference", fixture("llama_outliers")})
            .at("kl_divergence");
  }
  EXPECT_GT(divergence["none"], 2.0);
  EXPECT_LT(divergence["hadamard"], 0.2);  // 0.11 with all calibration sequences
  const Json config = read_json(folder / "hadamard" / "config.json");
  EXPECT_EQ(config.at("tie_word_embeddings"), false);
  EXPECT_EQ(config.at("nibble_rotation").at("down_input"), (Json{{"block", 512}, {"base", 1}}));
  EXPECT_FALSE(read_json(folder / "none" / "config.json").contains("nibble_rotation"));
}

class AwkwardSizes : public testing::TestWithParam<RandomModel> {};

TEST_P(AwkwardSizes, EveryRecipeQuantizesAndRuns) {
  const TemporaryFolder folder;
  GetParam().write(folder / "model");
  for (const std::string& recipe : recipe_names()) {
    SCOPED_TRACE(recipe);
    for (const char* embedding_bits : {"16", "8", "4"}) {
      nibble_json({"quantize", folder / "model", "-o", folder / "out", "--recipe", recipe, "--calib-random",
                   "--calib-sequences", "4", "--calib-length", "96", "--embedding-bits", embedding_bits,
                   "--verify", "--force"});
    }
    const Json ran =
        nibble_json({"run", folder / "out", "-p", "Hello world", "-n", "4", "--temp", "0", "--ignore-eos"});
    EXPECT_EQ(ran.at("output_ids").size(), ran.at("prompt_ids").size() + 4);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, AwkwardSizes,
    testing::Values(RandomModel{.hidden = 56, .intermediate = 136, .heads = 7, .kv_heads = 7, .head_dim = 8},
                    RandomModel{
                        .hidden = 88, .intermediate = 104, .heads = 2, .kv_heads = 1, .head_dim = 40}));

TEST(Quantize, SparseValuesAreCountedByLinear) {
  const TemporaryFolder folder;
  const fs::path output = folder / "sparse";
  // One sequence for the gradients: how good the choice is does not matter here.
  nibble_json(quantize_arguments(output, "squeezellm-3b-sparse",
                                 {"--calib-sequences", "1", "--embedding-bits", "16", "--verify"}));
  double sparse = 0, weights = 0;
  std::set<double> shares;
  const Json inspected = nibble_json({"inspect", output});
  for (const Json& linear : inspected.at("linears")) {
    EXPECT_EQ(linear.at("format"), "squeezellm");
    EXPECT_EQ(linear.at("bits"), 3);
    EXPECT_EQ(linear.at("arithmetic"), "lut3xf32->f32");
    const double own = linear.at("out_features").get<double>() * linear.at("in_features").get<double>();
    const double values = linear.at("sparse_values");
    EXPECT_GE(values, std::floor(0.0005 * own)) << linear.at("name");
    shares.insert(values / own);
    sparse += values;
    weights += own;
  }
  // 0.05 % of each and 0.40 % of the model; one and the same weight may be both.
  EXPECT_GT(sparse / weights, 0.0040);
  EXPECT_LE(sparse / weights, 0.0045);
  // The larger part is shared out over the model, not taken from each linear alike.
  EXPECT_GT(*shares.rbegin(), 2 * *shares.begin());
}

TEST(Quantize, ThreadsDoNotChangeTheResult) {
  const TemporaryFolder folder;
  std::map<std::string, std::string> first;
  std::string first_logits;
  for (const std::string threads : {"1", "2", "4"}) {
    nibble_json(quantize_arguments(folder / threads, "quik-4b", {"--calib-sequences", "4", "-t", threads}));
    nibble({"logits", folder / threads, "-p", "Anne Elliot, with all her claims of birth", "-o",
            folder / (threads + ".safetensors"), "-t", threads});
    const auto files = weight_files(folder / threads);
    const std::string logits = read_file(folder / (threads + ".safetensors"));
    if (first.empty()) {
      first = files;
      first_logits = logits;
      ASSERT_FALSE(first.empty());
    }
    EXPECT_TRUE(files == first) << threads << " threads";
    EXPECT_TRUE(logits == first_logits) << threads << " threads";
  }
}

TEST(Quantize, AnInterruptedRunIsResumedToTheSameResult) {
  const TemporaryFolder folder;
  nibble_json(quantize_arguments(folder / "whole", "quik-4b", {"--calib-sequences", "32"}));
  for (const int signal : {SIGINT, SIGKILL}) {
    SCOPED_TRACE(signal);
    const fs::path output = folder / "interrupted";
    Running running(quantize_arguments(output, "quik-4b", {"--calib-sequences", "32"}));
    running.wait_for_error_text("block 1/3");
    running.send(signal);
    const Result stopped = running.finish();
    EXPECT_EQ(stopped.code, signal == SIGINT ? 130 : 128 + SIGKILL);
    ASSERT_FALSE(fs::exists(output)) << "the run ended before the signal came";

    // What is there is no model.
    EXPECT_EQ(nibble({"run", output.string() + ".partial", "-p", "x"}).code, 1);
    // Another run's blocks are not taken over.
    const Result other = nibble(quantize_arguments(
        output, "quik-4b", {"--calib-sequences", "32", "--resume", "--set", "damping=0.02"}));
    EXPECT_EQ(other.code, 1);
    EXPECT_NE(other.err.find("another recipe"), std::string::npos) << other.err;

    const Json resumed =
        nibble_json(quantize_arguments(output, "quik-4b", {"--calib-sequences", "32", "--resume"}));
    EXPECT_GE(resumed.at("resumed_blocks"), 1);
    EXPECT_TRUE(weight_files(output) == weight_files(folder / "whole"));
    EXPECT_FALSE(fs::exists(output.string() + ".partial"));
    fs::remove_all(output);
  }
}

// What becomes of the activations of each linear is in the result and in the folder, norms take up the
// factors, and the model is still the same model.
TEST(Quantize, TransformsAreFoldedIntoTheModel) {
  const TemporaryFolder folder;
  const auto kinds_of = [](const Json& linears) {
    std::map<std::string, std::string> kinds;
    for (const Json& linear : linears) {
      const std::string name = linear.at("name");
      std::string& kind = kinds[name.substr(name.rfind('.') + 1)];
      EXPECT_TRUE(kind.empty() || kind == linear.at("activations")) << name;
      kind = linear.at("activations");
    }
    return kinds;
  };
  const auto divergence = [&](const fs::path& model) {
    return nibble_json({"perplexity", model, "-f", fixture("text/valid.txt"), "-c", "256", "--chunks", "4",
                        "--no-special", "--reference", fixture("llama_outliers")})
        .at("kl_divergence")
        .get<double>();
  };
  using Kinds = std::map<std::string, std::string>;
  const std::string equalized = "equalized_static", token = "per_token";

  // Outlier channels beyond 150 everywhere but behind attention: FPTQ's rule leaves all that per token.
  Json result =
      nibble_json(quantize_arguments(folder / "fptq", "fptq", {"--embedding-bits", "16", "--verify"}));
  EXPECT_EQ(kinds_of(result.at("linears")), (Kinds{{"q_proj", token},
                                                   {"k_proj", token},
                                                   {"v_proj", token},
                                                   {"o_proj", "static"},
                                                   {"gate_proj", token},
                                                   {"up_proj", token},
                                                   {"down_proj", token}}));
  EXPECT_EQ(kinds_of(nibble_json({"inspect", folder / "fptq"}).at("linears")),
            kinds_of(result.at("linears")));

  result = nibble_json(quantize_arguments(
      folder / "norms", "fptq", {"--embedding-bits", "16", "--verify", "--set", "per_token_limit=1e9"}));
  EXPECT_EQ(kinds_of(result.at("linears")), (Kinds{{"q_proj", equalized},
                                                   {"k_proj", equalized},
                                                   {"v_proj", equalized},
                                                   {"o_proj", "static"},
                                                   {"gate_proj", equalized},
                                                   {"up_proj", equalized},
                                                   {"down_proj", token}}));
  result = nibble_json(quantize_arguments(folder / "linears", "fptq",
                                          {"--embedding-bits", "16", "--verify", "--set",
                                           "per_token_limit=1e9", "--set", "fold_through_linear=true"}));
  EXPECT_EQ(kinds_of(result.at("linears")).at("down_proj"), equalized);
  // Each step loses less: 0.33, 0.14 and 0.09 when all windows are measured.
  const double plain = divergence(folder / "fptq"), norms = divergence(folder / "norms");
  EXPECT_LT(norms, 0.6 * plain);
  EXPECT_LT(divergence(folder / "linears"), 0.8 * norms);

  result = nibble_json(quantize_arguments(folder / "smooth", "smoothquant-w8a8", {"--embedding-bits", "16"}));
  EXPECT_EQ(kinds_of(result.at("linears")).at("q_proj"), "equalized_per_token");
  EXPECT_EQ(kinds_of(result.at("linears")).at("down_proj"), token);
  nibble_json(quantize_arguments(folder / "rough", "smoothquant-w8a8",
                                 {"--embedding-bits", "16", "--set", "transform=none"}));
  EXPECT_LT(divergence(folder / "smooth"), 0.5 * divergence(folder / "rough"));
}

// Norms that took up factors are restored before the calibration states move on; so are linears that stay
// dense behind them.
TEST(Quantize, AnInterruptedTransformIsResumedToTheSameResult) {
  const TemporaryFolder folder;
  const std::vector<std::string> more = {"--calib-sequences",
                                         "32",
                                         "--set",
                                         "transform=smoothquant",
                                         "--set",
                                         "fold_through_linear=true",
                                         "--set",
                                         "k.format=dense",
                                         "--set",
                                         "k.quantizer=none"};
  nibble_json(quantize_arguments(folder / "whole", "w4a8-g128", more));
  const fs::path output = folder / "interrupted";
  Running running(quantize_arguments(output, "w4a8-g128", more));
  running.wait_for_error_text("block 1/3");
  running.send(SIGKILL);
  EXPECT_EQ(running.finish().code, 128 + SIGKILL);
  ASSERT_FALSE(fs::exists(output)) << "the run ended before the signal came";
  std::vector<std::string> resume = more;
  resume.push_back("--resume");
  EXPECT_GE(nibble_json(quantize_arguments(output, "w4a8-g128", resume)).at("resumed_blocks"), 1);
  EXPECT_TRUE(weight_files(output) == weight_files(folder / "whole"));
}

TEST(Quantize, ExistingOutputIsReplacedOnlyWhenAsked) {
  const TemporaryFolder folder;
  const fs::path output = folder / "out";
  nibble_json(quantize_arguments(output, "rtn-w4a4"));
  const auto before = weight_files(output);
  const Result refused = nibble(quantize_arguments(output, "quik-8b"));
  EXPECT_EQ(refused.code, 1);
  EXPECT_NE(refused.err.find("exists already"), std::string::npos) << refused.err;
  EXPECT_TRUE(weight_files(output) == before);
  nibble_json(quantize_arguments(output, "rtn-w4a4", {"--force", "--embedding-bits", "4"}));
  EXPECT_FALSE(weight_files(output) == before);

  fs::create_directories(folder / "precious" / "inside");
  EXPECT_EQ(nibble(quantize_arguments(folder / "precious", "rtn-w4a4", {"--force"})).code, 1);
  EXPECT_TRUE(fs::exists(folder / "precious" / "inside"));
}

// The same where the signal comes during the backward pass: blocks whose gradients are on the disk are not
// measured again, and nothing of them is left in the end.
TEST(Quantize, AnInterruptedBackwardPassIsResumedToTheSameResult) {
  const TemporaryFolder folder;
  const std::vector<std::string> sequences = {"--calib-sequences", "32"};
  nibble_json(quantize_arguments(folder / "whole", "squeezellm-3b-sparse", sequences));
  const fs::path output = folder / "interrupted";
  const fs::path partial = output.string() + ".partial";
  for (const int signal : {SIGINT, SIGKILL}) {
    SCOPED_TRACE(signal);
    Running running(quantize_arguments(output, "squeezellm-3b-sparse", sequences));
    running.wait_for_error_text("forward 1/3");
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    while (!fs::exists(partial / "sensitivity-gradient.safetensors")) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    running.send(signal);
    EXPECT_EQ(running.finish().code, signal == SIGINT ? 130 : 128 + SIGKILL);
    const fs::path last_block = partial / "sensitivity-00002.safetensors";
    ASSERT_TRUE(fs::exists(last_block)) << "the run ended before the signal came";
    // Damage shows that it is read: measured anew it would be replaced.
    const std::string kept = read_file(last_block);
    fs::resize_file(last_block, kept.size() - 1);
    const Result damaged =
        nibble(quantize_arguments(output, "squeezellm-3b-sparse", {"--calib-sequences", "32", "--resume"}));
    EXPECT_EQ(damaged.code, 1);
    EXPECT_NE(damaged.err.find("sensitivity-00002.safetensors"), std::string::npos) << damaged.err;
    std::ofstream(last_block, std::ios::binary) << kept;

    nibble_json(quantize_arguments(output, "squeezellm-3b-sparse", {"--calib-sequences", "32", "--resume"}));
    EXPECT_TRUE(weight_files(output) == weight_files(folder / "whole"));
    EXPECT_FALSE(fs::exists(partial));
    fs::remove_all(output);
  }
}

TEST(Quantize, DryRunForecastsAndWritesNothing) {
  const TemporaryFolder folder;
  const fs::path output = folder / "out";
  const Json forecast =
      nibble_json(quantize_arguments(output, "quik-4b", {"--dry-run", "--calib-sequences", "4"}));
  EXPECT_FALSE(fs::exists(output));
  EXPECT_FALSE(fs::exists(output.string() + ".partial"));
  const Json result = nibble_json(quantize_arguments(output, "quik-4b", {"--calib-sequences", "4"}));
  EXPECT_NEAR(forecast.at("bits_per_weight").get<double>() / result.at("bits_per_weight").get<double>(), 1.0,
              0.01);
  EXPECT_NEAR(forecast.at("output_bytes").get<double>() / result.at("output_bytes").get<double>(), 1.0, 0.03);
  EXPECT_GT(forecast.at("seconds"), 0.0);
  EXPECT_EQ(forecast.at("sensitivity_sequences"), 0);
  EXPECT_EQ(forecast.at("temporary_bytes"), 0.0);

  // The store of a recipe that wants gradients: at least 4 bytes for each of 3 x 589824 weights.
  const Json gradients = nibble_json(quantize_arguments(
      output, "squeezellm-3b",
      {"--dry-run", "--force", "--calib-sequences", "4", "--set", "sensitivity_sequences=3"}));
  EXPECT_EQ(gradients.at("sensitivity_sequences"), 3);
  EXPECT_GT(gradients.at("sensitivity_seconds"), 0.0);
  EXPECT_GE(gradients.at("temporary_bytes"), 3 * 589824 * 4.0);
}

struct Refusal {
  const char* name;
  std::vector<std::string> arguments;  // after "quantize"; OUT stands for a fresh path, MODEL for the fixture
  int code;
  const char* message;
};

class QuantizeRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(QuantizeRefuses, WithOneMessage) {
  const TemporaryFolder folder;
  std::ofstream(folder / "short.txt") << "Too short to calibrate on.";
  std::ofstream(folder / "recipe.json")
      << R"({"name": "mine", "defaults": {"format": "quik", "quantizer": "rtn"},
      "overrides": [{"name": "*.q_prj", "settings": {"weight_bits": 8}}]})";
  const std::vector<int32_t> ids = {1, 2, 1024, 3};
  write_safetensors(folder / "beyond.safetensors", {{"input_ids", Tensor::copy_of<int32_t>({1, 4}, ids)}});
  std::vector<std::string> arguments = {"quantize"};
  for (std::string argument : GetParam().arguments) {
    if (argument == "OUT") argument = folder / "out";
    if (argument == "MODEL") argument = fixture("llama_outliers");
    if (argument.starts_with("@")) argument = folder / argument.substr(1);
    arguments.push_back(argument);
  }
  const Result result = nibble(arguments);
  EXPECT_EQ(result.code, GetParam().code) << result.err;
  EXPECT_NE(result.err.find(GetParam().message), std::string::npos) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_FALSE(fs::exists(folder / "out"));
}

INSTANTIATE_TEST_SUITE_P(
    Cases, QuantizeRefuses,
    testing::Values(
        Refusal{"NoModel", {"-o", "OUT"}, 2, "MODEL is missing"},
        Refusal{"NoOutput", {"MODEL"}, 2, "-o OUT is missing"},
        Refusal{"NoCalibration", {"MODEL", "-o", "OUT"}, 2, "needs calibration"},
        Refusal{"TwoCalibrations",
                {"MODEL", "-o", "OUT", "--calib-random", "--calib", "@short.txt"},
                2,
                "exactly one"},
        Refusal{
            "ShortText", {"MODEL", "-o", "OUT", "--calib", "@short.txt"}, 1, "too little calibration text"},
        Refusal{"NoText", {"MODEL", "-o", "OUT", "--calib", "@absent.txt"}, 1, "absent.txt"},
        Refusal{
            "IdsBeyondVocabulary", {"MODEL", "-o", "OUT", "--calib-ids", "@beyond.safetensors"}, 1, "1024"},
        Refusal{"ZeroSequences",
                {"MODEL", "-o", "OUT", "--calib-random", "--calib-sequences", "0"},
                2,
                "at least 1"},
        Refusal{
            "UnknownRecipe", {"MODEL", "-o", "OUT", "--recipe", "quik-5b", "--calib-random"}, 2, "quik-4b"},
        Refusal{"PatternMatchesNothing", {"MODEL", "-o", "OUT", "--recipe", "@recipe.json"}, 1, "q_prj"},
        Refusal{"UnknownField",
                {"MODEL", "-o", "OUT", "--calib-random", "--set", "wieght_bits=4"},
                2,
                "wieght_bits"},
        Refusal{"ImpossibleValue",
                {"MODEL", "-o", "OUT", "--calib-random", "--set", "weight_bits=5"},
                2,
                "weight_bits"},
        Refusal{"TransformsThatDisagree",
                {"MODEL", "-o", "OUT", "--recipe", "fptq", "--calib-random", "--set", "v.transform=none"},
                1,
                "k_proj and model.layers.0.self_attn.v_proj"},
        Refusal{"GradientsOfColumnsThatATransformChanges",
                {"MODEL", "-o", "OUT", "--recipe", "squeezellm-3b", "--calib-random", "--set",
                 "transform=smoothquant"},
                1,
                "gradients of the loss, which are those by the weights as they were"},
        Refusal{"GradientsOfRowsThatTakeFactorsUp",
                {"MODEL", "-o", "OUT", "--recipe", "squeezellm-3b", "--calib-random", "--set",
                 "down.transform=smoothquant", "--set", "down.fold_through_linear=true", "--set",
                 "down.sensitivity=hessian_diagonal"},
                1,
                "up_proj is weighed by gradients"},
        Refusal{"TransformWithoutCalibration",
                {"MODEL", "-o", "OUT", "--recipe", "fptq"},
                2,
                "needs calibration"},
        Refusal{"StaticScaleThatTheFormatLacks",
                {"MODEL", "-o", "OUT", "--recipe", "quik-4b", "--calib-random", "--set",
                 "transform=log_equalization"},
                1,
                "static activation scales"},
        Refusal{
            "UnknownFormat", {"MODEL", "-o", "OUT", "--calib-random", "--set", "format=quick"}, 2, "quick"},
        Refusal{"EmbeddingBits",
                {"MODEL", "-o", "OUT", "--calib-random", "--embedding-bits", "5"},
                2,
                "16, 8 or 4"},
        Refusal{
            "NoSuchParent", {"MODEL", "-o", "/nonexistent/out", "--recipe", "rtn-w4a4"}, 1, "/nonexistent"},
        Refusal{"NotWritable", {"MODEL", "-o", "/proc/out", "--recipe", "rtn-w4a4"}, 1, "/proc"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Quantize, RefusesWeightsThatAreNotFinite) {
  const TemporaryFolder folder;
  RandomModel model;
  model.change = [](const std::string& name, Tensor& tensor) {
    if (name == "model.layers.1.mlp.up_proj.weight") tensor.mutable_data<uint16_t>()[77] = 0x7fc0;
  };
  model.write(folder / "model");
  for (const char* recipe : {"rtn-w4a4", "quik-4b"}) {
    const Result result = nibble({"quantize", folder / "model", "-o", folder / "out", "--recipe", recipe,
                                  "--calib-random", "--calib-sequences", "2", "--calib-length", "64"});
    EXPECT_EQ(result.code, 1);
    EXPECT_NE(result.err.find("model.layers.1.mlp.up_proj"), std::string::npos) << result.err;
    EXPECT_FALSE(fs::exists(folder / "out"));
  }
}

// A quantized folder that was tampered with, by what is changed in it.
class BrokenFolder : public testing::Test {
 protected:
  void SetUp() override { nibble_json(quantize_arguments(output_, "quik-4b", {"--calib-sequences", "2"})); }

  void change_config(const std::function<void(Json&)>& change) {
    Json config = read_json(output_ / "config.json");
    change(config);
    std::ofstream(output_ / "config.json") << config.dump();
  }
  void change_tensor(const std::string& name, const std::function<void(Tensor&)>& change) {
    const fs::path path =
        output_ / read_json(output_ / "model.safetensors.index.json").at("weight_map").at(name);
    std::map<std::string, Tensor> owned;
    {
      const SafetensorsFile file = open_safetensors(path);
      for (const auto& [key, tensor] : file.tensors) {
        Tensor copy = Tensor::empty(tensor.dtype(), tensor.shape());
        std::copy_n(tensor.raw(), tensor.bytes(), copy.mutable_raw());
        owned.emplace(key, std::move(copy));
      }
    }
    change(owned.at(name));
    fs::remove(path);
    write_safetensors(path, owned);
  }
  void expect_refused(const std::string& message) {
    const Result result = nibble({"run", output_, "-p", "x", "-n", "1"});
    EXPECT_EQ(result.code, 1);
    EXPECT_NE(result.err.find(message), std::string::npos) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }

  const TemporaryFolder folder_;
  const fs::path output_ = folder_ / "out";
  const std::string linear_ = "model.layers.1.mlp.gate_proj";
};

TEST_F(BrokenFolder, IsRefused) {
  const std::string config = read_file(output_ / "config.json");
  const auto restore = [&] { std::ofstream(output_ / "config.json") << config; };

  change_config([](Json& json) { json["quantization_config"]["format_version"] = 99; });
  expect_refused("99");
  restore();
  change_config([&](Json& json) { json["quantization_config"]["linears"][linear_]["format"] = "quick"; });
  expect_refused("quick");
  restore();
  change_config(
      [&](Json& json) { json["quantization_config"]["linears"][linear_]["parameters"]["weight_bits"] = 3; });
  expect_refused(linear_);
  restore();
  change_config([&](Json& json) { json["quantization_config"]["linears"].erase(linear_); });
  expect_refused(linear_);
  restore();

  change_tensor(linear_ + ".outlier_columns",
                [](Tensor& tensor) { tensor.mutable_data<int32_t>()[3] = 1 << 20; });
  expect_refused(linear_);
  change_tensor(linear_ + ".outlier_columns", [](Tensor& tensor) { tensor.mutable_data<int32_t>()[3] = -1; });
  expect_refused(linear_);
}

TEST_F(BrokenFolder, ScalesThatAreNotFinite) {
  change_tensor(linear_ + ".scales", [](Tensor& tensor) {
    tensor.mutable_data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  });
  expect_refused(linear_);
}

TEST_F(BrokenFolder, MissingShard) {
  const std::string name =
      read_json(output_ / "model.safetensors.index.json").at("weight_map").at(linear_ + ".codes");
  fs::remove(output_ / name);
  expect_refused(name);
}

TEST_F(BrokenFolder, TruncatedShard) {
  const std::string name =
      read_json(output_ / "model.safetensors.index.json").at("weight_map").at(linear_ + ".codes");
  fs::resize_file(output_ / name, fs::file_size(output_ / name) - 1);
  expect_refused(name);
}

TEST(Quantize, AQuantizedModelIsNotQuantizedAgain) {
  const TemporaryFolder folder;
  nibble_json(quantize_arguments(folder / "once", "rtn-w4a4"));
  const Result result = nibble({"quantize", folder / "once", "-o", folder / "twice", "--recipe", "rtn-w4a4"});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("quantized already"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble::e2e
