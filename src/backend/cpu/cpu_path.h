// Which instruction sets this machine offers and which of them kernels may use.
#pragma once

#include <array>
#include <string>
#include <string_view>

namespace nibble {

// Ordered: a machine that has a path has all earlier ones, except that avx512vnni does not imply avxvnni.
enum class CpuPath { kScalar, kAvx2, kAvxVnni, kAvx512Vnni, kAvx512Vbmi, kAmx };

inline constexpr std::array kAllCpuPaths = {CpuPath::kScalar,     CpuPath::kAvx2,       CpuPath::kAvxVnni,
                                            CpuPath::kAvx512Vnni, CpuPath::kAvx512Vbmi, CpuPath::kAmx};

std::string_view cpu_path_name(
    CpuPath path) noexcept;  // as in NIBBLE_CPU: scalar avx2 avxvnni avx512vnni avx512vbmi amx

// Whether processor and operating system offer the instructions of `path` (amx also asks the kernel for
// permission).
bool machine_has(CpuPath path);

// The path of this process: the one forced by NIBBLE_CPU (Error when the machine lacks it or the name is
// unknown), else the best available. Read once.
CpuPath active_cpu_path();

// Whether a kernel written for `path` may run in this process: the machine has it and it is not beyond the
// active path.
bool cpu_path_enabled(CpuPath path);
// Empty when it is, else why not: "needs avx2", "NIBBLE_CPU excludes avx2".
std::string cpu_path_refusal(CpuPath path);

// Model name and relevant flags for `doctor` and benchmark files.
std::string cpu_description();

}  // namespace nibble
