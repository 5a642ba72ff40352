// Ctrl-C, and readers that go away.
#include <gtest/gtest.h>
#include <signal.h>

#include "program.h"

namespace nibble::e2e {
namespace {

// Would take minutes: a context far beyond what the model was made for, and no end.
std::vector<std::string> endless_run() {
  return {
      "run", fixture("llama_outliers"), "-p", "It is", "-n", "-1", "-c", "100000", "--ignore-eos", "--seed",
      "1"};
}

TEST(Interrupt, EndsARunWithTheTextSoFar) {
  Running program(endless_run());
  const std::string first = program.read_some();
  EXPECT_FALSE(first.empty());
  program.send(SIGINT);
  const Result result = program.finish();
  EXPECT_EQ(result.code, 130);
  EXPECT_TRUE(result.out.ends_with("\n"));
  EXPECT_NE(result.err.find("interrupted"), std::string::npos) << result.err;
}

TEST(Interrupt, LeavesOneJsonObject) {
  std::vector<std::string> arguments = endless_run();
  arguments.insert(arguments.end(), {"--json", "-v"});
  Running program(arguments);
  program.wait_for_error_text("loaded");
  program.send(SIGINT);
  const Result result = program.finish();
  EXPECT_EQ(result.code, 130);
  if (!result.out.empty()) {  // interrupted while generating, not before
    EXPECT_EQ(Json::parse(result.out).at("stop_reason"), "interrupted");
  }
}

TEST(Interrupt, EndsAMeasurement) {
  Running program({"perplexity", fixture("llama_outliers"), "-f", fixture("text/train.txt"), "-c", "512"});
  program.wait_for_error_text("windows of 512");
  program.send(SIGINT);
  const Result result = program.finish();
  EXPECT_EQ(result.code, 130);
  EXPECT_EQ(result.out, "");
  EXPECT_NE(result.err.find("nibble: interrupted"), std::string::npos) << result.err;
}

TEST(Interrupt, TerminateIsTheSame) {
  Running program(endless_run());
  program.read_some();
  program.send(SIGTERM);
  EXPECT_EQ(program.finish().code, 130);
}

TEST(ClosedPipe, EndsTheProgramQuietly) {
  Running program(endless_run());
  program.read_some();
  program.close_output();
  const Result result = program.finish();
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err.find("nibble: "), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble::e2e
