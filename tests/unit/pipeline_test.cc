// A quantized model in memory and the same one written, read and prepared again.
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>

#include "model_running.h"
#include "pipeline/block_quantizer.h"
#include "pipeline/quantize_model.h"
#include "temporary_folder.h"

namespace nibble::testing {
namespace {

constexpr int64_t kSequences = 8;

// Quantizes block after block as quantize_model() does and puts the linears into a loaded model.
std::unique_ptr<Model> quantize_in_memory(const Checkpoint& checkpoint, const Recipe& recipe,
                                          const CalibrationData& data, ThreadPool& pool) {
  const std::unique_ptr<Model> shell = Model::load_shell(checkpoint, pool, {.context_length = data.length});
  ResidualStream stream(*shell, data);
  BlockQuantizer quantizer(recipe, shell->spec(), {.stream = &stream}, pool);
  std::map<std::string, std::shared_ptr<const PackedLinear>> packed;
  for (int64_t layer = 0; layer < shell->spec().layers; ++layer) {
    Block block = shell->load_block(layer, pool);
    stream.next_block(*shell);
    for (PackedLinear& linear : quantizer.quantize(block).linears) {
      const std::string name = linear.name;
      packed[name] = std::make_shared<PackedLinear>(std::move(linear));
    }
  }
  std::unique_ptr<Model> model = Model::load(checkpoint, pool);
  model->for_each_group([&](LinearGroup& group) {
    for (LinearSlot& slot : group.slots()) slot.packed = packed.at(slot.name);
    group.prepare(pool);
  });
  return model;
}

// Every tensor that quantizing the model gives, and the states behind its last block.
std::map<std::string, std::vector<std::byte>> quantized_bytes(const Checkpoint& checkpoint,
                                                              const Recipe& recipe,
                                                              const CalibrationData& data,
                                                              double held_input_bytes, ThreadPool& pool) {
  const std::unique_ptr<Model> shell = Model::load_shell(checkpoint, pool, {.context_length = data.length});
  ResidualStream stream(*shell, data), float_stream(*shell, data);
  const bool asymmetric = recipe.defaults.asymmetric_calibration;
  BlockQuantizer quantizer(recipe, shell->spec(),
                           {.stream = &stream,
                            .float_stream = asymmetric ? &float_stream : nullptr,
                            .held_input_bytes = held_input_bytes},
                           pool);
  std::map<std::string, std::vector<std::byte>> bytes;
  for (int64_t layer = 0; layer < shell->spec().layers; ++layer) {
    Block block = shell->load_block(layer, pool);
    const Block float_block = shell->load_block(layer, pool);
    stream.next_block(*shell);
    float_stream.next_block(*shell);
    for (const PackedLinear& linear : quantizer.quantize(block, &float_block).linears) {
      for (const auto& [suffix, tensor] : linear.tensors) {
        bytes[linear.name + "." + suffix].assign(tensor.raw(), tensor.raw() + tensor.bytes());
      }
    }
  }
  const auto* states = reinterpret_cast<const std::byte*>(stream.states());
  bytes["states"].assign(states, states + stream.bytes());
  const auto* float_states = reinterpret_cast<const std::byte*>(float_stream.states());
  bytes["float states"].assign(float_states, float_states + float_stream.bytes());
  return bytes;
}

TEST(HeldInputs, ChangeNothing) {
  const std::string source = fixture("llama_outliers");
  ThreadPool pool(2);
  const Checkpoint checkpoint = Checkpoint::open(source);
  const ModelSpec spec = read_model_spec(checkpoint);
  const CalibrationData data = load_calibration_data(
      {.ids_file = source + "/calibration_ids.safetensors", .sequences = 11}, spec, source);
  for (const std::string name : {"quik-4b", "quik-4b-gptaq", "fptq", "rtn-w4a4"}) {
    for (const char* set : {"", "calibrate_on_codes=true", "down.quantizer=rtn"}) {
      SCOPED_TRACE(name + " " + set);
      Recipe recipe = Recipe::find(name);
      if (*set != '\0') recipe.apply_set(set);
      if (name == "quik-4b-gptaq" && std::string(set) == "down.quantizer=rtn") {
        recipe.apply_set("down.asymmetric_calibration=false");  // the float stream has no pairs there
      }
      const auto again = quantized_bytes(checkpoint, recipe, data, 0, pool);
      // Room for the attention's outputs alone, and for everything.
      const double attention = 4.0 * 11 * static_cast<double>(data.length * spec.query_size());
      for (const double room : {attention, 1e18}) {
        const auto held = quantized_bytes(checkpoint, recipe, data, room, pool);
        ASSERT_EQ(held.size(), again.size());
        for (const auto& [tensor, bytes] : again) ASSERT_TRUE(held.at(tensor) == bytes) << tensor;
      }
    }
  }
}

class Reload : public ::testing::TestWithParam<const char*> {};

TEST_P(Reload, GivesTheSameLogitsBitForBit) {
  const std::string source = fixture("llama_outliers");
  const std::string calibration = source + "/calibration_ids.safetensors";
  ThreadPool pool(2);
  const Checkpoint checkpoint = Checkpoint::open(source);
  const ModelSpec spec = read_model_spec(checkpoint);
  const Recipe recipe = Recipe::find(GetParam());
  const CalibrationOptions options = {.ids_file = calibration, .sequences = kSequences};
  const CalibrationData data = load_calibration_data(options, spec, source);
  const std::unique_ptr<Model> in_memory = quantize_in_memory(checkpoint, recipe, data, pool);

  const TemporaryFolder folder;
  const std::filesystem::path output = folder.path() / "quantized";
  quantize_model(
      {.model = source, .output = output, .recipe = recipe, .calibration = options, .embedding_bits = 16},
      pool);
  const Checkpoint written = Checkpoint::open(output);
  const std::unique_ptr<Model> reloaded = Model::load(written, pool);

  const std::vector<int32_t> ids(data.ids.begin(), data.ids.begin() + 48);
  const std::vector<float> expected = Session(*in_memory, pool, 64).feed(ids);
  EXPECT_EQ(Session(*reloaded, pool, 64).feed(ids), expected);
  // Token by token, where other kernels run.
  const std::vector<float> decoded = Session(*in_memory, pool, 64).feed_in_pieces(ids, 1);
  EXPECT_EQ(Session(*reloaded, pool, 64).feed_in_pieces(ids, 1), decoded);
  // The quantized model is another one than the source.
  EXPECT_NE(Session(*Model::load(checkpoint, pool), pool, 64).feed(ids), expected);
}

INSTANTIATE_TEST_SUITE_P(Recipes, Reload,
                         ::testing::Values("quik-4b", "quik-8b", "rtn-w4a4", "mixed-2-4-16", "quik-4b-sparse",
                                           "gptq-w4a16-g128"),
                         [](const auto& recipe) {
                           std::string name = recipe.param;
                           for (char& c : name) {
                             if (c == '-') c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace nibble::testing
