// What nvcc made of the kernels, without a GPU: no kernel spills registers, no wgmma is serialized, none
// emulates INT4, and each has the tensor-core instructions that it is written for. Reads the machine code in
// the object files and the reports that cmake/compile_cuda.sh keeps beside them.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {
namespace {

// --- What is expected. A kernel is known by its namespace and its name; a new one needs a line here.
enum Targets { kHopper = 90, kAmpere = 80, kBoth = 0 };
struct Expected {
  std::string_view space, kernel, opcodes;  // opcodes: those it must have, separated by spaces
  Targets targets = kHopper;                // the machine code there must be, and nothing else
  std::string_view instance = "";           // only those whose mangled name has this
};
constexpr Expected kExpected[] = {
    {"quik_cuda", "product_kernel", "IGMMA HGMMA"},
    {"quik_cuda", "quantize_kernel", "", kBoth, "few_tokens_quantize"},
    {"quik_cuda", "quantize_kernel", "", kHopper, "_11_quantize_cu"},
    {"quik_cuda", "mma_product_kernel", "IMMA.4 HMMA", kAmpere, "ArithmeticE0"},
    {"quik_cuda", "mma_product_kernel", "IMMA HMMA", kAmpere, "ArithmeticE1"},
    {"quik_cuda", "mma_product_kernel", "IMMA HMMA", kAmpere, "ArithmeticE2"},
    {"group_int_cuda", "decode_kernel", "HMMA"},
    {"group_int_cuda", "few_kernel", "HMMA"},
    {"group_int_cuda", "tile_kernel", "HGMMA"},
    {"group_int_cuda", "expand_kernel", "", kBoth},
    {"group_int_cuda", "plain_decode_kernel", "HMMA", kBoth},
    {"group_int_a8_cuda", "few_tokens_kernel", "IMMA"},
    {"group_int_a8_cuda", "quantize_signed_kernel", ""},
    {"cuda", "few_kernel", "HMMA", kBoth},
    {"cuda", "prompt_kernel", "HGMMA"},
    {"cuda", "plain_kernel", "", kBoth},
    {"cuda", "embed_kernel", "", kBoth},
    {"cuda", "norm_kernel", "", kBoth},
    {"cuda", "add_kernel", "", kBoth},
    {"cuda", "add_bias_kernel", "", kBoth},
    {"cuda", "rotate_kernel", "", kBoth},
    {"cuda", "store_values_kernel", "", kBoth},
    {"cuda", "silu_multiply_kernel", "", kBoth},
    {"cuda", "to_half_kernel", "", kBoth},
    {"cuda", "argmax_kernel", "", kBoth},
    {"cuda", "rank_kernel", "", kBoth},
    {"cuda", "random_half_kernel", "", kBoth},
    {"cuda", "random_words", "", kBoth},
    {"cuda", "random_halves", "", kBoth},
    {"cuda", "sum_words", "", kBoth},
    {"cuda", "int8_peak_kernel", "IGMMA"},
    {"cuda", "half_peak_kernel", "HGMMA"},
    {"quik_cuda", "quantize_step_kernel", ""},
    {"group_int_cuda", "rows8_kernel", "HMMA", kBoth},
    {"group_int_cuda", "embed_rows8_kernel", "", kBoth},
    {"group_int_a8_cuda", "quantize_step_kernel", ""},
    {"group_int_a8_cuda", "group_product_kernel", "IGMMA"},
    {"group_int_a8_cuda", "quantize_prompt_kernel", ""},
    {"cuda", "expand_cache_kernel", "", kBoth},
    {"cuda", "hadamard_kernel", "", kBoth},
};

// Kernels that may spill this many bytes for now, and why. Empty in the end.
struct AllowedSpill {
  std::string_view kernel;
  int bytes;
  std::string_view reason;
};
constexpr std::array<AllowedSpill, 0> kAllowedSpills = {};

// --- Machine code: 16 bytes per instruction, whose lowest 12 bits say which it is.
std::string_view opcode_name(uint64_t instruction, uint64_t modifiers) {
  switch (instruction & 0xFFF) {
    case 0x237:
      // Both bits are set where operands have 4 bits, of either sign, and neither where they have 8.
      return (modifiers >> 19 & 3) == 3 ? "IMMA.4" : "IMMA";
    case 0x23C:
      return "HMMA";
    case 0x9F0:  // both operands in shared memory
    case 0xDF0:  // one in registers
      return "HGMMA";
    case 0x9F1:
    case 0xDF1:
      return "IGMMA";
    default:
      return "";
  }
}

struct Kernel {
  std::string object, mangled;
  int target = 0;  // 80, 90
  std::map<std::string, int, std::less<>> opcodes;
};

template <typename T>
T read_at(const std::string& bytes, size_t at) {
  T value;
  if (at + sizeof value > bytes.size()) throw std::runtime_error("truncated ELF image");
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// The kernels of an ELF image for GPUs that starts at `image`; 64 bits, little-endian.
[[maybe_unused]] void read_image(const std::string& object, const std::string& bytes, size_t image,
                                 std::vector<Kernel>* kernels) {
  constexpr size_t kSectionBytes = 64;
  const auto sections = read_at<uint64_t>(bytes, image + 40);
  const auto count = read_at<uint16_t>(bytes, image + 60), names = read_at<uint16_t>(bytes, image + 62);
  const auto section = [&](size_t i) { return image + sections + i * kSectionBytes; };
  const int target = static_cast<int>(read_at<uint32_t>(bytes, image + 48) >> 8 & 0xFF);
  const size_t name_bytes = image + read_at<uint64_t>(bytes, section(names) + 24);
  for (size_t i = 0; i < count; ++i) {
    const std::string name = bytes.c_str() + name_bytes + read_at<uint32_t>(bytes, section(i));
    if (name.rfind(".text.", 0) != 0) continue;
    Kernel kernel = {object, name.substr(6), target, {}};
    const size_t code = image + read_at<uint64_t>(bytes, section(i) + 24);
    const auto size = read_at<uint64_t>(bytes, section(i) + 32);
    for (size_t at = 0; at < size; at += 16) {
      const std::string_view opcode =
          opcode_name(read_at<uint64_t>(bytes, code + at), read_at<uint64_t>(bytes, code + at + 8));
      ++kernel.opcodes[std::string(opcode)];
    }
    kernels->push_back(std::move(kernel));
  }
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::stringstream all;
  all << file.rdbuf();
  return all.str();
}

bool has_part(const std::string& mangled, std::string_view name) {
  return mangled.find(std::to_string(name.size()) + std::string(name)) != std::string::npos;
}

class GeneratedCode : public ::testing::Test {
 protected:
  void SetUp() override {
#ifndef NIBBLE_CUDA_OBJECTS
    GTEST_SKIP() << "built without a CUDA compiler: there are no kernels to look at";
#else
    std::stringstream lines(read_file(NIBBLE_CUDA_OBJECTS));
    for (std::string path; std::getline(lines, path);) {
      if (path.size() < 5 || path.substr(path.size() - 5) != ".cu.o") continue;
      objects_.push_back(path);
      const std::string bytes = read_file(path);
      constexpr std::string_view kElf =
          "\x7f"
          "ELF\x02\x01";
      constexpr uint16_t kGpu = 190;
      for (size_t at = bytes.find(kElf); at != std::string::npos; at = bytes.find(kElf, at + 4)) {
        if (read_at<uint16_t>(bytes, at + 18) == kGpu) read_image(path, bytes, at, &kernels_);
      }
      EXPECT_EQ(bytes.find("mma_sub_byte_internal"), std::string::npos)
          << path << " emulates products of INT4, which Hopper has no instruction for";
    }
    ASSERT_FALSE(kernels_.empty());
#endif
  }

  std::vector<std::string> objects_;
  std::vector<Kernel> kernels_;
};

TEST_F(GeneratedCode, KernelsHaveTheirTensorCoreInstructions) {
  std::set<std::pair<const Expected*, int>> seen;
  for (const Kernel& kernel : kernels_) {
    const Expected* found = nullptr;
    for (const Expected& expected : kExpected) {
      if (has_part(kernel.mangled, expected.space) && has_part(kernel.mangled, expected.kernel) &&
          kernel.mangled.find(expected.instance) != std::string::npos) {
        found = &expected;
      }
    }
    ASSERT_NE(found, nullptr) << "no line in kExpected for " << kernel.mangled << " of " << kernel.object;
    EXPECT_TRUE(found->targets == kBoth || found->targets == kernel.target)
        << kernel.mangled << " is compiled for " << kernel.target;
    seen.insert({found, kernel.target});
    std::stringstream opcodes{std::string(found->opcodes)};
    for (std::string opcode; opcodes >> opcode;) {
      EXPECT_GT(kernel.opcodes.count(opcode), 0u)
          << kernel.mangled << " for " << kernel.target << " has no " << opcode;
    }
  }
  for (const Expected& expected : kExpected) {
    for (const int target : {kHopper, kAmpere}) {
      if (expected.targets != kBoth && expected.targets != target) continue;
      EXPECT_TRUE(seen.count({&expected, target}) != 0)
          << "no kernel " << expected.space << "::" << expected.kernel << " for " << target;
    }
  }
}

TEST_F(GeneratedCode, NothingSpillsAndNothingIsSerialized) {
  const std::regex compiling("Compiling entry function '([^']*)'");
  const std::regex spills("(\\d+) bytes spill stores, (\\d+) bytes spill loads");
  int reports = 0;
  for (const std::string& object : objects_) {
    std::stringstream lines(read_file(object + ".log"));
    std::string kernel;
    for (std::string line; std::getline(lines, line);) {
      std::smatch match;
      if (std::regex_search(line, match, compiling)) kernel = match[1];
      EXPECT_FALSE(line.find("wgmma") != std::string::npos && line.find("serialized") != std::string::npos)
          << object << ": " << line;
      if (!std::regex_search(line, match, spills)) continue;
      ++reports;
      int allowed = 0;
      for (const AllowedSpill& exception : kAllowedSpills) {
        if (kernel.find(exception.kernel) != std::string::npos) allowed = exception.bytes;
      }
      EXPECT_LE(std::max(std::stoi(match[1]), std::stoi(match[2])), allowed)
          << kernel << " spills registers: " << line;
    }
  }
  EXPECT_GE(reports, static_cast<int>(kernels_.size())) << "ptxas' reports are missing";
}

}  // namespace
}  // namespace nibble
