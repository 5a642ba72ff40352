#include "backend/cpu/cpu_path.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/error.h"

namespace nibble {
namespace {

struct CpuFeatures {
  bool avx2 = false, avxvnni = false, avx512vnni = false, avx512vbmi = false, amx = false;
};

#if defined(__x86_64__)
uint64_t read_xcr0() {
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

CpuFeatures detect() {
  CpuFeatures features;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool osxsave = (c >> 27) & 1, fma = (c >> 12) & 1, f16c = (c >> 29) & 1;
  if (!osxsave) return features;
  const uint64_t xcr0 = read_xcr0();
  const bool os_ymm = (xcr0 & 0x6) == 0x6;
  const bool os_zmm = (xcr0 & 0xe6) == 0xe6;
  const bool os_tiles = (xcr0 & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const uint32_t b7 = b, c7 = c, d7 = d;
  const bool avx2 = (b7 >> 5) & 1, bmi2 = (b7 >> 8) & 1;
  features.avx2 = os_ymm && fma && f16c && avx2 && bmi2;
  const bool f = (b7 >> 16) & 1, dq = (b7 >> 17) & 1, bw = (b7 >> 30) & 1, vl = (b7 >> 31) & 1;
  features.avx512vnni = features.avx2 && os_zmm && f && dq && bw && vl && ((c7 >> 11) & 1);
  features.avx512vbmi = features.avx512vnni && ((c7 >> 1) & 1);
  const bool amx_tiles = os_tiles && ((d7 >> 24) & 1) && ((d7 >> 25) & 1);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) features.avxvnni = features.avx2 && ((a >> 4) & 1);
  if (features.avx512vbmi && amx_tiles) {
    // Linux hands out tile state on request only (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    features.amx = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  }
  return features;
}
#else
CpuFeatures detect() { return {}; }
#endif

const CpuFeatures& features() {
  static const CpuFeatures detected = detect();
  return detected;
}

}  // namespace

std::string_view cpu_path_name(CpuPath path) noexcept {
  static constexpr std::string_view kNames[] = {"scalar",     "avx2",       "avxvnni",
                                                "avx512vnni", "avx512vbmi", "amx"};
  return kNames[static_cast<int>(path)];
}

bool machine_has(CpuPath path) {
  switch (path) {
    case CpuPath::kScalar:
      return true;
    case CpuPath::kAvx2:
      return features().avx2;
    case CpuPath::kAvxVnni:
      return features().avxvnni;
    case CpuPath::kAvx512Vnni:
      return features().avx512vnni;
    case CpuPath::kAvx512Vbmi:
      return features().avx512vbmi;
    case CpuPath::kAmx:
      return features().amx;
  }
  return false;
}

CpuPath active_cpu_path() {
  static const CpuPath active = [] {
    if (const char* forced = std::getenv("NIBBLE_CPU"); forced != nullptr && *forced != '\0') {
      for (const CpuPath path : kAllCpuPaths) {
        if (cpu_path_name(path) != forced) continue;
        if (!machine_has(path)) fail("NIBBLE_CPU={}: this machine has no {}", forced, forced);
        return path;
      }
      fail("NIBBLE_CPU={}: expected scalar, avx2, avxvnni, avx512vnni, avx512vbmi or amx", forced);
    }
    CpuPath best = CpuPath::kScalar;
    for (const CpuPath path : kAllCpuPaths) {
      if (machine_has(path)) best = path;
    }
    return best;
  }();
  return active;
}

bool cpu_path_enabled(CpuPath path) { return path <= active_cpu_path() && machine_has(path); }

std::string cpu_path_refusal(CpuPath path) {
  if (cpu_path_enabled(path)) return "";
  return (machine_has(path) ? "NIBBLE_CPU excludes " : "needs ") + std::string(cpu_path_name(path));
}

std::string cpu_description() {
  std::ifstream info("/proc/cpuinfo");
  std::string line, model = "unknown processor";
  while (std::getline(info, line)) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(':');
      if (colon != std::string::npos && colon + 2 <= line.size()) model = line.substr(colon + 2);
      break;
    }
  }
  std::string paths;
  for (const CpuPath path : kAllCpuPaths) {
    if (!machine_has(path)) continue;
    if (!paths.empty()) paths += ' ';
    paths += cpu_path_name(path);
  }
  return model + " (" + paths + ")";
}

}  // namespace nibble
