// LinearKernel::refusal of a kernel that asks for nothing but an instruction set.
#pragma once

#include <string>

#include "backend/cpu/cpu_path.h"
#include "formats/format.h"

namespace nibble {

template <CpuPath kPath>
std::string cpu_refusal(const Problem&) {
  return cpu_path_refusal(kPath);
}

}  // namespace nibble
