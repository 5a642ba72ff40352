// What can be said of GPUs without having one: messages, and which kernels the table gives to which GPU.
#include "backend/cuda/device.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "backend/cuda/blas_lt.h"
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "cases/linear_cases.h"
#include "cuda/gpu.h"

namespace nibble::cuda {
namespace {

TEST(GpuMessages, OldAndNewGpusAreRefusedWithTheirCapability) {
  for (const auto& [major, minor] : {std::pair(8, 0), std::pair(8, 6), std::pair(8, 9), std::pair(9, 0)})
    EXPECT_EQ(capability_refusal(major, minor), "") << major << "." << minor;
  EXPECT_NE(capability_refusal(7, 5).find("7.5 is older than 8.0"), std::string::npos);
  EXPECT_NE(capability_refusal(12, 0).find("no kernels for compute capability 12.0"), std::string::npos);
  EXPECT_NE(capability_refusal(9, 1), "");
}

TEST(GpuMessages, TellWhyThereIsNoGpu) {
  EXPECT_EQ(absence_reason(cudaErrorInsufficientDriver, 0, 13000), "there is no NVIDIA driver");
  EXPECT_EQ(absence_reason(cudaErrorInsufficientDriver, 11040, 13000),
            "the NVIDIA driver is for CUDA 11.4, too old for this program's 13.0; update the driver");
  EXPECT_EQ(absence_reason(cudaErrorNoDevice, 13000, 13000), "the NVIDIA driver finds no GPU");
  EXPECT_NE(absence_reason(cudaErrorInitializationError, 13000, 13000).find("cudaErrorInitializationError"),
            std::string::npos);
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(GpuMessages, OpeningWhatIsNotThereSaysSo) {
  if (gpu_problem().empty()) GTEST_SKIP() << "there is a GPU";
  const std::string message = message_of([] { open_device(3); });
  EXPECT_EQ(message.find("--device cuda:3: "), 0u) << message;
  EXPECT_NE(message.find("driver"), std::string::npos) << message;
}

TEST(GpuMessages, MissingBlasSaysWhatToDo) {
  const std::string message = message_of([] { blas_lt_version(); });
  if (message.find("could not be opened") == std::string::npos) GTEST_SKIP() << "there is a cuBLASLt";
  EXPECT_NE(message.find("libcublasLt.so"), std::string::npos) << message;
  EXPECT_NE(message.find("LD_LIBRARY_PATH"), std::string::npos) << message;
}

TEST(GpuMessages, MoreMemoryThanThereIsIsRefusedWithBothNumbers) {
  if (const std::string problem = gpu_problem(); !problem.empty()) GTEST_SKIP() << problem;
  open_device(0);
  const std::string message = message_of([] { const Buffer all(size_t{1} << 50); });
  EXPECT_NE(message.find("out of GPU memory: 1024.0 TiB were asked for"), std::string::npos) << message;
  EXPECT_NE(message.find("are free"), std::string::npos) << message;
  const Buffer little(16);  // and the GPU goes on
  EXPECT_NE(little.data(), nullptr);
}

// --- the table

PackedLinear packed(const char* format, const cases::WeightSpec& spec) {
  const cases::LinearCase shape = {64, 256, std::string_view(format) == "quik" ? 32 : 0, 1};
  return find_format(format)->pack(cases::make_weight(shape, spec, true), "blocks.0.linear");
}

Device gpu(int major, int minor) {
  return {.name = "a GPU", .major = major, .minor = minor, .multiprocessors = 108};
}

std::string chosen(const PackedLinear& linear, const Device& device) {
  return choose_device_kernel({.linear = &linear, .out_features = linear.out_features}, device).kernel->name;
}

TEST(GpuTable, TakesTheKernelsOfTheGpuAtHand) {
  const PackedLinear quik = packed("quik", {.weight_bits = 4, .activation_bits = 4});
  EXPECT_EQ(chosen(quik, gpu(9, 0)), "cuda-quik");
  for (const int minor : {0, 6, 9}) EXPECT_EQ(chosen(quik, gpu(8, minor)), "cuda-quik-mma");
  const PackedLinear grouped = packed("group_int", {.weight_bits = 4, .group_size = 128});
  EXPECT_EQ(chosen(grouped, gpu(9, 0)), "cuda-w4a16");
  const DeviceKernelChoice choice =
      choose_device_kernel({.linear = &grouped, .out_features = grouped.out_features}, gpu(8, 6));
  EXPECT_STREQ(choice.kernel->name, "cuda-w4a16-plain");
  ASSERT_EQ(choice.refused.size(), 1u);
  EXPECT_EQ(choice.refused.front().second, "needs compute capability 9.0 (Hopper), this GPU has 8.6");
  const PackedLinear narrow = packed("group_int", {.weight_bits = 3, .group_size = 128});
  EXPECT_EQ(chosen(narrow, gpu(8, 0)), "cuda-expanded");
}

// Sets an environment variable as long as it lives.
struct Forced {
  explicit Forced(const char* kernel) { setenv("NIBBLE_KERNEL", kernel, 1); }
  ~Forced() { unsetenv("NIBBLE_KERNEL"); }
};

TEST(GpuTable, AForcedKernelRunsWhereItCan) {
  const PackedLinear quik = packed("quik", {.weight_bits = 8, .activation_bits = 8});
  {
    const Forced forced("cuda-quik-mma");
    EXPECT_EQ(chosen(quik, gpu(9, 0)), "cuda-quik-mma");
  }
  {
    const Forced forced("cuda-quik");
    EXPECT_NE(message_of([&] { chosen(quik, gpu(8, 9)); }).find("this GPU has 8.9"), std::string::npos);
    // The CPU beside it goes its own way.
    EXPECT_EQ(message_of([&] { choose_kernel({.linear = &quik, .out_features = quik.out_features}); }), "");
  }
  const Forced forced("cuda-nothing");
  EXPECT_NE(message_of([&] { chosen(quik, gpu(9, 0)); }).find("no kernel of that name"), std::string::npos);
}

}  // namespace
}  // namespace nibble::cuda
