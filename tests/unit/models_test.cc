// The model against logits, greedy continuations and per-window losses computed by transformers in float32.
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "base/error.h"
#include "base/half.h"
#include "io/safetensors.h"
#include "model_running.h"
#include "models/rope.h"
#include "temporary_folder.h"

namespace nibble::testing {
namespace {

struct LoadedModel {
  explicit LoadedModel(const std::string& path, int threads = 2)
      : checkpoint(Checkpoint::open(path)), pool(threads), model(Model::load(checkpoint, pool)) {}
  Checkpoint checkpoint;
  ThreadPool pool;
  std::unique_ptr<Model> model;
};

struct ReferenceLogits {
  std::vector<int32_t> ids;
  std::vector<float> logits;  // [ids, vocabulary]
};

ReferenceLogits read_reference_logits(const std::string& folder) {
  const SafetensorsFile file = open_safetensors(folder + "/reference_logits.safetensors");
  const auto ids = file.tensors.at("input_ids").values<int64_t>();
  const auto logits = file.tensors.at("logits").values<float>();
  return {{ids.begin(), ids.end()}, {logits.begin(), logits.end()}};
}

class Fixture : public ::testing::TestWithParam<const char*> {
 protected:
  std::string folder() const { return fixture(GetParam()); }
};

// Largest difference to the reference logits in units of their standard deviation.
double logit_difference(const std::string& folder, const ReferenceLogits& reference) {
  LoadedModel loaded(folder);
  Session session(*loaded.model, loaded.pool, static_cast<int64_t>(reference.ids.size()));
  return max_difference(session.feed(reference.ids), reference.logits) / standard_deviation(reference.logits);
}

// The logits of these two were computed after model.to(bfloat16).float(), which rounds the frequencies of the
// rotary embedding (a buffer that no checkpoint stores) to bfloat16: see RoundedFixture below.
bool reference_has_rounded_frequencies(const std::string& name) {
  return name == "llama_outliers" || name == "qwen3";
}

TEST_P(Fixture, LogitsMatchTransformers) {
  const double difference = logit_difference(folder(), read_reference_logits(folder()));
  RecordProperty("relative_difference", std::to_string(difference));
  EXPECT_LE(difference, reference_has_rounded_frequencies(GetParam()) ? 1e-2 : 2e-3);
}

// With the frequencies rounded as the reference had them (through GGUF's rope factors, which divide them),
// nothing of the difference is left.
class RoundedFixture : public Fixture {};

TEST_P(RoundedFixture, BFloat16Frequencies) {
  const Checkpoint checkpoint = Checkpoint::open(folder());
  const ModelSpec spec = read_model_spec(checkpoint);
  std::vector<float> factors = rope_frequencies(spec.rope, spec.head_dim, {});
  for (float& factor : factors) factor /= bf16_to_float(float_to_bf16(factor));

  const TemporaryFolder copy;
  std::map<std::string, Tensor> tensors = open_safetensors(folder() + "/model.safetensors").tensors;
  tensors["rope_freqs.weight"] = Tensor::copy_of<float>({static_cast<int64_t>(factors.size())}, factors);
  write_safetensors(copy.path() / "model.safetensors", tensors);
  Json config = checkpoint.config();
  config["nibble_rope_factors"] = true;
  std::ofstream(copy.path() / "config.json") << config;
  EXPECT_LE(logit_difference(copy.path().string(), read_reference_logits(folder())), 1e-4);
}

TEST_P(Fixture, GreedyContinuationMatchesTransformers) {
  LoadedModel loaded(folder());
  const Json reference = read_json_file(folder() + "/reference.json");
  const bool nested = reference.contains("greedy");
  const Json& holder = nested ? reference.at("greedy") : reference;
  const auto prompt = holder.at("prompt_ids").get<std::vector<int32_t>>();
  const auto expected = holder.at(nested ? "output_ids" : "greedy_ids").get<std::vector<int32_t>>();
  EXPECT_EQ(greedy(*loaded.model, loaded.pool, prompt, expected.size()), expected);
}

// The prompt in one batch, in chunks and token by token: the same function, summed in another order.
TEST_P(Fixture, ChunksAgree) {
  LoadedModel loaded(folder());
  const ReferenceLogits reference = read_reference_logits(folder());
  const double deviation = standard_deviation(reference.logits);
  const auto capacity = static_cast<int64_t>(reference.ids.size());
  const auto run = [&](size_t piece) {
    return Session(*loaded.model, loaded.pool, capacity).feed_in_pieces(reference.ids, piece);
  };
  const std::vector<float> whole = run(reference.ids.size());
  for (const size_t piece : {1, 3, 7, 16, 33}) {
    EXPECT_LE(max_difference(whole, run(piece)), 2e-5 * deviation) << "pieces of " << piece;
  }
}

TEST_P(Fixture, ThreadCountsGiveTheSameBits) {
  const ReferenceLogits reference = read_reference_logits(folder());
  const auto capacity = static_cast<int64_t>(reference.ids.size());
  const std::span<const int32_t> few = std::span(reference.ids).first(12);
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2, 4}) {
    LoadedModel loaded(folder(), threads);
    std::vector<float> logits = Session(*loaded.model, loaded.pool, capacity).feed(reference.ids);
    const std::vector<float> single = Session(*loaded.model, loaded.pool, capacity).feed_in_pieces(few, 1);
    logits.insert(logits.end(), single.begin(), single.end());
    results.push_back(std::move(logits));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

// A cache in F16 costs a little accuracy, and only a little.
TEST_P(Fixture, HalfPrecisionCache) {
  LoadedModel loaded(folder());
  const ReferenceLogits reference = read_reference_logits(folder());
  const auto capacity = static_cast<int64_t>(reference.ids.size());
  const std::vector<float> exact = Session(*loaded.model, loaded.pool, capacity).feed(reference.ids);
  const std::vector<float> half =
      Session(*loaded.model, loaded.pool, capacity, CacheType::kF16).feed_in_pieces(reference.ids, 17);
  const double difference = max_difference(exact, half);
  EXPECT_GT(difference, 0);
  EXPECT_LE(difference, 1e-2 * standard_deviation(exact));
}

// Caches of 8 and 4 bits take what they say and cost what such widths cost.
TEST_P(Fixture, QuantizedCaches) {
  LoadedModel loaded(folder());
  const ModelSpec& spec = loaded.model->spec();
  const ReferenceLogits reference = read_reference_logits(folder());
  const auto capacity = static_cast<int64_t>(reference.ids.size());
  const auto run = [&](CacheTypes types, size_t piece) {
    return Session(*loaded.model, loaded.pool, capacity, types).feed_in_pieces(reference.ids, piece);
  };
  const std::vector<float> exact = run(CacheType::kF32, reference.ids.size());
  const double deviation = standard_deviation(exact);
  double previous = 0;
  for (const CacheTypes types : {CacheTypes(CacheType::kF16), CacheTypes(CacheType::kQ8),
                                 CacheTypes(CacheType::kQ8, CacheType::kQ4), CacheTypes(CacheType::kQ4)}) {
    const double difference =
        root_mean_square_difference(exact, run(types, reference.ids.size())) / deviation;
    EXPECT_GT(difference, previous) << cache_type_name(types.keys) << " " << cache_type_name(types.values);
    EXPECT_LT(difference, 0.4);
    // In pieces (where single tokens take another path) the same, but for values that round the other way.
    EXPECT_LE(root_mean_square_difference(run(types, reference.ids.size()), run(types, 1)) / deviation,
              0.3 * difference + 1e-4);
    previous = difference;
  }
  const int64_t groups = (spec.head_dim + 31) / 32, rows = (capacity + kKeyTile - 1) / kKeyTile * kKeyTile;
  const int64_t q8 = spec.head_dim + 2 * groups, q4 = 20 * groups;
  EXPECT_EQ(loaded.model->make_cache(capacity, {CacheType::kQ8, CacheType::kQ4})->bytes(),
            static_cast<size_t>(spec.layers * spec.kv_heads * rows * (q8 + q4)));
}

TEST(CacheType, NamesOfBothKinds) {
  EXPECT_EQ(cache_type_from_name("f16", "x"), CacheType::kF16);
  EXPECT_EQ(cache_type_from_name("q8", "x"), CacheType::kQ8);
  EXPECT_EQ(cache_type_from_name("q8_0", "x"), CacheType::kQ8);
  EXPECT_EQ(cache_type_from_name("q4_0", "x"), CacheType::kQ4);
  EXPECT_EQ(cache_type_name(CacheType::kQ4), "q4");
  try {
    cache_type_from_name("q5", "--cache-type-k");
    FAIL() << "q5 was taken";
  } catch (const UsageError& error) {
    EXPECT_EQ(std::string(error.what()),
              "--cache-type-k is 'q5', expected one of f32, f16, q8, q8_0, q4, q4_0, q4_1");
  }
}

std::string test_name(const ::testing::TestParamInfo<const char*>& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, Fixture,
                         ::testing::Values("tiny/llama", "tiny/llama3_rope", "tiny/mistral", "tiny/qwen2",
                                           "tiny/qwen3", "llama_outliers", "qwen3"),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Models, RoundedFixture, ::testing::Values("llama_outliers", "qwen3"), test_name);

// Several sequences of different lengths in one batch give what each gives alone.
TEST(Batch, SequencesDoNotTouchEachOther) {
  LoadedModel loaded(fixture("tiny/mistral"));
  const Model& model = *loaded.model;
  const ReferenceLogits reference = read_reference_logits(fixture("tiny/mistral"));
  const std::span<const int32_t> ids = reference.ids;
  const std::vector<std::vector<int32_t>> prompts = {{ids.begin(), ids.begin() + 40},
                                                     {ids.begin() + 5, ids.begin() + 6},
                                                     {ids.begin() + 9, ids.begin() + 20}};

  std::vector<std::unique_ptr<SequenceCache>> caches;
  std::vector<SequenceSpan> spans;
  std::vector<int32_t> together;
  for (const std::vector<int32_t>& prompt : prompts) {
    caches.push_back(model.make_cache(64));
    spans.push_back({.cache = caches.back().get(),
                     .first_row = static_cast<int64_t>(together.size()),
                     .count = static_cast<int64_t>(prompt.size()),
                     .first_position = 0});
    together.insert(together.end(), prompt.begin(), prompt.end());
  }
  const auto tokens = static_cast<int64_t>(together.size());
  std::vector<float> hidden(together.size() * static_cast<size_t>(model.spec().hidden_size));
  std::vector<float> logits(together.size() * static_cast<size_t>(model.spec().vocabulary));
  Scratch scratch;
  model.embed(together, hidden.data());
  model.run_blocks(hidden.data(),
                   {.sequences = spans, .tokens = tokens, .scratch = &scratch, .pool = &loaded.pool});
  model.logits(hidden.data(), {}, tokens, logits.data(), scratch, loaded.pool);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::vector<float> alone = Session(model, loaded.pool, 64).feed(prompts[i]);
    const auto part = std::span(logits).subspan(
        static_cast<size_t>(spans[i].first_row * model.spec().vocabulary), alone.size());
    EXPECT_LE(max_difference(part, alone), 1e-3 * standard_deviation(alone)) << "sequence " << i;
  }
}

// Chosen rows of the logits are rows of all of them.
TEST(Batch, LogitsOfChosenRows) {
  LoadedModel loaded(fixture("tiny/llama"));
  const Model& model = *loaded.model;
  const auto vocabulary = static_cast<size_t>(model.spec().vocabulary);
  std::vector<float> hidden(5 * static_cast<size_t>(model.spec().hidden_size));
  model.embed(std::vector<int32_t>{1, 2, 3, 4, 5}, hidden.data());
  Scratch scratch;
  std::vector<float> all(5 * vocabulary), some(2 * vocabulary);
  model.logits(hidden.data(), {}, 5, all.data(), scratch, loaded.pool);
  model.logits(hidden.data(), std::vector<int64_t>{4, 1}, 5, some.data(), scratch, loaded.pool);
  EXPECT_LE(
      max_difference(std::span(some).first(vocabulary), std::span(all).subspan(4 * vocabulary, vocabulary)),
      1e-4);
  EXPECT_LE(max_difference(std::span(some).last(vocabulary), std::span(all).subspan(vocabulary, vocabulary)),
            1e-4);
}

TEST(Batch, RefusesIdsOutsideTheVocabulary) {
  LoadedModel loaded(fixture("tiny/llama"));
  std::vector<float> hidden(static_cast<size_t>(loaded.model->spec().hidden_size));
  EXPECT_THROW(loaded.model->embed(std::vector<int32_t>{1024}, hidden.data()), Error);
  EXPECT_THROW(loaded.model->embed(std::vector<int32_t>{-1}, hidden.data()), Error);
}

// A tap sees every group once, in order; stopping at one leaves the residual alone.
TEST(Tap, SeesInputsAndStops) {
  LoadedModel loaded(fixture("tiny/llama"));
  const std::unique_ptr<Model> shell = Model::load_shell(loaded.checkpoint, loaded.pool);
  Block block = shell->load_block(1, loaded.pool);
  const std::vector<int32_t> ids = {1, 5, 9};
  std::vector<float> hidden(3 * static_cast<size_t>(shell->spec().hidden_size));
  shell->embed(ids, hidden.data());
  const std::unique_ptr<SequenceCache> cache = shell->make_cache(8);
  const SequenceSpan span = {.cache = cache.get(), .count = 3};
  Scratch scratch;
  const RunContext context = {
      .sequences = {&span, 1}, .tokens = 3, .scratch = &scratch, .pool = &loaded.pool};

  std::vector<std::string> seen;
  const InputTap record = [&](const LinearGroup& group, const float*, int64_t tokens) {
    EXPECT_EQ(tokens, 3);
    seen.push_back(group.input_name());
    return true;
  };
  std::vector<float> through = hidden;
  for (const auto& sublayer : block.sublayers)
    EXPECT_TRUE(sublayer->forward(through.data(), context, &record));
  EXPECT_EQ(seen, (std::vector<std::string>{
                      "model.layers.1.self_attn.input", "model.layers.1.self_attn.o_proj.input",
                      "model.layers.1.mlp.input", "model.layers.1.mlp.down_proj.input"}));
  EXPECT_NE(through, hidden);

  const InputTap stop = [](const LinearGroup&, const float*, int64_t) { return false; };
  std::vector<float> untouched = hidden;
  for (const auto& sublayer : block.sublayers)
    EXPECT_FALSE(sublayer->forward(untouched.data(), context, &stop));
  EXPECT_EQ(untouched, hidden);
}

// Blocks loaded one at a time do what the whole model does.
TEST(Shell, BlocksGiveTheModelsLogits) {
  LoadedModel loaded(fixture("qwen3"));
  const ReferenceLogits reference = read_reference_logits(fixture("qwen3"));
  const std::vector<int32_t> ids(reference.ids.begin(), reference.ids.begin() + 32);
  const std::vector<float> expected = Session(*loaded.model, loaded.pool, 32).feed(ids);

  const std::unique_ptr<Model> shell = Model::load_shell(loaded.checkpoint, loaded.pool);
  std::vector<float> hidden(32 * static_cast<size_t>(shell->spec().hidden_size));
  shell->embed(ids, hidden.data());
  const std::unique_ptr<SequenceCache> cache = shell->make_cache(32);
  const SequenceSpan span = {.cache = cache.get(), .count = 32};
  Scratch scratch;
  for (int64_t layer = 0; layer < shell->spec().layers; ++layer) {
    const Block block = shell->load_block(layer, loaded.pool);
    for (const auto& sublayer : block.sublayers) {
      sublayer->forward(hidden.data(),
                        {.sequences = {&span, 1}, .tokens = 32, .scratch = &scratch, .pool = &loaded.pool},
                        nullptr);
    }
  }
  std::vector<float> logits(expected.size());
  shell->logits(hidden.data(), {}, 32, logits.data(), scratch, loaded.pool);
  EXPECT_EQ(logits, expected);
}

}  // namespace
}  // namespace nibble::testing
