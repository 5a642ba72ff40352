// nibble compare and nibble evaluate on the fixtures.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <fstream>

#include "program.h"
#include "random_model.h"

namespace nibble::e2e {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> compare_arguments(const std::string& recipes, const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"compare",
                                        fixture("llama_outliers"),
                                        "--recipes",
                                        recipes,
                                        "-f",
                                        fixture("text/valid.txt"),
                                        "-c",
                                        "128",
                                        "--chunks",
                                        "4",
                                        "--no-special",
                                        "--calib-ids",
                                        fixture("llama_outliers/calibration_ids.safetensors"),
                                        "--calib-sequences",
                                        "8",
                                        "--embedding-bits",
                                        "16"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

const Json& row_named(const Json& result, const std::string& name) {
  for (const Json& row : result.at("rows")) {
    if (row.at("name") == name) return row;
  }
  throw std::runtime_error("no row " + name);
}

TEST(Compare, MeasuresWhatTheOtherCommandsMeasure) {
  const TemporaryFolder folder;
  const fs::path work = folder / "work", report = folder / "report.html";
  const std::vector<std::string> options = {
      "--work-dir", work, "-o",         report,
      "-p",         "32", "-n",         "8",
      "-r",         "2",  "--evaluate", fixture("tasks/choices.jsonl") + "," + fixture("tasks/cloze.jsonl")};
  const Json result = nibble_json(compare_arguments("rtn-w4a4,quik-4b", options));
  EXPECT_EQ(result.at("model"), "llama_outliers");
  EXPECT_EQ(result.at("windows"), 4);
  EXPECT_EQ(result.at("tokens"), 4 * 127);
  EXPECT_EQ(result.at("special"), false);
  EXPECT_EQ(result.at("report"), report.string());
  ASSERT_EQ(result.at("rows").size(), 3u);
  EXPECT_EQ(result.at("rows").at(0).at("kind"), "source");

  // Bit for bit what `perplexity` and `inspect` say of the models that are left in the work folder.
  for (const char* name : {"rtn-w4a4", "quik-4b"}) {
    SCOPED_TRACE(name);
    const Json& row = row_named(result, name);
    EXPECT_TRUE(row.at("error").is_null());
    EXPECT_EQ(row.at("reused"), false);
    const std::string model = row.at("path");
    const Json measured =
        nibble_json({"perplexity", model, "-f", fixture("text/valid.txt"), "-c", "128", "--chunks", "4",
                     "--no-special", "--reference", fixture("llama_outliers")});
    for (const char* key :
         {"perplexity", "perplexity_stderr", "kl_divergence", "kl_stderr", "top1_agreement", "top1_stderr"}) {
      EXPECT_EQ(row.at(key), measured.at(key)) << key;
    }
    const Json inspected = nibble_json({"inspect", model});
    for (const char* key : {"bits_per_weight", "file_bytes", "mac_share"})
      EXPECT_EQ(row.at(key), inspected.at(key)) << key;
    EXPECT_EQ(row.at("layer_errors").size(), 21u);
    for (const Json& linear : inspected.at("linears")) {
      EXPECT_EQ(row.at("layer_errors").at(linear.at("name").get<std::string>()),
                linear.at("output_error") > 0.0 ? linear.at("output_error") : linear.at("weight_error"));
    }
    EXPECT_EQ(row.at("prompt_samples").size(), 2u);
    EXPECT_GT(row.at("decode_tokens_per_second"), 0.0);
    EXPECT_GT(row.at("peak_memory_bytes"), 1e6);
    EXPECT_GT(row.at("quantize_seconds"), 0.0);
    double shares = 0;
    for (const auto& [arithmetic, share] : row.at("arithmetic").items()) shares += share.get<double>();
    EXPECT_NEAR(shares, 1, 1e-9);

    const Json evaluated =
        nibble_json({"evaluate", model, "--tasks", fixture("tasks/choices.jsonl"), "--tasks",
                     fixture("tasks/cloze.jsonl"), "--reference", fixture("llama_outliers")});
    for (size_t i = 0; i < 2; ++i) {
      for (const char* key : {"task", "shape", "examples", "accuracy", "accuracy_stderr", "agreement"})
        EXPECT_EQ(row.at("tasks").at(i).at(key), evaluated.at("tasks").at(i).at(key)) << key;
    }
  }
  EXPECT_EQ(row_named(result, "quik-4b").at("gap_closed").at("rtn").at("baseline"), "rtn-w4a4");
  EXPECT_GT(row_named(result, "quik-4b").at("gap_closed").at("rtn").at("share"), 0.8);
  EXPECT_TRUE(row_named(result, "rtn-w4a4").at("gap_closed").at("rtn").is_null());

  const std::string html = read_file(report);
  EXPECT_TRUE(html.starts_with("<!doctype html>"));
  EXPECT_NE(html.find("quik-4b"), std::string::npos);
  EXPECT_NE(html.find("<svg"), std::string::npos);

  // Once more, with another recipe: what is there is neither quantized nor measured again.
  const Result again = nibble(
      compare_arguments("quik-4b,quik-8b", {"--work-dir", work, "--no-bench", "--evaluate", options.back()}));
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("quik-4b: was measured already"), std::string::npos) << again.err;
  EXPECT_NE(again.out.find("quik-8b"), std::string::npos);
  const Json cached = nibble_json(
      compare_arguments("quik-4b", {"--work-dir", work, "--no-bench", "--evaluate", options.back()}));
  Json before = row_named(result, "quik-4b"), after = row_named(cached, "quik-4b");
  EXPECT_EQ(after.at("reused"), true);
  for (const char* key : {"reused", "gap_closed", "prompt_samples", "decode_samples",
                          "prompt_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes"}) {
    before.erase(key);
    after.erase(key);
  }
  EXPECT_EQ(before, after);
  // Other windows are another measurement.
  const Result other =
      nibble(compare_arguments("quik-4b", {"--work-dir", work, "--no-bench", "--json", "--ctx-size", "64"}));
  EXPECT_NE(other.code, 0);  // -c is given twice
}

TEST(Compare, AFailingRecipeIsARowAndTheOthersGoOn) {
  const TemporaryFolder folder;
  std::ofstream(folder / "impossible.json")
      << R"({"name": "impossible", "description": "", "defaults": {"format": "quik", "quantizer": "rtn"},
             "overrides": [{"name": "*.no_such_proj", "settings": {"weight_bits": 8}}]})";
  const Result result = nibble(compare_arguments("rtn-w4a4," + (folder / "impossible.json").string(),
                                                 {"--no-bench", "--json", "-o", folder / "out.html"}));
  EXPECT_EQ(result.code, 1);
  const Json json = Json::parse(result.out);
  EXPECT_NE(row_named(json, "impossible").at("error").get<std::string>().find("no_such_proj"),
            std::string::npos);
  EXPECT_TRUE(row_named(json, "rtn-w4a4").at("error").is_null());
  EXPECT_TRUE(row_named(json, "rtn-w4a4").at("decode_tokens_per_second").is_null());
  EXPECT_NE(read_file(folder / "out.html").find("no_such_proj"), std::string::npos);
  // The work folder was this run's own.
  EXPECT_FALSE(fs::exists(folder / "out.work"));
}

