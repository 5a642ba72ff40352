// A rotated model computes what the model did: logits on trained fixtures and on random models of awkward
// sizes with every bias there is.
#include "transforms/rotation.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "base/error.h"
#include "io/safetensors.h"
#include "model_running.h"
#include "temporary_folder.h"
#include "transforms/rotate_checkpoint.h"

namespace nibble::testing {
namespace {

namespace fs = std::filesystem;

std::vector<int32_t> some_ids(int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < 48; ++i)
    ids.push_back(static_cast<int32_t>((i * i * 131 + 17 * i + 1) % vocabulary));
  return ids;
}

std::vector<float> logits_of(const Checkpoint& checkpoint) {
  ThreadPool pool(2);
  const std::unique_ptr<Model> model = Model::load(checkpoint, pool);
  return Session(*model, pool, 48).feed(some_ids(model->spec().vocabulary));
}

// Sizes of channels over four orders of magnitude, and some that are silent.
std::vector<ChannelSizes> some_channel_sizes(const ModelSpec& spec) {
  std::vector<ChannelSizes> sizes(static_cast<size_t>(spec.layers));
  uint64_t state = 9;
  const auto draw = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const auto digit = static_cast<int>(state >> 60);
    return digit == 0 ? 0.0f : std::pow(10.0f, 0.25f * static_cast<float>(digit) - 2.0f);
  };
  for (ChannelSizes& layer : sizes) {
    for (int64_t i = 0; i < spec.hidden_size; ++i) layer.attention_input.push_back(draw());
    for (int64_t i = 0; i < spec.hidden_size; ++i) layer.mlp_input.push_back(draw());
    for (int64_t i = 0; i < spec.query_size(); ++i) layer.attended.push_back(draw());
    for (int64_t i = 0; i < spec.intermediate_size; ++i) layer.down.push_back(draw());
  }
  return sizes;
}

// Largest difference in units of the logits' standard deviation, for each kind of rotation.
void expect_same_function(const fs::path& folder, double allowed) {
  const Checkpoint source = Checkpoint::open(folder);
  const std::vector<float> expected = logits_of(source);
  const std::vector<ChannelSizes> sizes = some_channel_sizes(read_model_spec(source));
  constexpr HiddenRotation kInputs = HiddenRotation::kInputs;
  const RotationOptions kOptions[] = {{.down_input = true, .seed = 0},
                                      {.down_input = true, .seed = 12345},
                                      {.down_input = false, .seed = 1},
                                      {.down_input = true, .seed = 2, .channels = sizes},
                                      {.down_input = false, .seed = 3, .channels = sizes},
                                      {.hidden = kInputs, .down_input = true, .seed = 4},
                                      {.hidden = kInputs, .down_input = true, .seed = 5, .channels = sizes},
                                      {.hidden = kInputs, .down_input = false, .seed = 6, .channels = sizes}};
  for (const RotationOptions& options : kOptions) {
    const Checkpoint rotated = rotate_checkpoint(Checkpoint::open(folder), options);
    const double difference = max_difference(logits_of(rotated), expected) / standard_deviation(expected);
    // Far from balance on purpose, so that rounding counts for more; anything wrong would count for 1.
    EXPECT_LE(difference, options.channels.empty() ? allowed : 5 * allowed)
        << folder << ", seed " << options.seed;
  }
}

class RotatedFixture : public ::testing::TestWithParam<const char*> {};

TEST_P(RotatedFixture, ComputesTheSame) { expect_same_function(fixture(GetParam()), 2e-4); }

