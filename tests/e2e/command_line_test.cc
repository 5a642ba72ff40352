// Exit codes and messages of the contract: 0 done, 1 refused or failed with one message, 2 wrong usage.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "program.h"

namespace nibble::e2e {
namespace {

const char* const kCommandNames[] = {"run", "perplexity", "logits", "tokenize", "inspect", "bench", "doctor"};

// One message on standard error, nothing on standard output.
void expect_refusal(const std::vector<std::string>& arguments, int code, const std::string& message,
                    const Surroundings& surroundings = {}) {
  std::string line;
  for (const std::string& argument : arguments) line += " " + argument;
  const Result result = nibble(arguments, surroundings);
  EXPECT_EQ(result.code, code) << line << "\n" << result.err;
  EXPECT_EQ(result.out, "") << line;
  EXPECT_NE(result.err.find("nibble: "), std::string::npos) << line << "\n" << result.err;
  EXPECT_NE(result.err.find(message), std::string::npos) << line << "\n" << result.err;
}

TEST(Help, EveryCommandExplainsItselfWithExamples) {
  const Result all = nibble({"--help"});
  EXPECT_EQ(all.code, 0);
  for (const char* name : kCommandNames) {
    EXPECT_NE(all.out.find(name), std::string::npos) << name;
    const Result result = nibble({name, "--help"});
    EXPECT_EQ(result.code, 0) << name;
    EXPECT_NE(result.out.find("Examples:"), std::string::npos) << name;
    EXPECT_NE(result.out.find("--json"), std::string::npos) << name;
    EXPECT_EQ(result.err, "") << name;
  }
}

TEST(Help, VersionIsOneLine) {
  const Result result = nibble({"--version"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.out.rfind("nibble ", 0), 0u) << result.out;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 1);
}

TEST(Usage, WrongUseExitsWithTwo) {
  const std::string model = fixture("tiny/llama"), text = fixture("text/valid.txt");
  expect_refusal({}, 2, "--help");
  expect_refusal({"no-such-command"}, 2, "no-such-command");
  for (const char* name : kCommandNames) {
    expect_refusal({name, "--no-such-option"}, 2, std::string("nibble ") + name + " --help");
    expect_refusal({name, model, "-t", "0"}, 2, "-t");
    expect_refusal({name, model, "-t", "many"}, 2, "-t");
  }
  expect_refusal({"run"}, 2, "");
  expect_refusal({"run", model}, 2, "prompt");
  expect_refusal({"run", model, "-p", "x", "-f", text}, 2, "prompt");
  expect_refusal({"run", model, "-p", "x", "-n", "-2"}, 2, "-n");
  expect_refusal({"run", model, "-p", "x", "-n", "12monkeys"}, 2, "-n");
  expect_refusal({"run", model, "-p", "x", "--temp", "nan"}, 2, "--temp is nan");
  expect_refusal({"run", model, "-p", "x", "--temp", "-1"}, 2, "--temp is -1");
  expect_refusal({"run", model, "-p", "x", "--top-p", "1.5"}, 2, "--top-p is 1.5");
  expect_refusal({"run", model, "-p", "x", "--min-p", "-0.5"}, 2, "--min-p is -0.5");
  expect_refusal({"run", model, "-p", "x", "--top-k", "-1"}, 2, "--top-k is -1");
  expect_refusal({"run", model, "-p", "x", "--repeat-penalty", "0"}, 2, "--repeat-penalty is 0");
  expect_refusal({"run", model, "-p", "x", "--seed", "-2"}, 2, "--seed");
  expect_refusal({"run", model, "-p", "x", "--seed", "99999999999999999999"}, 2, "--seed");
  expect_refusal({"run", model, "-p", "x", "--top-k", "1.5"}, 2, "--top-k");
  expect_refusal({"run", model, "-p", "x", "--stop", "a", "b"}, 2, "b");
  expect_refusal({"run", model, "-p", "x", "--stop", ""}, 2, "stop text is empty");
  expect_refusal({"run", model, "-p", "x", "--device", "abacus"}, 2, "expected cpu, cuda, cuda:N or auto");
  expect_refusal({"perplexity", model}, 2, "");
  expect_refusal({"perplexity", model, "-f", text, "-c", "1"}, 2, "-c");
  expect_refusal({"perplexity", model, "-f", text, "--chunks", "0"}, 2, "--chunks");
  expect_refusal({"logits", model, "-p", "x"}, 2, "-o");
  expect_refusal({"bench", model, "-r", "0"}, 2, "-r");
  expect_refusal({"bench"}, 2, "MODEL or --shape is required");
  expect_refusal({"bench", model, "--recipe", "quik-4b"}, 2, "--shape");
  expect_refusal({"bench", model, "--shape", "1x1x1"}, 2, "--shape");
  for (const char* shape :
       {"1x1", "1x1x", "0x1x1", "1x1x1x1", "1x-1x1", "9999999999999999999999x1x1", "no-such-model"}) {
    expect_refusal({"bench", "--shape", shape}, 2, "expected MxNxK");
  }
  expect_refusal({"bench", "--shape", "1x1x1", "--recipe", "no-such-recipe"}, 2, "no-such-recipe");
  expect_refusal({"bench", "--shape", "1x1x1", "--kernels"}, 2, "--kernels is for --device cuda");
  expect_refusal({"bench", model, "--kernels"}, 2, "--shape");
}

TEST(Failure, MissingAndBrokenModelsExitWithOne) {
  const TemporaryFolder folder;
  std::ofstream(folder / "text.txt") << "no model";
  std::filesystem::create_directory(folder / "empty");
  const std::string text = fixture("text/valid.txt"), ids = folder / "ids.safetensors";
  for (const std::string model : {folder / "absent", folder / "text.txt", folder / "empty"}) {
    expect_refusal({"run", model, "-p", "x"}, 1, model);
    expect_refusal({"run", model, "-p", "x", "--json"}, 1, model);
    expect_refusal({"perplexity", model, "-f", text}, 1, model);
    expect_refusal({"logits", model, "-p", "x", "-o", folder / "out.safetensors"}, 1, model);
    expect_refusal({"tokenize", model, "-p", "x"}, 1, model);
    expect_refusal({"inspect", model}, 1, model);
    expect_refusal({"bench", model}, 1, model);
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
  const std::string model = fixture("tiny/llama");
  expect_refusal({"perplexity", model, "-f", folder / "absent"}, 1, "absent");
  expect_refusal({"perplexity", model, "-f", folder / "empty"}, 1, "empty");
  expect_refusal({"perplexity", model, "-f", text, "--reference", folder / "absent"}, 1, "absent");
  expect_refusal({"perplexity", model, "--ids-file", folder / "absent"}, 1, "absent");
  expect_refusal({"perplexity", model, "--ids-file", fixture("tiny/llama/model.safetensors")}, 1,
                 "input_ids");
  expect_refusal({"logits", model, "--ids-file", folder / "text.txt", "-o", folder / "out.safetensors"}, 1,
                 "text.txt");
  EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
  expect_refusal({"run", model, "--prompt-ids", "1 5000"}, 1, "5000");
  expect_refusal({"run", model, "--prompt-ids", "1 two"}, 1, "two");
  expect_refusal({"tokenize", model, "--decode", "-p", "99999"}, 1, "99999");
  expect_refusal({"tokenize", fixture("tiny/qwen2"), "--decode", "-p", "Hello"}, 1, "Hello");
  expect_refusal({"run", fixture("tiny/qwen2"), "-p", ""}, 1, "no tokens");
}

TEST(Failure, ImpossiblePathsAndDevicesAreRefused) {
  const std::string model = fixture("tiny/llama");
  expect_refusal({"run", model, "-p", "x"}, 1, "NIBBLE_CPU=abacus", {.environment = {"NIBBLE_CPU=abacus"}});
  expect_refusal({"doctor"}, 1, "NIBBLE_CPU=abacus", {.environment = {"NIBBLE_CPU=abacus"}});
  expect_refusal({"run", model, "-p", "x", "--device", "cuda"}, 1, "--device cuda:0");
  expect_refusal({"run", model, "-p", "x", "--device", "cuda:1"}, 1, "--device cuda:1");
  expect_refusal({"bench", "--shape", "1x1x1", "--device", "cuda"}, 1, "--device cuda:0");
}

TEST(Failure, SyntheticWeightsHeedTheRecipesKindOfScales) {
  const TemporaryFolder folder;
  std::ofstream(folder / "recipe.json") << R"({"name": "wide", "defaults": {"quantizer": "rtn",
      "format": "group_int_a8", "weight_bits": 4, "activation_bits": 8, "group_size": 128,
      "scale_kind": "integer", "scale_amplifier": 16777216}})";
  expect_refusal({"bench", "--shape", "1x16x28672", "--recipe", folder / "recipe.json"}, 1,
                 "use a smaller amplifier");
}