TEST(Compare, AnInterruptedRunGoesOn) {
  const TemporaryFolder folder;
  const std::vector<std::string> arguments = compare_arguments(
      "rtn-w4a4,quik-4b", {"--work-dir", folder / "work", "--no-bench", "-o", folder / "out.html"});
  {
    Running running(arguments);
    running.wait_for_error_text("[3/3] quik-4b");
    running.send(SIGINT);
    const Result stopped = running.finish();
    EXPECT_EQ(stopped.code, 130) << stopped.err;
    EXPECT_NE(stopped.err.find("the same command goes on from there"), std::string::npos) << stopped.err;
    EXPECT_EQ(stopped.out, "");
    EXPECT_FALSE(fs::exists(folder / "out.html"));
  }
  const Result finished = nibble(arguments);
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_NE(finished.err.find("rtn-w4a4: was measured already"), std::string::npos) << finished.err;
  EXPECT_TRUE(fs::exists(folder / "out.html"));
}

TEST(Compare, OtherModelsCanStandBeside) {
  const TemporaryFolder folder;
  nibble_json({"quantize", fixture("llama_outliers"), "-o", folder / "mine", "--recipe", "rtn-w4a4"});
  const Json result = nibble_json({"compare", fixture("llama_outliers"), "--with", folder / "mine", "-f",
                                   fixture("text/valid.txt"), "-c", "64", "--chunks", "2", "--no-bench",
                                   "--work-dir", folder / "work"});
  ASSERT_EQ(result.at("rows").size(), 2u);
  EXPECT_EQ(result.at("rows").at(1).at("kind"), "model");
  EXPECT_EQ(result.at("rows").at(1).at("activation_bits"), 4);
  EXPECT_GT(result.at("rows").at(1).at("kl_divergence"), 0.1);
}

