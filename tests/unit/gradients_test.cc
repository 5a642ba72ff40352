// The backward pass against central differences of the real loss, and its sums against plain loops.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "backward_running.h"
#include "base/error.h"
#include "formats/dense/dense.h"
#include "gradients/accumulators.h"
#include "gradients/backward.h"
#include "temporary_folder.h"

namespace nibble::testing {
namespace {

std::vector<float> random_floats(int64_t count, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

struct FiniteDifferences {
  explicit FiniteDifferences(const std::string& path, int64_t length_)
      : checkpoint(Checkpoint::open(path)),
        pool(2),
        model(Model::load(checkpoint, pool)),
        length(length_),
        ids(random_ids(2 * length_, model->spec().vocabulary, 17)),
        run(run_backward(*model, pool, ids, {.sequences = 2, .length = length_})) {}

  double loss(int64_t sequence) const {
    return window_nll(
               *model, pool,
               std::span(ids).subspan(static_cast<size_t>(sequence * length), static_cast<size_t>(length))) /
           static_cast<double>(length - 1);
  }

  // (loss(W + step D) - loss(W - step D)) / (2 step), through forward passes of the model alone.
  double along(LinearGroup& group, LinearSlot& slot, const Matrix& direction, double step, int64_t sequence) {
    const std::shared_ptr<const PackedLinear> original = slot.packed;
    const Tensor* bias = original->find("bias");
    double losses[2] = {};
    for (const int side : {0, 1}) {
      Tensor weight = Tensor::empty(DType::kF32, {slot.out_features, group.in_features()});
      original->format->dequantize(*original, weight.mutable_data<float>());
      for (size_t i = 0; i < direction.size(); ++i) {
        weight.mutable_data<float>()[i] += static_cast<float>((side == 0 ? step : -step) * direction[i]);
      }
      slot.packed = std::make_shared<PackedLinear>(
          make_dense_linear(slot.name, weight, bias == nullptr ? Tensor() : *bias));
      group.prepare(pool);
      losses[side] = loss(sequence);
    }
    slot.packed = original;
    group.prepare(pool);
    return (losses[0] - losses[1]) / (2 * step);
  }

  Checkpoint checkpoint;
  mutable ThreadPool pool;
  std::unique_ptr<Model> model;
  int64_t length;
  std::vector<int32_t> ids;
  BackwardRun run;
};

class Backward : public ::testing::TestWithParam<const char*> {};

// 75 tokens: more than a tile of keys, no multiple of anything, and longer than the window of tiny/mistral
// (32).
void expect_central_differences(const std::string& path) {
  FiniteDifferences difference(path, 75);
  for (int64_t s : {0, 1}) {
    EXPECT_NEAR(difference.run.losses[static_cast<size_t>(s)], difference.loss(s), 1e-5);
  }
  std::mt19937 random(3);
  double worst = 0;
  difference.model->for_each_group([&](LinearGroup& group) {
    for (LinearSlot& slot : group.slots()) {
      const int64_t sequence = static_cast<int64_t>(random() % 2);
      const Matrix& gradient = difference.run.gradients[static_cast<size_t>(sequence)].at(slot.name);
      double norm = 0;
      for (const double value : gradient) norm += value * value;
      norm = std::sqrt(norm);
      ASSERT_GT(norm, 0) << slot.name;
      // Along the gradient on a random half of the entries: a wrong scale, place or sign of any part of the
      // matrix shows. The step changes the loss by about 1e-2, ten thousand times its rounding.
      for (int mask = 0; mask < 2; ++mask) {
        Matrix direction(gradient.size());
        double expected = 0;
        for (size_t i = 0; i < gradient.size(); ++i) {
          if (random() % 2 == 0) continue;
          direction[i] = gradient[i] / norm;
          expected += gradient[i] * direction[i];
        }
        const double found = difference.along(group, slot, direction, 5e-3 / norm, sequence);
        EXPECT_NEAR(found, expected, 2e-3 * expected) << slot.name;  // measured: 3e-4
        worst = std::max(worst, std::fabs(found - expected) / expected);
      }
      // The largest entry alone.
      const auto largest = std::max_element(gradient.begin(), gradient.end(),
                                            [](double a, double b) { return std::fabs(a) < std::fabs(b); });
      Matrix direction(gradient.size());
      direction[static_cast<size_t>(largest - gradient.begin())] = 1;
      const double found = difference.along(group, slot, direction, 1e-3 / std::fabs(*largest), sequence);
      EXPECT_NEAR(found, *largest, 2e-2 * std::fabs(*largest)) << slot.name;
    }
  });
  ::testing::Test::RecordProperty("worst_relative_difference", std::to_string(worst));
}

TEST_P(Backward, MatchesCentralDifferences) { expect_central_differences(fixture(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Models, Backward,
                         ::testing::Values("tiny/llama", "tiny/llama3_rope", "tiny/mistral", "tiny/qwen2",
                                           "tiny/qwen3"),
                         [](const auto& test) { return std::string(test.param).substr(5); });

// Through the transform in front of the down projections of a rotated model: any model is one once told so.
TEST(BackwardRotated, MatchesCentralDifferences) {
  const TemporaryFolder folder;
  std::filesystem::copy(fixture("tiny/llama"), folder.path(), std::filesystem::copy_options::recursive);
  Json config = read_json_file(folder.path() / "config.json");
  config["nibble_rotation"] = {{"down_input", {{"block", 176}, {"base", 44}}}};
  std::filesystem::remove(folder.path() / "config.json");
  std::ofstream(folder.path() / "config.json") << config;
  expect_central_differences(folder.path().string());
}

// A batch of sequences gives each what it gives alone, and the same bits for any number of threads.
TEST(BackwardBatch, SequencesAreIndependentAndThreadsDoNotMatter) {
  const Checkpoint checkpoint = Checkpoint::open(fixture("tiny/qwen3"));
  const std::vector<int32_t> ids = random_ids(3 * 40, 1024, 5);
  std::map<int, BackwardRun> runs;
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    const std::unique_ptr<Model> model = Model::load(checkpoint, pool);
    runs[threads] = run_backward(*model, pool, ids, {.sequences = 3, .length = 40});
    EXPECT_EQ(runs[threads].gradients, runs[1].gradients) << threads << " threads";
    EXPECT_EQ(runs[threads].losses, runs[1].losses);
    if (threads != 2) continue;
    const BackwardRun alone =
        run_backward(*model, pool, std::span(ids).subspan(40, 40), {.sequences = 1, .length = 40});
    for (const auto& [name, gradient] : alone.gradients[0]) {
      const Matrix& together = runs[2].gradients[1].at(name);
      double largest = 0, apart = 0;
      for (size_t i = 0; i < gradient.size(); ++i) {
        largest = std::max(largest, std::fabs(gradient[i]));
        apart = std::max(apart, std::fabs(gradient[i] - together[i]));
      }
      EXPECT_LE(apart, 1e-4 * largest) << name;
    }
  }
}

// Recomputing gives the states that the forward pass gives.
TEST(BackwardBatch, RecomputesTheForwardPass) {
  const Checkpoint checkpoint = Checkpoint::open(fixture("tiny/mistral"));
  ThreadPool pool(2);
  const std::unique_ptr<Model> model = Model::load(checkpoint, pool);
  const std::vector<int32_t> ids = random_ids(70, 1024, 9);
  std::vector<float> forward(70 * static_cast<size_t>(model->spec().hidden_size));
  model->embed(ids, forward.data());
  std::vector<float> recomputed = forward, output(forward.size());
  const std::unique_ptr<SequenceCache> cache = model->make_cache(70);
  const SequenceSpan span = {.cache = cache.get(), .count = 70};
  Scratch scratch;
  model->run_blocks(forward.data(),
                    {.sequences = {&span, 1}, .tokens = 70, .scratch = &scratch, .pool = &pool});
  for (const Block& block : model->blocks()) {
    for (const auto& sublayer : block.sublayers) {
      make_backward(*model, *sublayer, pool)
          ->recompute(recomputed.data(), {.sequences = 1, .length = 70}, output.data(), scratch, pool);
      recomputed.swap(output);
    }
  }
  EXPECT_LE(max_difference(forward, recomputed), 1e-5 * standard_deviation(forward));
}

// Both norms, against differences of plain double arithmetic; sizes around the width of the vector loops.
TEST(NormBackward, MatchesCentralDifferences) {
  ThreadPool pool(2);
  for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
    for (const int64_t size : {1, 7, 16, 56, 257}) {
      if (kind == NormKind::kLayer && size == 1) continue;  // constant
      const ModelSpec spec = {.norm = kind, .norm_epsilon = 1e-3};
      const std::vector<float> x = random_floats(3 * size, 1), dy = random_floats(3 * size, 2),
                               weight = random_floats(size, 3);
      NormWeights norm = {.weight = Tensor::copy_of<float>({size}, weight)};
      if (kind == NormKind::kLayer) norm.bias = Tensor::zeros(DType::kF32, {size});
      std::vector<float> gradient(x.size(), 0.25f);
      add_norm_backward(spec, norm, x.data(), dy.data(), 3, size, gradient.data(), pool);

      // sum of dy * norm(x) of one row
      const auto value = [&](const std::vector<double>& row, int64_t t) {
        double mean = 0, squares = 0, sum = 0;
        if (kind == NormKind::kLayer) {
          for (const double v : row) mean += v / static_cast<double>(size);
        }
        for (const double v : row) squares += (v - mean) * (v - mean) / static_cast<double>(size);
        for (int64_t i = 0; i < size; ++i) {
          sum += dy[static_cast<size_t>(t * size + i)] * weight[static_cast<size_t>(i)] *
                 (row[static_cast<size_t>(i)] - mean) / std::sqrt(squares + 1e-3);
        }
        return sum;
      };
      for (int64_t t = 0; t < 3; ++t) {
        std::vector<double> row(x.begin() + t * size, x.begin() + (t + 1) * size);
        for (int64_t i = 0; i < size; ++i) {
          double& entry = row[static_cast<size_t>(i)];
          const double kept = entry;
          entry = kept + 1e-5;
          const double above = value(row, t);
          entry = kept - 1e-5;
          const double below = value(row, t);
          entry = kept;
          EXPECT_NEAR(gradient[static_cast<size_t>(t * size + i)], 0.25 + (above - below) / 2e-5, 2e-5)
              << "size " << size << ", row " << t << ", entry " << i;
        }
      }
    }
  }
}

struct AccumulatorCase {
  int64_t n, k, sequences, length;
};

// The outputs of the linear are columns [5, 5 + n) of its group's.
TEST(SquaredGradients, AreMeansOverSequencesOfSquares) {
  for (const AccumulatorCase& c : {AccumulatorCase{7, 5, 1, 3}, AccumulatorCase{40, 136, 3, 9},
                                   AccumulatorCase{130, 270, 2, 33}, AccumulatorCase{1, 300, 4, 1}}) {
    const int64_t stride = c.n + 11, tokens = c.sequences * c.length;
    const std::vector<float> dy = random_floats(tokens * stride, 1), x = random_floats(tokens * c.k, 2);
    Matrix expected(static_cast<size_t>(c.n * c.k));
    for (int64_t i = 0; i < c.n; ++i) {
      for (int64_t j = 0; j < c.k; ++j) {
        for (int64_t s = 0; s < c.sequences; ++s) {
          double gradient = 0;
          for (int64_t t = s * c.length; t < (s + 1) * c.length; ++t) {
            gradient += static_cast<double>(dy[static_cast<size_t>(t * stride + 5 + i)]) *
                        x[static_cast<size_t>(t * c.k + j)];
          }
          expected[static_cast<size_t>(i * c.k + j)] +=
              gradient * gradient / static_cast<double>(c.sequences);
        }
      }
    }
    std::vector<Tensor> results;
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      SquaredGradients squares(c.n, c.k);
      // In two calls where there are several sequences.
      const int64_t first = (c.sequences + 1) / 2;
      squares.add({dy.data() + 5, stride}, x.data(), {.sequences = first, .length = c.length}, pool);
      if (first < c.sequences) {
        squares.add({dy.data() + 5 + first * c.length * stride, stride}, x.data() + first * c.length * c.k,
                    {.sequences = c.sequences - first, .length = c.length}, pool);
      }
      results.push_back(squares.finish("w"));
    }
    const auto values = results[0].values<float>();
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(values[i], expected[i], 1e-4 * expected[i] + 1e-6) << c.n << " x " << c.k << ", " << i;
    }
    EXPECT_TRUE(std::ranges::equal(values, results[1].values<float>()));
  }
}

TEST(SquaredGradients, RefuseWhatIsNotFinite) {
  ThreadPool pool(1);
  SquaredGradients squares(2, 2);
  const std::vector<float> dy = {1e30f, 1}, x = {1, 1e30f};
  squares.add({dy.data(), 2}, x.data(), {.sequences = 1, .length = 1}, pool);
  try {
    squares.finish("model.layers.3.mlp.up_proj");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("model.layers.3.mlp.up_proj"), std::string::npos);
  }
}