INSTANTIATE_TEST_SUITE_P(Models, RotatedFixture,
                         ::testing::Values("tiny/llama", "tiny/llama3_rope", "tiny/mistral", "tiny/qwen2",
                                           "tiny/qwen3", "llama_outliers", "qwen3"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

struct Sizes {
  int64_t hidden, intermediate, heads, kv_heads, head_dim;
  bool tied, biases;
};

void write_random_model(const fs::path& folder, const Sizes& sizes) {
  constexpr int64_t kVocabulary = 160;
  const Json config = {{"model_type", "llama"},
                       {"hidden_size", sizes.hidden},
                       {"intermediate_size", sizes.intermediate},
                       {"num_attention_heads", sizes.heads},
                       {"num_key_value_heads", sizes.kv_heads},
                       {"head_dim", sizes.head_dim},
                       {"num_hidden_layers", 2},
                       {"vocab_size", kVocabulary},
                       {"max_position_embeddings", 128},
                       {"rms_norm_eps", 1e-5},
                       {"attention_bias", sizes.biases},
                       {"mlp_bias", sizes.biases},
                       {"tie_word_embeddings", sizes.tied}};
  std::ofstream(folder / "config.json") << config.dump(2);
  std::map<std::string, Tensor> tensors;
  uint64_t state = 42;
  const auto add = [&](const std::string& name, Shape shape, float centre, float width) {
    Tensor tensor = Tensor::empty(DType::kF32, std::move(shape));
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      tensor.mutable_data<float>()[i] =
          centre +
          width * static_cast<float>(static_cast<int64_t>(state >> 33) - (int64_t{1} << 30)) * 0x1p-30f;
    }
    tensors.emplace(name, std::move(tensor));
  };
  const auto linear = [&](const std::string& name, int64_t outputs, int64_t inputs) {
    add(name + ".weight", {outputs, inputs}, 0, 1.7f / std::sqrt(static_cast<float>(inputs)));
    if (sizes.biases) add(name + ".bias", {outputs}, 0, 0.3f);
  };
  add("model.embed_tokens.weight", {kVocabulary, sizes.hidden}, 0, 1);
  if (!sizes.tied) add("lm_head.weight", {kVocabulary, sizes.hidden}, 0, 0.3f);
  add("model.norm.weight", {sizes.hidden}, 1, 0.9f);
  for (int64_t layer = 0; layer < 2; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {sizes.hidden}, 1, 0.9f);
    add(prefix + "post_attention_layernorm.weight", {sizes.hidden}, 1, 0.9f);
    linear(prefix + "self_attn.q_proj", sizes.heads * sizes.head_dim, sizes.hidden);
    linear(prefix + "self_attn.k_proj", sizes.kv_heads * sizes.head_dim, sizes.hidden);
    linear(prefix + "self_attn.v_proj", sizes.kv_heads * sizes.head_dim, sizes.hidden);
    linear(prefix + "self_attn.o_proj", sizes.hidden, sizes.heads * sizes.head_dim);
    linear(prefix + "mlp.gate_proj", sizes.intermediate, sizes.hidden);
    linear(prefix + "mlp.up_proj", sizes.intermediate, sizes.hidden);
    linear(prefix + "mlp.down_proj", sizes.hidden, sizes.intermediate);
  }
  write_safetensors(folder / "model.safetensors", tensors);
}

TEST(Rotation, AwkwardSizesAndBiasesComputeTheSame) {
  const Sizes kSizes[] = {
      {56, 136, 7, 7, 8, false, true},     // bases 28, 68
      {88, 104, 2, 1, 40, true, true},     // bases 44, 52, 20 in heads
      {94, 106, 3, 1, 6, true, false},     // Hartley's matrix everywhere, odd parts 47, 53 and 3
      {64, 172, 4, 2, 16, false, true},    // base 172
      {2062, 24, 2, 2, 10, false, false},  // nothing for the odd part 1031: blocks of 2
  };
  for (const Sizes& sizes : kSizes) {
    const TemporaryFolder folder;
    write_random_model(folder.path(), sizes);
    SCOPED_TRACE(sizes.hidden);
    expect_same_function(folder.path(), 1e-4);
  }
}