TEST(Compare, DamagedWorkIsDoneAgain) {
  const TemporaryFolder folder;
  const fs::path work = folder / "work";
  const std::vector<std::string> arguments =
      compare_arguments("rtn-w4a4", {"--work-dir", work, "--no-bench"});
  const Json first = nibble_json(arguments);
  const fs::path model = row_named(first, "rtn-w4a4").at("path").get<std::string>();
  std::ofstream(model / "config.json") << "{";
  std::ofstream(model.string() + ".json") << "nonsense";
  const Json second = nibble_json(arguments);
  EXPECT_EQ(row_named(second, "rtn-w4a4").at("reused"), false);
  EXPECT_EQ(row_named(second, "rtn-w4a4").at("kl_divergence"),
            row_named(first, "rtn-w4a4").at("kl_divergence"));
}

TEST(Inspect, RecordedErrorsThatAreNoneAreRefused) {
  const TemporaryFolder folder;
  nibble_json({"quantize", fixture("llama_outliers"), "-o", folder / "out", "--recipe", "rtn-w4a4"});
  const Json config = read_json((folder / "out") / "config.json");
  const std::string linear = "model.layers.1.mlp.up_proj";
  ASSERT_EQ(config.at("quantization_config").at("errors").size(), 21u);
  for (const char* bad : {"5", "[1]", "[1, -1]", "[1, \"x\"]", "{}"}) {
    Json changed = config;
    changed["quantization_config"]["errors"][linear] = Json::parse(bad);
    std::ofstream((folder / "out") / "config.json") << changed.dump();
    const Result result = nibble({"inspect", folder / "out"});
    EXPECT_EQ(result.code, 1) << bad;
    EXPECT_NE(result.err.find("'errors' of " + linear), std::string::npos) << result.err;
  }
  // Without them, and with what is not finite, a folder is as good.
  for (const bool none : {true, false}) {
    Json changed = config;
    if (none) {
      changed["quantization_config"].erase("errors");
    } else {
      changed["quantization_config"]["errors"][linear] = Json::parse("[null, null]");
    }
    std::ofstream((folder / "out") / "config.json") << changed.dump();
    const Json inspected = nibble_json({"inspect", folder / "out"});
    EXPECT_EQ(inspected.at("linears").at(0).contains("weight_error"), !none);
  }
}