TEST(GuidedHessians, WeightTokensByMeanSquaredGradients) {
  ThreadPool pool(2);
  const int64_t n = 10, k = 37, tokens = 50, stride = n + 3, groups = 4;
  std::vector<float> dy = random_floats(tokens * stride, 1, 1e-12f);  // squares below the smallest float
  const std::vector<float> x = random_floats(tokens * k, 2);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = GuidedHessians::first_row(n, groups, 3); i < n; ++i)
      dy[static_cast<size_t>(t * stride + i)] = 0;
  }
  GuidedHessians hessians(n, k, groups);
  hessians.add({dy.data(), stride}, x.data(), 20, pool, "w");
  hessians.add({dy.data() + 20 * stride, stride}, x.data() + 20 * k, 30, pool, "w");
  const Tensor found = hessians.finish("w");
  ASSERT_EQ(found.shape(), (Shape{groups, k, k}));
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = n * g / groups, end = n * (g + 1) / groups;
    std::vector<double> salience(tokens);
    double total = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = first; i < end; ++i) {
        const double gradient = dy[static_cast<size_t>(t * stride + i)];
        salience[static_cast<size_t>(t)] += gradient * gradient / static_cast<double>(end - first);
      }
      total += salience[static_cast<size_t>(t)];
    }
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        double expected = i == j ? 1 : 0;  // where no output of the group matters
        if (total > 0) {
          expected = 0;
          for (int64_t t = 0; t < tokens; ++t) {
            expected += 2 * salience[static_cast<size_t>(t)] / total *
                        static_cast<double>(x[static_cast<size_t>(t * k + i)]) *
                        x[static_cast<size_t>(t * k + j)];
          }
        }
        EXPECT_NEAR(found.data<float>()[(g * k + i) * k + j], expected, 1e-4) << g << ": " << i << ", " << j;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::testing
