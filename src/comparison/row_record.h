// What the work folder remembers of a quantized model, in a small JSON file beside it.
#pragma once

#include <filesystem>
#include <string>

#include "report/comparison.h"

namespace nibble {

struct RowRecord {
  double quantize_seconds = kNotMeasured;
  std::string key;    // of what was measured and how; empty: nothing was
  ComparisonRow row;  // quality, sizes, errors and tasks; no speed
};

// An empty record when there is none, or none that can be read.
RowRecord read_row_record(const std::filesystem::path& path);
void write_row_record(const std::filesystem::path& path, const RowRecord& record);

}  // namespace nibble