// What the result looks like: norms of ones, an untied head, the config's notes, and another matrix than
// before.
TEST(Rotation, TensorsAndConfig) {
  const Checkpoint source = Checkpoint::open(fixture("tiny/qwen2"));
  const Checkpoint rotated = rotate_checkpoint(Checkpoint::open(fixture("tiny/qwen2")), {.seed = 7});
  EXPECT_TRUE(source.config().at("tie_word_embeddings"));
  EXPECT_FALSE(rotated.config().at("tie_word_embeddings"));
  const Json& notes = rotated.config().at("nibble_rotation");
  EXPECT_EQ(notes.at("residual"), (Json{{"block", 64}, {"base", 1}}));
  EXPECT_EQ(notes.at("down_input"), (Json{{"block", 176}, {"base", 44}}));
  EXPECT_EQ(notes.at("seed"), 7);
  const ModelSpec spec = read_model_spec(rotated);
  ASSERT_TRUE(spec.down_hadamard.has_value());
  EXPECT_EQ(*spec.down_hadamard, (HadamardShape{176, 176, 44}));
  EXPECT_EQ(rotated.tensors().size(), source.tensors().size() + (source.find("lm_head.weight") ? 0 : 1));
  for (const auto& [name, tensor] : rotated.tensors()) {
    if (name.ends_with("norm.weight")) {
      const Tensor ones = tensor.read_f32();
      for (const float value : ones.values<float>()) EXPECT_EQ(value, 1.0f) << name;
    }
  }
  // Rows read alone are the rows of the whole, also where each depends on all.
  for (const char* name : {"model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.v_proj.bias",
                           "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"}) {
    const CheckpointTensor& tensor = rotated.require(name);
    const Tensor whole = tensor.read_f32();
    const int64_t inputs = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
    std::vector<float> rows(static_cast<size_t>(3 * inputs));
    tensor.read_rows(2, 3, rows.data());
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(rows[i], whole.data<float>()[2 * inputs + static_cast<int64_t>(i)]) << name;
    }
  }
  EXPECT_THROW(rotate_checkpoint(rotate_checkpoint(Checkpoint::open(fixture("tiny/llama")), {}), {}), Error);
}

// The same on every machine, and as many of one sign as of the other.
TEST(Rotation, SignsDependOnTheSeedOnly) {
  EXPECT_EQ(random_signs(100, 3), random_signs(100, 3));
  EXPECT_NE(random_signs(100, 3), random_signs(100, 4));
  const std::vector<float> signs = random_signs(10000, 1);
  int64_t negative = 0;
  for (const float sign : signs) {
    ASSERT_TRUE(sign == 1.0f || sign == -1.0f);
    negative += sign < 0;
  }
  EXPECT_NEAR(static_cast<double>(negative), 5000, 250);  // five standard deviations
}

// The residual stream and what is tied to it stay; the norms hold signs.
TEST(Rotation, OfInputsLeavesTheStream) {
  const Checkpoint source = Checkpoint::open(fixture("tiny/qwen2"));
  const Checkpoint rotated = rotate_checkpoint(Checkpoint::open(fixture("tiny/qwen2")),
                                               {.hidden = HiddenRotation::kInputs, .seed = 7});
  EXPECT_TRUE(rotated.config().at("tie_word_embeddings"));
  EXPECT_FALSE(rotated.config().at("nibble_rotation").contains("residual"));
  const ModelSpec spec = read_model_spec(rotated);
  ASSERT_TRUE(spec.hidden_hadamard.has_value());
  EXPECT_EQ(*spec.hidden_hadamard, (HadamardShape{64, 64, 1}));
  for (const char* name : {"model.embed_tokens.weight", "model.norm.weight"}) {
    const Tensor before = source.require(name).read_f32(), after = rotated.require(name).read_f32();
    for (int64_t i = 0; i < before.elements(); ++i)
      ASSERT_EQ(after.data<float>()[i], before.data<float>()[i]);
  }
  const char* kNorm = "model.layers.0.input_layernorm.weight";
  const Tensor before = source.require(kNorm).read_f32(), after = rotated.require(kNorm).read_f32();
  int64_t turned = 0;
  for (int64_t i = 0; i < before.elements(); ++i) {
    EXPECT_EQ(std::fabs(after.data<float>()[i]), std::fabs(before.data<float>()[i]));
    turned += after.data<float>()[i] == -before.data<float>()[i];
  }
  EXPECT_GT(turned, 10);
  EXPECT_LT(turned, 54);
}