TEST(Compare, Refusals) {
  const TemporaryFolder folder;
  const std::string model = fixture("llama_outliers"), text = fixture("text/valid.txt");
  struct Case {
    std::vector<std::string> arguments;
    int code;
    const char* message;
  };
  const Case cases[] = {
      {{"compare", model, "-f", text}, 2, "nothing to compare"},
      {{"compare", model, "--recipes", "rtn-w4a4"}, 2, "text"},
      {{"compare", model, "--recipes", "quik-5b", "-f", text}, 2, "quik-5b"},
      {{"compare", model, "--recipes", "rtn-w4a4,rtn-w4a4", "-f", text}, 2, "twice"},
      {{"compare", model, "--recipes", "quik-4b", "-f", text, "-c", "64", "--chunks", "1"},
       2,
       "needs calibration"},
      {{"compare", model, "--recipes", "rtn-w4a4", "-f", text, "-c", "4096", "--chunks", "1"},
       1,
       "context of 512"},
      {{"compare", model, "--recipes", "rtn-w4a4", "-f", text, "-c", "64", "-p", "5000"}, 1, "5000"},
      {{"compare", model, "--recipes", "rtn-w4a4", "-f", text, "--embedding-bits", "5"}, 2, "16, 8 or 4"},
      {{"compare", model, "--recipes", "rtn-w4a4", "-f", text, "-o", "/nonexistent/r.html"},
       1,
       "/nonexistent"},
      {{"compare", model, "--recipes", "rtn-w4a4", "-f", text, "--evaluate", text, "-c", "64"},
       1,
       "valid.txt:1"},
  };
  for (const Case& refused : cases) {
    std::vector<std::string> arguments = refused.arguments;
    arguments.insert(arguments.end(), {"--work-dir", folder / "work"});
    const Result result = nibble(arguments);
    EXPECT_EQ(result.code, refused.code) << result.err;
    EXPECT_NE(result.err.find(refused.message), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_FALSE(fs::exists(folder / "work"));
  }
}

TEST(Evaluate, EveryShapeAndItsKeys) {
  const std::string files = fixture("tasks/cloze.jsonl") + "," + fixture("tasks/hellaswag.jsonl") + "," +
                            fixture("tasks/mmlu.jsonl") + "," + fixture("tasks/choices.jsonl");
  const Json result = nibble_json({"evaluate", fixture("llama_outliers"), "--tasks", files});
  const std::vector<std::string> shapes = {"cloze", "hellaswag", "mmlu", "choices"};
  ASSERT_EQ(result.at("tasks").size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const Json& task = result.at("tasks").at(i);
    EXPECT_EQ(task.at("shape"), shapes[i]);
    EXPECT_GE(task.at("accuracy"), 0.0);
    EXPECT_LE(task.at("accuracy"), 1.0);
    EXPECT_EQ(task.contains("perplexity"), i == 0);
    EXPECT_EQ(task.contains("accuracy_norm"), i == 1 || i == 3);
    EXPECT_FALSE(task.contains("agreement"));
  }
  // A model trained on English tells it from word salad.
  EXPECT_GE(result.at("tasks").at(1).at("accuracy"), 0.5);
  EXPECT_GE(result.at("tasks").at(3).at("accuracy"), 0.6);

  const Json limited = nibble_json({"evaluate", fixture("llama_outliers"), "--tasks",
                                    fixture("tasks/mmlu.jsonl"), "--limit", "2", "--shots", "1", "--scoring",
                                    "continuation", "--reference", fixture("llama_outliers")});
  EXPECT_EQ(limited.at("tasks").at(0).at("examples"), 2);
  EXPECT_EQ(limited.at("tasks").at(0).at("shape"), "mmlu_continuation");
  EXPECT_EQ(limited.at("tasks").at(0).at("agreement"), 1.0);
  EXPECT_EQ(limited.at("shots"), 1);
}

TEST(Evaluate, ThreadsDoNotChangeTheResult) {
  const auto run = [](const char* threads) {
    return nibble_json(
        {"evaluate", fixture("llama_outliers"), "--tasks", fixture("tasks/cloze.jsonl"), "-t", threads});
  };
  EXPECT_EQ(run("1"), run("3"));
}

TEST(Evaluate, BadFilesAreRefusedByLine) {
  const TemporaryFolder folder;
  std::ofstream(folder / "bad.jsonl")
      << "{\"text\": \"a b\"}\n{\"prompt\": \"a\", \"choices\": [], \"answer\": 0}\n";
  const Result result = nibble({"evaluate", fixture("llama_outliers"), "--tasks", folder / "bad.jsonl"});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("bad.jsonl:2: is of the shape"), std::string::npos) << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_EQ(nibble({"evaluate", fixture("llama_outliers"), "--tasks", folder / "absent.jsonl"}).code, 1);
  EXPECT_EQ(nibble({"evaluate", fixture("llama_outliers")}).code, 2);
}

}  // namespace
}  // namespace nibble::e2e
