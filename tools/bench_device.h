// nibble bench --device cuda: a whole model's speed on a GPU.
#pragma once

#include <cstdint>
#include <filesystem>

#include "bench_shapes.h"
#include "command.h"
#include "models/kv_cache.h"

namespace nibble {

struct DeviceBench {
  std::filesystem::path model;  // empty: shape.shape with shape.recipe
  ShapeBench shape;
  int64_t prompt = 512, generate = 128, depth = 0, repetitions = 3;
  CacheTypes cache = CacheType::kF16;
};

// Prompt and decode speed of one sequence, medians; decode takes the most likely token, chosen on the device.
int bench_device(const DeviceBench& options, const CommonOptions& common);

}  // namespace nibble