// A factor in front of a rotation that runs with the model would no longer be one behind it.
TEST(Rotation, AtRunTimeLetsNoFactorsThrough) {
  const Checkpoint rotated = rotate_checkpoint(Checkpoint::open(fixture("tiny/qwen2")),
                                               {.hidden = HiddenRotation::kInputs, .seed = 7});
  ThreadPool pool(1);
  const std::unique_ptr<Model> model = Model::load(rotated, pool);
  for (Block& block : model->blocks()) {
    for (const auto& sublayer : block.sublayers) {
      for (LinearGroup* group : sublayer->groups()) {
        EXPECT_EQ(sublayer->norm_before(*group), nullptr) << group->input_name();
        if (group->slots().front().role != LinearRole::kDown) continue;
        EXPECT_EQ(sublayer->linear_before(*group).group, nullptr);
      }
    }
  }
}

// Balancing gives each channel and the column behind it the same size, up to one factor for all.
TEST(Rotation, BalancedChannels) {
  const Checkpoint source = Checkpoint::open(fixture("tiny/llama"));
  const ModelSpec spec = read_model_spec(source);
  const std::vector<ChannelSizes> sizes = some_channel_sizes(spec);
  // Sums of squares of a down projection's columns: a rotation of the residual stream keeps them.
  const auto square_columns = [&](const Checkpoint& checkpoint) {
    const Tensor down = checkpoint.require("model.layers.1.mlp.down_proj.weight").read_f32();
    std::vector<double> sums(static_cast<size_t>(spec.intermediate_size));
    for (int64_t i = 0; i < down.elements(); ++i) {
      const double value = down.data<float>()[i];
      sums[static_cast<size_t>(i % spec.intermediate_size)] += value * value;
    }
    return sums;
  };
  const std::vector<double> before = square_columns(source);
  const std::vector<double> after = square_columns(
      rotate_checkpoint(Checkpoint::open(fixture("tiny/llama")), {.down_input = false, .channels = sizes}));
  double ratio = 0;  // of the squared size of column and channel, the same for all that are used
  for (size_t i = 0; i < before.size(); ++i) {
    const double factor_squared = after[i] / before[i];
    const double size = sizes[1].down[i];
    if (size == 0) {
      EXPECT_NEAR(factor_squared, 1, 1e-5);
      continue;
    }
    const double this_ratio = after[i] * factor_squared / (size * size);
    if (ratio == 0) ratio = this_ratio;
    EXPECT_NEAR(this_ratio / ratio, 1, 1e-4) << i;
  }
  EXPECT_GT(ratio, 0);
}

TEST(Rotation, ColumnsAreRotatedAsRows) {
  const Rotation rotation(choose_hadamard_shape(56), random_signs(56, 2));
  constexpr int64_t kColumns = 37;
  std::vector<float> matrix(56 * kColumns), transposed(matrix.size());
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = std::sin(static_cast<float>(i));
  for (int64_t i = 0; i < 56; ++i) {
    for (int64_t j = 0; j < kColumns; ++j) {
      transposed[static_cast<size_t>(j * 56 + i)] = matrix[static_cast<size_t>(i * kColumns + j)];
    }
  }
  rotation.rotate_columns(matrix.data(), kColumns);
  rotation.rotate_rows(transposed.data(), kColumns);
  for (int64_t i = 0; i < 56; ++i) {
    for (int64_t j = 0; j < kColumns; ++j) {
      EXPECT_EQ(matrix[static_cast<size_t>(i * kColumns + j)], transposed[static_cast<size_t>(j * 56 + i)]);
    }
  }
}

