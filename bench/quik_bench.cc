// Speed of the quik kernels on the linears of real models: integer operations per second with their share of
// the machine's measured peak, and bytes of weights per second with their share of measured read bandwidth.
//   build/bench/quik_bench --benchmark_filter='amx.*qkv'      (NIBBLE_THREADS=1 for one thread)
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <iostream>

#include "base/log.h"
#include "cases/linear_cases.h"
#include "machine_peaks.h"

namespace nibble {
namespace {

ThreadPool& pool() {
  static ThreadPool shared(
      std::getenv("NIBBLE_THREADS") == nullptr ? 0 : std::atoi(std::getenv("NIBBLE_THREADS")));
  return shared;
}

CpuPath path_of(const LinearKernel& kernel) {
  const std::string name = kernel.name;
  CpuPath found = CpuPath::kScalar;
  for (const CpuPath path : kAllCpuPaths) {
    if (name.ends_with(std::string("-") + std::string(cpu_path_name(path)))) found = path;
  }
  return found;
}

double peak(CpuPath path) {
  static std::map<CpuPath, double> measured;
  const auto [entry, added] = measured.try_emplace(path);
  if (added) entry->second = bench::peak_int8_ops(path, pool());
  return entry->second;
}

double dram_bandwidth() {
  static const double measured = bench::read_bandwidth(size_t{256} << 20, pool());
  return measured;
}

void multiply(benchmark::State& state, const LinearKernel& kernel, const cases::BenchShape& shape,
              int weight_bits, int activation_bits, int64_t tokens) {
  const cases::LinearCase linear_case{shape.n, shape.k, shape.outliers, tokens};
  const PackedLinear linear = find_format("quik")->pack(
      cases::make_weight(linear_case, {weight_bits, activation_bits}, true), shape.name);
  const std::vector<float> x = cases::normal_floats(static_cast<size_t>(tokens * shape.k), 5);
  std::vector<float> y(static_cast<size_t>(tokens * shape.n));
  const PackedLinear* pointer = &linear;
  // Enough copies that decoding reads each from memory, as a whole model does.
  const bool decode = tokens <= 8;
  const size_t copies = decode ? std::max<size_t>(1, (size_t{192} << 20) / linear.weight_bytes()) : 1;
  std::vector<std::unique_ptr<LinearOp>> ops;
  for (size_t i = 0; i < copies; ++i) ops.push_back(kernel.prepare({&pointer, 1}, pool()));
  Scratch scratch;
  size_t next = 0;
  for (auto _ : state) {
    ops[next]->forward(x.data(), tokens, y.data(), shape.n, scratch, pool());
    next = (next + 1) % copies;
    benchmark::ClobberMemory();
  }
  const double runs = static_cast<double>(state.iterations());
  const double operations = 2.0 * static_cast<double>(shape.n * shape.k * tokens) * runs;
  using benchmark::Counter;
  state.counters["GOP/s"] = Counter(operations * 1e-9, Counter::kIsRate);
  state.counters["peak%"] = Counter(operations * 100 / peak(path_of(kernel)), Counter::kIsRate);
  if (decode) {
    const double bytes = static_cast<double>(ops[0]->prepared_bytes()) * runs;
    state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsRate);
    state.counters["dram%"] = Counter(bytes * 100 / dram_bandwidth(), Counter::kIsRate);
  }
}

void register_all() {
  for (const LinearKernel* kernel : find_format("quik")->kernels) {
    if (path_of(*kernel) == CpuPath::kScalar || !kernel->refusal({}).empty()) continue;
    for (const cases::BenchShape& shape : cases::kBenchShapes) {
      const bool down = std::strstr(shape.name, "down") != nullptr;
      const int bits = down ? 8 : 4;
      for (const int64_t tokens : {1, 8, 32, 512}) {
        const std::string name =
            format_text("{}/{}/w{}a{}/M{}", kernel->name, shape.name, bits, bits, tokens);
        auto* registered = benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          multiply(state, *kernel, shape, bits, bits, tokens);
        });
        registered->Unit(benchmark::kMicrosecond);
        // One thread is timed by its own clock, which other processes on the machine disturb less.
        if (pool().size() > 1) registered->UseRealTime();
      }
    }
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::cout << nibble::cpu_description() << ", " << nibble::pool().size() << " threads\n";
  for (const nibble::CpuPath path : nibble::kAllCpuPaths) {
    if (path == nibble::CpuPath::kScalar || !nibble::machine_has(path)) continue;
    std::cout << nibble::format_text("  {}: {:.0f} GOP/s\n", nibble::cpu_path_name(path),
                                     nibble::peak(path) * 1e-9);
  }
  std::cout << nibble::format_text("  reading memory: {:.1f} GB/s\n", nibble::dram_bandwidth() * 1e-9);
  nibble::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
