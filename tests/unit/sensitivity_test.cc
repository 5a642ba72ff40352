// The backward pass of the pipeline: its store of results, its archive of states, interrupted and resumed.
#include "pipeline/sensitivity.h"

#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "backward_running.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "models/linear_info.h"
#include "pipeline/state_archive.h"
#include "temporary_folder.h"

namespace nibble::testing {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kGroups = 3;

// Squared gradients of every linear, guided Hessians of the value and down projections.
SensitivityPlan whole_plan(const ModelSpec& spec, int64_t sequences) {
  SensitivityPlan plan = {.sequences = sequences};
  for (const LinearInfo& linear : list_linears(spec)) {
    const bool guided = linear.role == LinearRole::kValue || linear.role == LinearRole::kDown;
    plan.linears[linear.name] = {.layer = linear.layer,
                                 .out_features = linear.out_features,
                                 .in_features = linear.in_features,
                                 .squared_gradients = true,
                                 .guided_groups = guided ? kGroups : 0};
  }
  return plan;
}

CalibrationData random_data(int64_t sequences, int64_t length) {
  return {.sequences = sequences, .length = length, .ids = random_ids(sequences * length, 1024, 23)};
}

struct Measured {
  explicit Measured(const std::string& path, int threads = 2)
      : checkpoint(Checkpoint::open(path)), pool(threads), shell(Model::load_shell(checkpoint, pool)) {}

  void measure(SensitivityStore& store, const CalibrationData& data, bool spill = false) {
    store.measure(
        *shell, data, spill, [](int64_t) { return false; }, pool);
  }

  Checkpoint checkpoint;
  ThreadPool pool;
  std::unique_ptr<Model> shell;
};

std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return files;
}

// The mean over sequences of the squares of gradients that plain loops summed; the fourth sequence is not
// used.
TEST(Sensitivity, IsTheMeanOverSequencesOfSquaredGradients) {
  const TemporaryFolder folder;
  Measured measured(fixture("tiny/qwen3"));
  const CalibrationData data = random_data(4, 41);
  SensitivityStore store(folder.path(), whole_plan(measured.shell->spec(), 3));
  measured.measure(store, data);
  EXPECT_EQ(files_of(folder.path()).size(), 2u);  // one per layer, nothing else

  const std::unique_ptr<Model> model = Model::load(measured.checkpoint, measured.pool);
  const BackwardRun run =
      run_backward(*model, measured.pool, std::span(data.ids).first(3 * 41), {.sequences = 3, .length = 41});
  for (const LinearInfo& linear : list_linears(measured.shell->spec())) {
    QuantizerInput input;
    store.fill(linear.name, &input);
    ASSERT_NE(input.sensitivity, nullptr) << linear.name;
    double largest = 0, apart = 0;
    for (int64_t i = 0; i < linear.out_features * linear.in_features; ++i) {
      double expected = 0;
      for (const auto& gradients : run.gradients) {
        const double gradient = gradients.at(linear.name)[static_cast<size_t>(i)];
        expected += gradient * gradient / 3;
      }
      largest = std::max(largest, expected);
      apart = std::max(apart, std::fabs(expected - input.sensitivity[i]));
    }
    EXPECT_GT(largest, 0) << linear.name;
    EXPECT_LE(apart, 1e-4 * largest) << linear.name;
  }
}

TEST(Sensitivity, GuidedHessiansCoverAllRows) {
  const TemporaryFolder folder;
  Measured measured(fixture("tiny/llama"));
  SensitivityStore store(folder.path(), whole_plan(measured.shell->spec(), 2));
  measured.measure(store, random_data(2, 33));
  QuantizerInput input, other;
  store.fill("model.layers.1.mlp.down_proj", &input);
  store.fill("model.layers.1.mlp.up_proj", &other);
  EXPECT_TRUE(other.guided_hessians.empty());
  ASSERT_EQ(input.guided_hessians.size(), static_cast<size_t>(kGroups));
  int64_t next = 0;
  const int64_t k = measured.shell->spec().intermediate_size;
  for (const GuidedHessian& guided : input.guided_hessians) {
    EXPECT_EQ(guided.first_row, next);
    next += guided.rows;
    for (int64_t i = 0; i < k; ++i) {
      EXPECT_GE(guided.hessian[i * k + i], 0);
      EXPECT_EQ(guided.hessian[i * k], guided.hessian[i]);
    }
  }
  EXPECT_EQ(next, measured.shell->spec().hidden_size);
}

// Neither the number of threads nor where the states wait changes a bit.
TEST(Sensitivity, ThreadsAndSpillingDoNotChangeTheResult) {
  std::map<std::string, std::string> first;
  const CalibrationData data = random_data(3, 50);
  for (const int threads : {1, 2, 4}) {
    const TemporaryFolder folder;
    Measured measured(fixture("tiny/mistral"), threads);
    SensitivityStore store(folder.path(), whole_plan(measured.shell->spec(), 3));
    measured.measure(store, data, /*spill=*/threads != 1);
    const auto files = files_of(folder.path());
    if (first.empty()) first = files;
    EXPECT_TRUE(files == first) << threads << " threads";
  }
}