template <typename Change>
std::string message_after(Change&& change) {
  const TemporaryFolder folder;
  std::map<std::string, Tensor> tensors = open_safetensors(fixture("tiny/llama/model.safetensors")).tensors;
  Json config = read_json_file(fixture("tiny/llama/config.json"));
  change(tensors, config);
  write_safetensors(folder.path() / "model.safetensors", tensors);
  std::ofstream(folder.path() / "config.json") << config;
  try {
    const Checkpoint rotated = rotate_checkpoint(Checkpoint::open(folder.path()), {});
    for (const auto& [name, tensor] : rotated.tensors()) tensor.read_f32();
    ThreadPool pool(1);
    Model::load(rotated, pool);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void expect_mentions(const std::string& message, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' is not in: " << message;
  }
}

using Tensors = std::map<std::string, Tensor>;

TEST(RotationRefuses, WhatItWouldGetWrong) {
  expect_mentions(message_after([](Tensors& tensors, Json&) {
                    tensors["model.layers.1.post_feedforward_layernorm.weight"] =
                        tensors.at("model.norm.weight");
                  }),
                  {"model.layers.1.post_feedforward_layernorm.weight", "rotation"});
  expect_mentions(message_after([](Tensors& tensors, Json&) {
                    tensors["model.layers.1.mlp.up_proj.weight"] = Tensor::zeros(DType::kF32, {176, 63});
                  }),
                  {"model.layers.1.mlp.up_proj.weight", "[176, 63]", "[176, 64]"});
  expect_mentions(
      message_after([](Tensors& tensors, Json&) { tensors.erase("model.layers.0.input_layernorm.weight"); }),
      {"model.layers.0.input_layernorm.weight", "missing"});
  expect_mentions(message_after([](Tensors& tensors, Json&) {
                    Tensor bad = Tensor::zeros(DType::kF32, {64, 176});
                    bad.mutable_data<float>()[5] = std::nanf("");
                    tensors["model.layers.1.mlp.down_proj.weight"] = bad;
                  }),
                  {"model.layers.1.mlp.down_proj.weight", "NaN", "element 5"});
}

// "nibble_rotation" comes from a file.
TEST(RotationRefuses, ABadShapeInTheConfig) {
  const auto message = [](const Json& rotation) {
    const TemporaryFolder folder;
    fs::copy(fixture("tiny/llama"), folder.path(), fs::copy_options::recursive);
    Json config = read_json_file(folder.path() / "config.json");
    config["nibble_rotation"] = rotation;
    fs::remove(folder.path() / "config.json");
    std::ofstream(folder.path() / "config.json") << config;
    try {
      read_model_spec(Checkpoint::open(folder.path()));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message({{"down_input", {{"block", 176}, {"base", 44}}}}), "");
  EXPECT_EQ(message({{"residual", {{"block", 64}, {"base", 1}}}}), "");
  expect_mentions(message(3), {"'nibble_rotation'", "object"});
  expect_mentions(message({{"down_input", "hadamard"}}), {"'down_input'", "object"});
  expect_mentions(message({{"down_input", {{"block", 44}}}}), {"'base'"});
  expect_mentions(message({{"down_input", {{"block", 0}, {"base", 1}}}}), {"'block'", "0"});
  expect_mentions(message({{"down_input", {{"block", 352}, {"base", 44}}}}), {"'block'", "352"});
  expect_mentions(message({{"down_input", {{"block", 88}, {"base", 6}}}}), {"88", "6"});
  expect_mentions(message({{"down_input", {{"block", 128}, {"base", 1}}}}), {"128", "176"});
  expect_mentions(message({{"down_input", {{"block", 176}, {"base", 22}}}}), {"22"});
}

}  // namespace
}  // namespace nibble::testing
