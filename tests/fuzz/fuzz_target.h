// What a fuzz target defines. Refusing an input with Error is right; any other exception, and whatever a
// sanitizer sees, is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// libFuzzer's entry point; returns 0.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace nibble::fuzz {

// Inputs to start from: well-formed ones of every sort, and bad ones that got far.
std::vector<std::string> fuzz_seeds();

}  // namespace nibble::fuzz
