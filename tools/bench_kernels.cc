#include "bench_kernels.h"

#include <charconv>
#include <numeric>

#include "base/error.h"
#include "base/log.h"
#include "json_output.h"
#include "runtime/device_bench.h"

namespace nibble {
namespace {

constexpr int kMostTokens = 1 << 16;

std::vector<int> parse_tokens(const std::string& list) {
  std::vector<int> tokens;
  const char* at = list.data();
  const char* const end = at + list.size();
  while (true) {
    int count = 0;
    const auto [stop, error] = std::from_chars(at, end, count);
    if (error != std::errc() || count < 1 || count > kMostTokens || (stop != end && *stop != ',')) {
      fail_usage("--tokens {}: expected numbers from 1 to {}, separated by commas", list, kMostTokens);
    }
    tokens.push_back(count);
    if (stop == end) return tokens;
    at = stop + 1;
  }
}

struct Row {
  std::string name;
  int tokens = 0;
  int64_t out_features = 0, in_features = 0;  // 0: of several groups
  double operations = 0;
  LinearSpeed speed;
};

OrderedJson to_json(const Row& row) {
  const LinearSpeed& speed = row.speed;
  const auto or_null = [](double value) { return value > 0 ? OrderedJson(value) : OrderedJson(nullptr); };
  const auto size_or_null = [](int64_t size) { return size > 0 ? OrderedJson(size) : OrderedJson(nullptr); };
  return {{"name", row.name},
          {"m", row.tokens},
          {"n", size_or_null(row.out_features)},
          {"k", size_or_null(row.in_features)},
          {"kernel", speed.kernel},
          {"path", speed.path},
          {"arithmetic", speed.arithmetic},
          {"slower", speed.slower},
          {"seconds", speed.seconds},
          {"f16_seconds", speed.half_seconds},
          {"speedup_over_f16", speed.half_seconds / speed.seconds},
          {"operations_per_second", row.operations / speed.seconds},
          {"weight_bytes_per_second", static_cast<double>(speed.weight_bytes) / speed.seconds},
          {"limit", speed.limit},
          {"limit_share", or_null(speed.floor_seconds / speed.seconds)},
          {"device_weight_bytes", speed.weight_bytes},
          {"workspace_bytes", speed.workspace_bytes}};
}

void print_head(const KernelBench& options, const DeviceLimits& limits) {
  std::string peaks;
  if (limits.int8_operations_per_second > 0) {
    peaks = format_text(", INT8 {:.0f} TOP/s, FP16 {:.0f} TFLOP/s", 1e-12 * limits.int8_operations_per_second,
                        1e-12 * limits.half_operations_per_second);
  }
  write_output(format_text("{} on {}, recipe {}, synthetic weights; cuBLASLt {}\n", options.shape.shape,
                           limits.device, options.shape.recipe, limits.blas_version));
  write_output(format_text(
      "limits: reading {:.2f} TB/s{}; weights rotate through {}, random data, graphs, "
      "medians\n\n",
      1e-12 * limits.read_bytes_per_second, peaks, format_bytes(static_cast<double>(limits.rotated_bytes))));
  write_output(format_text("{:<16} {:>6} {:>6} {:>6} {:>10} {:>10} {:>7} {:>9} {:<6} {:>10} {:>10}  {}\n",
                           "linears", "tokens", "n", "k", "us", "FP16 us", "x FP16", "of limit", "",
                           "weights", "workspace", "kernel"));
}

void print(const Row& row) {
  const LinearSpeed& speed = row.speed;
  const auto size = [](int64_t value) { return value > 0 ? std::to_string(value) : std::string(); };
  const std::string share = speed.floor_seconds > 0
                                ? format_text("{:.0f} %", 100 * speed.floor_seconds / speed.seconds)
                                : std::string("-");
  write_output(format_text(
      "{:<16} {:>6} {:>6} {:>6} {:>10.1f} {:>10.1f} {:>7.2f} {:>9} {:<6} {:>10} {:>10}  {}{}: {}\n", row.name,
      row.tokens, size(row.out_features), size(row.in_features), 1e6 * speed.seconds,
      1e6 * speed.half_seconds, speed.half_seconds / speed.seconds, share, speed.limit,
      format_bytes(static_cast<double>(speed.weight_bytes)),
      format_bytes(static_cast<double>(speed.workspace_bytes)), speed.kernel, speed.slower ? " (slower)" : "",
      speed.path));
}

}  // namespace

int bench_kernels(const KernelBench& options, const CommonOptions& common) {
  const bool model = is_model_shape(options.shape);
  std::vector<int> tokens;
  if (model) tokens = parse_tokens(options.tokens);
  const int device = common.engine_device().gpu;
  std::vector<BenchedLinears> groups;
  for (SyntheticGroup& group : synthetic_groups(options.shape)) {
    if (!model) {
      if (group.tokens > kMostTokens) {
        fail_usage("--shape {}: on a GPU expected at most {} tokens", options.shape.shape, kMostTokens);
      }
      tokens.push_back(static_cast<int>(group.tokens));
    }
    groups.push_back({.name = group.name,
                      .out_features = group.out_features,
                      .in_features = group.in_features,
                      .linears = std::move(group.linears)});
  }
  std::vector<Row> shapes;  // what is measured, without numbers of tokens and times
  std::vector<std::vector<size_t>> members;
  for (size_t g = 0; g < groups.size(); ++g) {
    shapes.push_back({.name = groups[g].name,
                      .out_features = groups[g].out_features,
                      .in_features = groups[g].in_features,
                      .operations = 2.0 * static_cast<double>(groups[g].out_features) *
                                    static_cast<double>(groups[g].in_features)});
    members.push_back({g});
  }
  if (groups.size() > 1) {
    Row all = {.name = "layer"};
    for (const Row& shape : shapes) all.operations += shape.operations;
    shapes.push_back(all);
    members.emplace_back(groups.size());
    std::iota(members.back().begin(), members.back().end(), size_t{0});
  }

  ThreadPool pool(common.threads);
  const auto bench = make_device_linear_bench(device, std::move(groups), pool);
  OrderedJson rows = OrderedJson::array();
  if (!common.json) print_head(options, bench->limits());
  for (const int count : tokens) {
    for (size_t i = 0; i < shapes.size(); ++i) {
      Row row = shapes[i];
      row.tokens = count;
      row.operations *= count;
      row.speed = bench->measure(members[i], count, static_cast<int>(options.repetitions));
      if (common.json) {
        rows.push_back(to_json(row));
      } else {
        print(row);
        flush_output();
      }
    }
  }
  if (!common.json) return kExitDone;
  const DeviceLimits& limits = bench->limits();
  const auto or_null = [](double value) { return value > 0 ? OrderedJson(value) : OrderedJson(nullptr); };
  write_json({{"device", limits.device},
              {"model", options.shape.shape},
              {"recipe", options.shape.recipe},
              {"read_bytes_per_second", limits.read_bytes_per_second},
              {"int8_operations_per_second", or_null(limits.int8_operations_per_second)},
              {"f16_operations_per_second", or_null(limits.half_operations_per_second)},
              {"cublaslt_version", limits.blas_version},
              {"rotated_bytes", limits.rotated_bytes},
              {"shapes", rows}});
  return kExitDone;
}

}  // namespace nibble