TEST(Failure, OutputsThatCannotBeWrittenAreRefusedBeforeTheWork) {
  const TemporaryFolder folder;
  const std::string model = fixture("tiny/llama");
  std::ofstream(folder / "file") << "x";
  std::filesystem::create_directory(folder / "taken");
  for (const std::string output :
       {folder / "absent/out.safetensors", folder / "file/out.safetensors", folder / "taken"}) {
    expect_refusal({"logits", model, "-p", "x", "-o", output}, 1, output);
  }
  expect_refusal({"logits", model, "-p", "x", "-o", "/proc/out.safetensors"}, 1, "/proc");
  // Nothing half-written stays behind.
  size_t entries = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "")) {
    static_cast<void>(entry);
    ++entries;
  }
  EXPECT_EQ(entries, 2u);
}

TEST(Output, AFullDiskIsReported) {
  const Result result = nibble({"tokenize", fixture("tiny/llama"), "-p", "x"}, {.output_path = "/dev/full"});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("No space left"), std::string::npos) << result.err;
}

TEST(Output, AClosedStandardOutputIsReported) {
  const Result result = nibble({"tokenize", fixture("tiny/llama"), "-p", "x"}, {.close_output = true});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("standard output"), std::string::npos) << result.err;
}

TEST(Output, MessagesCarryNoColourWhenNotOnATerminal) {
  const Result result = nibble(
      {"perplexity", fixture("qwen3"), "-f", fixture("text/valid.txt"), "-c", "64", "--chunks", "2", "-v"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err.find('\033'), std::string::npos) << result.err;
  EXPECT_EQ(result.err.find('\r'), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble::e2e
