// What the tests of single storage formats share.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "formats/format.h"

namespace nibble::testing {

// Those of the linear's format that this machine, and NIBBLE_CPU, allow.
inline std::vector<const LinearKernel*> enabled_kernels(const PackedLinear& linear) {
  std::vector<const LinearKernel*> kernels;
  for (const LinearKernel* kernel : linear.format->kernels) {
    if (kernel->refusal({&linear, linear.out_features}).empty()) kernels.push_back(kernel);
  }
  return kernels;
}

// What the Error that the body throws says, or nothing where it throws none.
inline std::string refusal_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

template <typename T>
std::vector<T> values_of(const PackedLinear& linear, const std::string& suffix) {
  const auto values = linear.find(suffix)->values<T>();
  return {values.begin(), values.end()};
}

}  // namespace nibble::testing
