// The public header as another program uses it: nothing else of the project is included.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "nibble/nibble.h"

namespace {

const std::string kFixtures = NIBBLE_TEST_DATA;

std::string valid_text(size_t bytes) {
  std::ifstream file(kFixtures + "/text/valid.txt");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str().substr(0, bytes);
}

nibble::GenerateOptions greedy(int64_t tokens) {
  return {.max_tokens = tokens, .sampling = {.temperature = 0.0}, .ignore_end_of_text = true};
}

TEST(Facade, GeneratesAndStreamsTheSameText) {
  nibble::LanguageModel model = nibble::LanguageModel::load(kFixtures + "/llama_outliers", {.threads = 1});
  EXPECT_EQ(model.vocabulary_size(), 1024);
  EXPECT_EQ(model.context_length(), 512);
  EXPECT_EQ(model.threads(), 1);
  std::string streamed;
  const nibble::Generation result = model.generate("It is a truth", greedy(20), [&](std::string_view text) {
    streamed += text;
    return true;
  });
  EXPECT_EQ(result.generated_tokens(), 20);
  EXPECT_EQ(result.stop_reason, nibble::StopReason::kTokenLimit);
  EXPECT_FALSE(result.text.empty());
  EXPECT_EQ(streamed, result.text);
  EXPECT_EQ(result.prompt_ids, model.tokenize("It is a truth"));
  EXPECT_TRUE(model.detokenize(result.output_ids).ends_with(result.text));
}

TEST(Facade, TheCallbackCanStop) {
  nibble::LanguageModel model = nibble::LanguageModel::load(kFixtures + "/llama_outliers");
  int pieces = 0;
  const nibble::Generation result =
      model.generate("It is a truth", greedy(200), [&](std::string_view) { return ++pieces < 3; });
  EXPECT_EQ(pieces, 3);
  EXPECT_LT(result.generated_tokens(), 20);
  EXPECT_EQ(result.stop_reason, nibble::StopReason::kInterrupted);
}

TEST(Facade, MeasuresPerplexityOfTextAndOfIds) {
  nibble::LanguageModel model = nibble::LanguageModel::load(kFixtures + "/qwen3");
  const std::string text = valid_text(4000);
  const nibble::PerplexityResult of_text =
      model.perplexity(text, {.window = 64, .max_windows = 5, .add_special = false}, &model);
  std::vector<int32_t> ids = model.tokenize(text, false);
  ids.resize(5 * 64);
  const nibble::PerplexityResult of_ids = model.perplexity(ids, 64);
  EXPECT_EQ(of_text.perplexity, of_ids.perplexity);
  EXPECT_EQ(of_text.tokens, 5 * 63);
  EXPECT_TRUE(of_text.has_reference);
  EXPECT_FALSE(of_ids.has_reference);
  EXPECT_LT(std::fabs(of_text.kl_divergence), 1e-9);
  EXPECT_EQ(of_text.top1_agreement, 1);
}

TEST(Facade, QuantizesAndLoadsTheResult) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("nibble-facade-" + std::to_string(getpid()));
  const nibble::QuantizeSummary summary =
      nibble::quantize({.model = kFixtures + "/llama_outliers",
                        .output = folder,
                        .recipe = "quik-8b",
                        .calibration_ids = kFixtures + "/llama_outliers/calibration_ids.safetensors",
                        .calibration_sequences = 4});
  EXPECT_EQ(summary.linears, 21);
  EXPECT_GT(summary.bits_per_weight, 8);
  EXPECT_LT(summary.output_bytes, summary.source_bytes);
  {
    nibble::LanguageModel quantized = nibble::LanguageModel::load(folder);
    nibble::LanguageModel original = nibble::LanguageModel::load(kFixtures + "/llama_outliers");
    const nibble::PerplexityResult result =
        quantized.perplexity(valid_text(4000), {.window = 128}, &original);
    EXPECT_GT(result.kl_divergence, 0);
    EXPECT_LT(result.kl_divergence, 0.05);
  }
  std::filesystem::remove_all(folder);
}

TEST(Facade, ErrorsAreRuntimeErrorsThatNameTheCause) {
  try {
    nibble::LanguageModel::load(kFixtures + "/absent");
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("absent"), std::string::npos) << error.what();
  }
  nibble::LanguageModel model = nibble::LanguageModel::load(kFixtures + "/tiny/llama");
  EXPECT_THROW(model.generate(std::vector<int32_t>{1, 1024}, greedy(1)), std::runtime_error);
  EXPECT_THROW(model.generate(std::vector<int32_t>{}, greedy(1)), std::runtime_error);
  EXPECT_THROW(model.generate(std::vector<int32_t>(600, 1), greedy(1)), std::runtime_error);
  EXPECT_THROW(model.perplexity(std::vector<int32_t>{1, 2, 3}, 8), std::runtime_error);
  EXPECT_THROW(model.perplexity(std::vector<int32_t>{1, -1}, 2), std::runtime_error);
}

}  // namespace
