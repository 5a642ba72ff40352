// Parts of `nibble compare` that need no run of it: the record beside a model, and child processes.
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "comparison/child_process.h"
#include "comparison/row_record.h"
#include "runtime/perplexity.h"
#include "temporary_folder.h"

namespace nibble {
namespace {

using testing::TemporaryFolder;

TEST(RowRecord, ReadsBackWhatWasWritten) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "row.json";
  RowRecord record = {.quantize_seconds = 3.5, .key = "abc"};
  record.row.perplexity = {12.25, 0.5};
  record.row.kl_divergence = {0.125, kNotMeasured};
  record.row.bits_per_weight = 4.25;
  record.row.file_bytes = 1000;
  record.row.arithmetic = {{"int4xint4->int32", 1.0}};
  record.row.mac_share = {{4, 1.0}};
  record.row.layer_errors = {{"model.layers.0.mlp.up_proj", 0.5},
                             {"model.layers.1.mlp.up_proj", kNotMeasured}};
  record.row.tasks = {{.task = "quiz", .shape = "cloze", .examples = 3, .accuracy = {0.5, 0.25}}};
  write_row_record(path, record);
  const RowRecord read = read_row_record(path);
  EXPECT_EQ(read.quantize_seconds, 3.5);
  EXPECT_EQ(read.key, "abc");
  EXPECT_EQ(read.row.perplexity.value, 12.25);
  EXPECT_EQ(read.row.perplexity.standard_error, 0.5);
  EXPECT_TRUE(std::isnan(read.row.kl_divergence.standard_error));
  EXPECT_EQ(read.row.mac_share, record.row.mac_share);
  EXPECT_EQ(read.row.arithmetic, record.row.arithmetic);
  ASSERT_EQ(read.row.layer_errors.size(), 2u);
  EXPECT_TRUE(std::isnan(read.row.layer_errors[1].error));
  ASSERT_EQ(read.row.tasks.size(), 1u);
  EXPECT_EQ(read.row.tasks[0].accuracy.value, 0.5);
  EXPECT_TRUE(std::isnan(read.row.tasks[0].perplexity.value));
}

TEST(RowRecord, WhatCannotBeReadIsAsIfItWereNotThere) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "row.json";
  EXPECT_EQ(read_row_record(path).key, "");
  for (const char* text : {"", "{", "[]", "{}", R"({"quantize_seconds": "long", "key": ""})",
                           R"({"quantize_seconds": 1, "key": "x"})", R"({"quantize_seconds": 1, "key": 7})",
                           R"({"quantize_seconds": 1, "key": "x", "perplexity": [1]})"}) {
    std::ofstream(path) << text;
    const RowRecord record = read_row_record(path);
    EXPECT_EQ(record.key, "") << text;
    EXPECT_TRUE(std::isnan(record.quantize_seconds)) << text;
  }
}

TEST(ChildProcess, ItsOutputAndItsFailure) {
  EXPECT_EQ(run_program("/bin/sh", {"-c", "printf 'one\\ntwo'; echo noise >&2"}), "one\ntwo");
  // More than a pipe holds, on both.
  EXPECT_EQ(run_program("/bin/sh", {"-c", "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2"}).size(),
            300000u);
  const auto message = [](const std::string& script) -> std::string {
    try {
      run_program("/bin/sh", {"-c", script});
    } catch (const Error& error) {
      return error.what();
    }
    return "it worked";
  };
  EXPECT_EQ(message("echo first >&2; echo second >&2; exit 3"), "'sh -c' ended with exit code 3: second");
  EXPECT_EQ(message("exit 1"), "'sh -c' ended with exit code 1: it said nothing");
  EXPECT_EQ(message("kill -9 $$"), "'sh -c' was ended by signal 9");
  EXPECT_THROW(run_program("/nonexistent/program", {}), Error);
}

TEST(RecordedReference, GivesTheBitsOfOneThatRunsBeside) {
  const std::string fixtures = NIBBLE_TEST_DATA;
  const auto pool = std::make_shared<ThreadPool>(2);
  const auto source = Engine::open(fixtures + "/tiny/llama", pool);
  const auto other = Engine::open(fixtures + "/tiny/mistral", pool);
  for (const bool special : {false, true}) {
    std::vector<int32_t> ids;
    for (int i = 0; i < 11 * 37; ++i) ids.push_back(i * 7919 % static_cast<int>(source->vocabulary()));
    const ScoringWindows windows = cut_windows(ids, 37, 0, special ? 1 : -1, "ids");
    const auto recorded = record_reference(*source, windows);
    EXPECT_EQ(recorded->result().perplexity, measure_perplexity(*source, windows, nullptr).perplexity);
    const PerplexityResult beside = measure_perplexity(*other, windows, source.get());
    const PerplexityResult after = measure_perplexity(*other, windows, *recorded);
    EXPECT_GT(beside.kl_divergence, 0.01);
    EXPECT_EQ(after.kl_divergence, beside.kl_divergence);
    EXPECT_EQ(after.kl_stderr, beside.kl_stderr);
    EXPECT_EQ(after.top1_agreement, beside.top1_agreement);
    EXPECT_EQ(after.perplexity, beside.perplexity);
    const ScoringWindows fewer = cut_windows(ids, 37, 3, special ? 1 : -1, "ids");
    EXPECT_THROW(measure_perplexity(*other, fewer, *recorded), Error);
  }
}

}  // namespace
}  // namespace nibble