// Only what is missing is measured, down to the lowest layer that wants it.
TEST(Sensitivity, LayersThatNobodyAsksForAreLeftOut) {
  const TemporaryFolder folder, whole;
  Measured measured(fixture("tiny/qwen2"));
  const CalibrationData data = random_data(2, 30);
  SensitivityStore all(whole.path(), whole_plan(measured.shell->spec(), 2));
  measured.measure(all, data);
  SensitivityStore store(folder.path(), whole_plan(measured.shell->spec(), 2));
  store.measure(
      *measured.shell, data, false, [](int64_t layer) { return layer == 0; }, measured.pool);
  EXPECT_FALSE(fs::exists(folder.path() / "sensitivity-00000.safetensors"));
  EXPECT_EQ(files_of(folder.path()).at("sensitivity-00001.safetensors"),
            files_of(whole.path()).at("sensitivity-00001.safetensors"));
  store.release(1);
  EXPECT_TRUE(files_of(folder.path()).empty());
  all.remove_all();
  EXPECT_TRUE(files_of(whole.path()).empty());
}

// Interrupted once the first of three blocks is measured, the pass goes on from there, to the same bits.
TEST(Sensitivity, ResumesWhereItWasInterrupted) {
  const TemporaryFolder interrupted, whole;
  Measured measured(fixture("llama_outliers"));
  const CalibrationData data = random_data(32, 128);
  const SensitivityPlan plan = whole_plan(measured.shell->spec(), 32);
  const fs::path last_block = interrupted.path() / "sensitivity-00002.safetensors";
  const fs::path gradient = interrupted.path() / "sensitivity-gradient.safetensors";
  {
    install_interrupt_handler();
    SensitivityStore store(interrupted.path(), plan);
    std::thread waiting([&] {
      while (!fs::exists(gradient)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::raise(SIGINT);
    });
    EXPECT_THROW(measured.measure(store, data), Interrupted);
    waiting.join();
    clear_interrupt();
  }
  ASSERT_TRUE(fs::exists(last_block));
  EXPECT_FALSE(fs::exists(interrupted.path() / "sensitivity-00000.safetensors"));
  const fs::file_time_type written = fs::last_write_time(last_block);
  SensitivityStore resumed(interrupted.path(), plan);
  measured.measure(resumed, data);
  EXPECT_EQ(fs::last_write_time(last_block), written);

  SensitivityStore store(whole.path(), plan);
  measured.measure(store, data);
  EXPECT_TRUE(files_of(interrupted.path()) == files_of(whole.path()));
}

TEST(Sensitivity, RefusesAForeignGradientFile) {
  const TemporaryFolder folder;
  Measured measured(fixture("tiny/llama"));
  const CalibrationData data = random_data(2, 20);
  const auto refusal = [&](const Shape& shape, const std::string& layer) -> std::string {
    fs::remove(folder.path() / "sensitivity-gradient.safetensors");
    write_safetensors(folder.path() / "sensitivity-gradient.safetensors",
                      {{"gradient", Tensor::zeros(DType::kF32, shape)}}, {{"layer", layer}});
    SensitivityStore store(folder.path(), whole_plan(measured.shell->spec(), 2));
    try {
      measured.measure(store, data);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refusal({40, 64}, "2").find("layer of 0 to 1"), std::string::npos);
  EXPECT_NE(refusal({40, 64}, "-1").find("layer of 0 to 1"), std::string::npos);
  EXPECT_NE(refusal({39, 64}, "1").find("[39, 64], expected F32 [40, 64]"), std::string::npos);
}

TEST(StateArchive, ReadsBackWhatWasWritten) {
  const TemporaryFolder folder;
  for (const bool spill : {false, true}) {
    StateArchive archive(3, 5, 7, spill ? &folder.path() : nullptr);
    EXPECT_TRUE(fs::is_empty(folder.path()));  // the file has no name
    for (int64_t block : {2, 0, 1}) {
      std::vector<float> states(35);
      for (size_t i = 0; i < states.size(); ++i)
        states[i] = static_cast<float>(100 * block) + static_cast<float>(i);
      archive.write(block, states.data());
    }
    std::vector<float> buffer(2 * 7);
    for (int64_t block = 0; block < 3; ++block) {
      const float* rows = archive.read(block, 3, 2, buffer.data());
      for (int i = 0; i < 14; ++i) EXPECT_EQ(rows[i], static_cast<float>(100 * block + 21 + i));
    }
  }
}

TEST(StateArchive, SaysWhereThereIsNoRoom) {
  const TemporaryFolder folder;
  try {
    const StateArchive archive(int64_t{1} << 20, int64_t{1} << 20, 1 << 10, &folder.path());  // 4 PiB
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(folder.path().string()), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble::testing
