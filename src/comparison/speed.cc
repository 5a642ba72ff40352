#include "comparison/speed.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "comparison/child_process.h"
#include "io/json.h"

namespace nibble {
namespace {

double median(std::vector<double> values) {
  if (values.empty()) return kNotMeasured;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void measure_once(const CompareOptions& options, int threads, const SpeedTarget& target) {
  constexpr const char* kSource = "the result of 'nibble bench'";
  const Json json = parse_json(run_program(options.program, {"bench", target.model.string(), "-p",
                                                             std::to_string(options.prompt_tokens), "-n",
                                                             std::to_string(options.generated_tokens), "-r",
                                                             "1", "-t", std::to_string(threads), "--json"}),
                               kSource);
  ComparisonRow& row = *target.row;
  if (options.prompt_tokens > 0)
    row.prompt_samples.push_back(json_number(json, "prompt_tokens_per_second", {}, kSource));
  if (options.generated_tokens > 0)
    row.decode_samples.push_back(json_number(json, "decode_tokens_per_second", {}, kSource));
  const double memory = json_number(json, "peak_memory_bytes", {}, kSource);
  row.peak_memory_bytes =
      std::isnan(row.peak_memory_bytes) ? memory : std::max(row.peak_memory_bytes, memory);
}

}  // namespace

int measure_speed(const CompareOptions& options, int threads, const std::vector<SpeedTarget>& targets) {
  std::vector<bool> broken(targets.size(), false);
  Progress progress("speed", static_cast<double>(options.repetitions) * static_cast<double>(targets.size()));
  double done = 0;
  for (int64_t round = 0; round < options.repetitions; ++round) {
    for (size_t i = 0; i < targets.size(); ++i) {
      done += 1;
      if (broken[i]) continue;
      const std::string& name = targets[i].row->name;
      try {
        measure_once(options, threads, targets[i]);
      } catch (const Interrupted&) {
        throw;
      } catch (const Error& error) {
        log_warning("{}: its speed could not be measured: {}", name, error.what());
        broken[i] = true;
      }
      progress.update(done, format_text("{}, round {}/{}", name, round + 1, options.repetitions));
    }
  }
  progress.finish();
  for (const SpeedTarget& target : targets) {
    target.row->prompt_speed = median(target.row->prompt_samples);
    target.row->decode_speed = median(target.row->decode_samples);
  }
  return static_cast<int>(std::count(broken.begin(), broken.end(), true));
}

}  // namespace nibble
