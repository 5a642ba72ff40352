// nibble doctor: what this machine offers and what would run on it.
#include <thread>

#include "backend/cpu/cpu_path.h"
#include "base/error.h"
#include "base/log.h"
#include "base/system_info.h"
#include "calibration/blas.h"
#include "command.h"
#include "gpu_probe.h"
#include "json_output.h"
#include "nibble/nibble.h"
#include "sample_linears.h"

namespace nibble {
namespace {

struct KernelRow {
  std::string format, what, arithmetic, kernel;
};

std::vector<KernelRow> kernel_rows() {
  std::vector<KernelRow> rows;
  for (const PackedLinear& linear : sample_linears()) {
    KernelRow row = {
        .format = linear.format->name, .what = linear.name, .arithmetic = linear.format->arithmetic(linear)};
    try {
      row.kernel = choose_kernel({.linear = &linear, .out_features = linear.out_features}).kernel->name;
    } catch (const Error& error) {
      row.kernel = error.what();
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<std::string> available_paths() {
  std::vector<std::string> names;
  for (const CpuPath path : kAllCpuPaths) {
    if (machine_has(path)) names.emplace_back(cpu_path_name(path));
  }
  return names;
}

std::string cuda_version(int version) { return format_text("{}.{}", version / 1000, version % 1000 / 10); }

int doctor(const CommonOptions& common) {
  const int threads = common.threads > 0 ? common.threads : available_cores();
  const std::vector<KernelRow> rows = kernel_rows();
  const GpuReport gpus = probe_gpus();
  std::string blas_problem;
  BlasInfo blas;
  try {
    blas = blas_info();
  } catch (const Error& error) {
    blas_problem = error.what();
  }

  if (common.json) {
    OrderedJson json = {{"version", version()},
                        {"cpu", cpu_description()},
                        {"cpu_paths", available_paths()},
                        {"active_cpu_path", cpu_path_name(active_cpu_path())},
                        {"hardware_threads", std::thread::hardware_concurrency()},
                        {"usable_cores", available_cores()},
                        {"threads", threads},
                        {"available_memory_bytes", available_memory_bytes()}};
    json["blas"] = blas_problem.empty()
                       ? OrderedJson{{"library", blas.library}, {"core", blas.core}, {"config", blas.config}}
                       : OrderedJson{{"problem", blas_problem}};
    json["gpus"] = OrderedJson::array();
    for (const GpuDevice& gpu : gpus.devices) {
      json["gpus"].push_back(
          {{"name", gpu.name},
           {"compute_capability", format_text("{}.{}", gpu.compute_major, gpu.compute_minor)},
           {"memory_bytes", gpu.memory_bytes}});
    }
    if (gpus.driver_version > 0) json["cuda_driver"] = cuda_version(gpus.driver_version);
    if (!gpus.problem.empty()) json["gpu_problem"] = gpus.problem;
    json["device"] = "cpu";
    json["kernels"] = OrderedJson::array();
    for (const KernelRow& row : rows) {
      json["kernels"].push_back({{"format", row.format},
                                 {"weights", row.what},
                                 {"arithmetic", row.arithmetic},
                                 {"kernel", row.kernel}});
    }
    write_json(json);
    return kExitDone;
  }

  std::string paths;
  for (const std::string& path : available_paths()) paths += (paths.empty() ? "" : " ") + path;
  write_output(format_text("nibble      {}\n", version()));
  write_output(format_text("processor   {}\n", cpu_description()));
  write_output(format_text("CPU paths   {}; {} runs (NIBBLE_CPU chooses another)\n", paths,
                           cpu_path_name(active_cpu_path())));
  write_output(format_text("threads     {} of {} hardware threads; affinity and cgroup allow {}\n", threads,
                           std::thread::hardware_concurrency(), available_cores()));
  write_output(
      format_text("memory      {} available\n", format_bytes(static_cast<double>(available_memory_bytes()))));
  write_output(
      blas_problem.empty()
          ? format_text("BLAS        {}, core {} (calibration only)\n", blas.library, blas.core)
          : format_text("BLAS        none: quantizing with calibration is not possible. {}\n", blas_problem));
  for (const GpuDevice& gpu : gpus.devices) {
    write_output(format_text(
        "GPU         {}, compute capability {}.{}, {}; this program runs on the CPU only\n", gpu.name,
        gpu.compute_major, gpu.compute_minor, format_bytes(static_cast<double>(gpu.memory_bytes))));
  }
  if (gpus.driver_version > 0)
    write_output(format_text("GPU driver  CUDA {}\n", cuda_version(gpus.driver_version)));
  if (!gpus.problem.empty()) write_output(format_text("GPU         none: {}\n", gpus.problem));
  write_output(
      format_text("\n{:<10} {:<34} {:<24} {}\n", "format", "weights", "arithmetic", "kernel that would run"));
  for (const KernelRow& row : rows) {
    write_output(format_text("{:<10} {:<34} {:<24} {}\n", row.format, row.what, row.arithmetic, row.kernel));
  }
  return kExitDone;
}

}  // namespace

Action add_doctor(CLI::App& command) {
  const auto common = add_common_options(command);
  set_examples(command, {"nibble doctor", "nibble doctor --json", "NIBBLE_CPU=avx2 nibble doctor"});
  return [common] {
    common->apply();
    return doctor(*common);
  };
}

}  // namespace nibble
