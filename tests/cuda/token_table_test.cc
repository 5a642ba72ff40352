// Tables of embeddings and heads on the GPU: 8-bit ones stay in 8 bits and mean what the CPU's do. What needs
// a GPU is skipped without one.
#include "backend/cuda/token_table.h"

#include <cmath>
#include <string_view>

#include "base/half.h"
#include "cuda/device_arrays.h"
#include "formats/quantized_weight.h"

namespace nibble::cuda {
namespace {

using testing::DeviceArray;
using testing::random_halves;

QuantizedWeight random_table(int n, int k, int bits, int group) {
  std::mt19937 generator(static_cast<unsigned>(n + k));
  QuantizedWeight weight = {.out_features = n, .in_features = k, .weight_bits = bits, .activation_bits = 16};
  weight.group_size = group;
  const int groups = group == 0 ? 1 : (k + group - 1) / group;
  std::uniform_int_distribution<int> code(-(1 << (bits - 1)), (1 << (bits - 1)) - 1);
  std::uniform_real_distribution<float> scale(0.001f, 0.02f);
  weight.codes.resize(static_cast<size_t>(n) * k);
  for (int8_t& value : weight.codes) value = static_cast<int8_t>(code(generator));
  weight.scales.resize(static_cast<size_t>(n) * groups);
  for (float& value : weight.scales) value = f16_to_float(float_to_f16(scale(generator)));
  return weight;
}

PackedLinear pack(const QuantizedWeight& weight) { return find_format("group_int")->pack(weight, "table"); }

TEST(TokenTables, EightBitRowsHaveAKernelAndOthersSayWhyNot) {
  EXPECT_EQ(std::string_view(choose_token_table(pack(random_table(5, 32, 8, 0))).kernel->name),
            "cuda-w8a16-rows");
  const auto slower = [](const PackedLinear& table) {
    const TokenTableChoice choice = choose_token_table(table);
    EXPECT_TRUE(choice.kernel->slower);
    return choice.refused.back().second;
  };
  EXPECT_EQ(slower(pack(random_table(5, 64, 4, 32))), "4 bits (it takes 8)");
  EXPECT_EQ(slower(pack(random_table(5, 64, 8, 32))), "groups of 32 columns (it takes whole rows)");
  EXPECT_EQ(slower(pack(random_table(5, 40, 8, 0))), "40 columns: no multiple of 16");
  QuantizedWeight biased = random_table(5, 32, 8, 0);
  biased.bias.assign(5, 1.0f);
  EXPECT_EQ(slower(pack(biased)), "a bias");
}

class RowTable : public testing::GpuTest {};

TEST_F(RowTable, EqualsPlainLoops) {
  open_device(0);
  const Stream stream;
  ThreadPool pool(2);
  struct Shape {
    int n, k, count;
  };
  for (const auto& [n, k, count] : {Shape{1, 16, 1}, Shape{17, 32, 3}, Shape{100, 64, 8}, Shape{333, 576, 9},
                                    Shape{1000, 4096, 1}, Shape{70, 4112, 64}, Shape{64, 208, 130}}) {
    const PackedLinear packed = pack(random_table(n, k, 8, 0));
    const auto table = choose_token_table(packed).kernel->load(packed, pool);
    ASSERT_EQ(table->tokens(), n);
    ASSERT_EQ(table->channels(), k);
    std::vector<float> weights(static_cast<size_t>(n) * k);
    packed.format->dequantize_rows(packed, 0, n, weights.data());

    std::mt19937 generator(4);
    const DeviceArray<uint16_t> x(random_halves(static_cast<size_t>(count) * k, generator));
    DeviceArray<float> y(std::vector<float>(static_cast<size_t>(count) * n, NAN));
    table->logits(reinterpret_cast<const __half*>(x.device()), count, y.device(), nullptr, stream.get());
    std::vector<int32_t> ids;
    for (int i = 0; i < count; ++i)
      ids.push_back(static_cast<int32_t>(generator() % static_cast<unsigned>(n)));
    const DeviceArray<int32_t> device_ids(ids);
    DeviceArray<float> rows(std::vector<float>(static_cast<size_t>(count) * k, NAN));
    table->embed(device_ids.device(), count, rows.device(), stream.get());
    stream.synchronize();
    y.download();
    rows.download();
    for (int t = 0; t < count; ++t) {
      for (int row = 0; row < n; ++row) {
        double sum = 0, magnitude = 0;
        for (int j = 0; j < k; ++j) {
          const double term = double{f16_to_float(x.host()[static_cast<size_t>(t) * k + j])} *
                              double{weights[static_cast<size_t>(row) * k + j]};
          sum += term;
          magnitude += std::fabs(term);
        }
        ASSERT_NEAR(y.host()[static_cast<size_t>(t) * n + row], sum, 4.0 * k * 0x1p-24 * magnitude)
            << n << "x" << k << ", token " << t << " row " << row;
      }
      for (int j = 0; j < k; ++j) {
        ASSERT_EQ(rows.host()[static_cast<size_t>(t) * k + j],
                  weights[static_cast<size_t>(ids[static_cast<size_t>(t)]) * k + j]);
      }
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
