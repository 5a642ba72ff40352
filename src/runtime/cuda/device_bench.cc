#include "runtime/device_bench.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "backend/cuda/blas_lt.h"
#include "backend/cuda/dense_linear.h"
#include "backend/cuda/linear_group.h"
#include "backend/cuda/peaks.h"
#include "backend/cuda/probes.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "runtime/cuda/cuda_model.h"

namespace nibble {
namespace cuda {
namespace {

constexpr size_t kLeastRotatedBytes = size_t{400} << 20;
constexpr size_t kReadBytes = size_t{2} << 30;
// A turn is so many samples, each of replays that last about so long; its median counts.
constexpr int kSamples = 5;
constexpr double kSampleSeconds = 4e-3;
// At the power limit every load has a clock of its own, which it takes up within a fraction of a second.
constexpr double kLoadSeconds = 0.2;
constexpr int kPeakRounds = 4000;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// What `enqueue` puts on a stream, `passes` times the same, ready to be timed.
class Recording {
 public:
  Recording(const Stream& stream, int passes, const std::function<void()>& enqueue)
      : stream_(stream), graph_(stream, enqueue), passes_(passes) {
    const double once = median_seconds(graph_, stream, 1, 1);
    replays_ = std::clamp(static_cast<int>(kSampleSeconds / once), 1, 100);
  }
  double seconds_per_pass() const {
    return median_seconds(graph_, stream_, kSamples, replays_, kLoadSeconds) / passes_;
  }

 private:
  const Stream& stream_;
  Graph graph_;
  int passes_, replays_ = 1;
};

DeviceLimits measure_limits(const Device& device, size_t rotated_bytes, const Stream& stream) {
  DeviceLimits limits = {
      .device = device.name, .blas_version = blas_lt_version(), .rotated_bytes = rotated_bytes};
  const Buffer sink(sizeof(int));
  {
    const Buffer data(kReadBytes);
    check(fill_random_bytes(data.data(), data.bytes(), 1, stream.get()), "filling with random numbers");
    const auto read = [&] {
      check(read_all(data.data(), data.bytes(), sink.as<uint32_t>(), device.multiprocessors, stream.get()),
            "reading memory");
    };
    read();  // kernels are loaded when first launched, which a recording does not allow
    stream.synchronize();
    limits.read_bytes_per_second =
        static_cast<double>(kReadBytes) / Recording(stream, 1, read).seconds_per_pass();
  }
  if (!is_hopper(device)) return limits;
  const Buffer data(kPeakDataBytes);
  const auto peak = [&](PeakNumbers numbers) {
    const auto multiply = [&] {
      check(launch_peak(numbers, data.data(), kPeakRounds, sink.as<int>(), device.multiprocessors,
                        stream.get()),
            "multiplying");
    };
    multiply();
    stream.synchronize();
    return peak_operations(numbers, kPeakRounds, device.multiprocessors) /
           Recording(stream, 1, multiply).seconds_per_pass();
  };
  check(fill_random_bytes(data.data(), data.bytes(), 2, stream.get()), "filling with random numbers");
  limits.int8_operations_per_second = peak(PeakNumbers::kInt8);
  check(fill_random_half(data.as<__half>(), data.bytes() / sizeof(__half), 1.0f, 3, stream.get()),
        "filling with random numbers");
  limits.half_operations_per_second = peak(PeakNumbers::kHalf);
  return limits;
}

class CudaLinearBench final : public DeviceLinearBench {
 public:
  CudaLinearBench(const Device& device, std::vector<BenchedLinears> groups, ThreadPool& pool)
      : device_(device), rotated_bytes_(std::max(kLeastRotatedBytes, 4 * device.l2_bytes)) {
    limits_ = measure_limits(device_, rotated_bytes_, stream_);
    size_t largest = 0, most = 0;
    for (const BenchedLinears& group : groups) {
      const size_t half_bytes = sizeof(__half) * static_cast<size_t>(group.out_features * group.in_features);
      largest = std::max(largest, half_bytes);
      most += half_bytes;
    }
    require_memory(device_, 2 * most + static_cast<size_t>(groups.size() + 1) * rotated_bytes_,
                   "measuring these linears");
    for (BenchedLinears& group : groups) groups_.push_back(load(std::move(group), pool));
    half_weights_ = Buffer(rotated_bytes_ + largest);
    check(fill_random_half(half_weights_.as<__half>(), half_weights_.bytes() / sizeof(__half), 0.05f, 4,
                           stream_.get()),
          "filling with random numbers");
    stream_.synchronize();
  }

  const DeviceLimits& limits() const override { return limits_; }

  LinearSpeed measure(std::span<const size_t> which, int tokens, int repetitions) override {
    NIBBLE_CHECK(!which.empty() && tokens >= 1 && repetitions >= 1);
    throw_if_interrupted();
    LinearSpeed speed = describe(which, tokens);
    const std::vector<Operands> operands = make_operands(which, tokens);
    const Buffer workspace(speed.workspace_bytes);
    const Recording own = record_own(which, tokens, operands, workspace);
    std::vector<HalfProduct> products;
    const Recording half = record_half(which, tokens, operands, &products);
    std::vector<double> own_seconds, half_seconds;
    for (int turn = 0; turn < repetitions; ++turn) {
      own_seconds.push_back(own.seconds_per_pass());
      half_seconds.push_back(half.seconds_per_pass());
      throw_if_interrupted();
    }
    speed.seconds = median(own_seconds);
    speed.half_seconds = median(half_seconds);
    return speed;
  }

 private:
  struct Group {
    int64_t n = 0, k = 0;
    std::string kernel;
    bool slower = false;
    std::vector<DeviceLinearGroup> copies;
  };
  struct Operands {
    Buffer x, y;  // FP16 [tokens, k] and [tokens, n]
  };

  Group load(BenchedLinears group, ThreadPool& pool) const {
    Group loaded = {.n = group.out_features, .k = group.in_features};
    if (group.linears.empty()) {
      loaded.kernel = kDenseDeviceKernel.name;
      loaded.copies.emplace_back(std::make_unique<DenseLinear>(loaded.n, loaded.k, 5u));
      return loaded;
    }
    std::vector<const PackedLinear*> pointers;
    for (const PackedLinear& linear : group.linears) pointers.push_back(&linear);
    std::set<std::string> names;
    for (const DeviceLinearChoice& choice : choose_for_group(pointers, device_)) {
      if (names.insert(choice.choice.kernel->name).second)
        loaded.kernel += (loaded.kernel.empty() ? "" : " | ") + std::string(choice.choice.kernel->name);
      loaded.slower = loaded.slower || choice.choice.kernel->slower;
    }
    loaded.copies.emplace_back(pointers, device_, pool);
    return loaded;
  }

  size_t weight_bytes(std::span<const size_t> which) const {
    size_t bytes = 0;
    for (const size_t g : which) bytes += groups_[g].copies.front().bytes();
    return bytes;
  }
  int copies_of(std::span<const size_t> which) const {
    return static_cast<int>(rotated_bytes_ / weight_bytes(which)) + 1;
  }

  // Everything but the measured times.
  LinearSpeed describe(std::span<const size_t> which, int tokens) const {
    LinearSpeed speed = {.limit = "memory", .weight_bytes = weight_bytes(which)};
    std::map<std::string, double> floors;
    std::set<std::string> kernels, paths, arithmetics;
    const auto join = [](std::set<std::string>* seen, const std::string& text, std::string* joined) {
      if (seen->insert(text).second) *joined += (joined->empty() ? "" : " | ") + text;
    };
    bool known = true;
    for (const size_t g : which) {
      const Group& group = groups_[g];
      const DeviceLinearGroup& linears = group.copies.front();
      speed.workspace_bytes = std::max(speed.workspace_bytes, linears.workspace_bytes(tokens));
      speed.slower = speed.slower || group.slower;
      join(&kernels, group.kernel, &speed.kernel);
      bool integers = true;
      for (const LinearPath& path : linears.paths(tokens)) {
        join(&paths, path.kernel, &speed.path);
        join(&arithmetics, path.arithmetic, &speed.arithmetic);
        integers = integers && path.arithmetic.find("->int32") != std::string::npos;
      }
      const double operations = 2.0 * tokens * static_cast<double>(group.n) * static_cast<double>(group.k);
      const double bytes =
          static_cast<double>(linears.bytes()) + 2.0 * tokens * static_cast<double>(group.n + group.k);
      const double peak = integers ? limits_.int8_operations_per_second : limits_.half_operations_per_second;
      known = known && peak > 0;
      const double reading = bytes / limits_.read_bytes_per_second;
      const double multiplying = peak > 0 ? operations / peak : 0;
      if (reading >= multiplying) {
        floors["memory"] += reading;
      } else {
        floors[integers ? "INT8" : "FP16"] += multiplying;
      }
    }
    double most = 0;
    for (const auto& [limit, seconds] : floors) {
      speed.floor_seconds += seconds;
      if (seconds > most) speed.limit = limit;
      most = std::max(most, seconds);
    }
    if (!known) speed.floor_seconds = 0;
    return speed;
  }

  std::vector<Operands> make_operands(std::span<const size_t> which, int tokens) const {
    std::vector<Operands> operands;
    for (const size_t g : which) {
      const auto halves = [&](int64_t width) { return sizeof(__half) * static_cast<size_t>(tokens * width); };
      operands.push_back({Buffer(halves(groups_[g].k)), Buffer(halves(groups_[g].n))});
      check(fill_random_half(operands.back().x.as<__half>(), static_cast<size_t>(tokens * groups_[g].k), 1.0f,
                             6, stream_.get()),
            "filling with random numbers");
    }
    return operands;
  }

  Recording record_own(std::span<const size_t> which, int tokens, const std::vector<Operands>& operands,
                       const Buffer& workspace) {
    const int copies = copies_of(which);
    for (const size_t g : which) {
      std::vector<DeviceLinearGroup>& made = groups_[g].copies;
      while (static_cast<int>(made.size()) < copies) made.push_back(made.front().duplicate());
      made.front().prepare(tokens, workspace.data(), stream_.get());
    }
    const auto enqueue = [&](int count) {
      for (int copy = 0; copy < count; ++copy) {
        for (size_t i = 0; i < which.size(); ++i) {
          groups_[which[i]].copies[static_cast<size_t>(copy)].forward(operands[i].x.as<__half>(), tokens,
                                                                      operands[i].y.as<__half>(),
                                                                      workspace.data(), stream_.get());
        }
      }
    };
    enqueue(1);  // loads the kernels
    stream_.synchronize();
    return Recording(stream_, copies, [&] { enqueue(copies); });
  }

  Recording record_half(std::span<const size_t> which, int tokens, const std::vector<Operands>& operands,
                        std::vector<HalfProduct>* products) const {
    size_t bytes = 0;
    for (size_t i = 0; i < which.size(); ++i) {
      const auto n = static_cast<int>(groups_[which[i]].n), k = static_cast<int>(groups_[which[i]].k);
      bytes += sizeof(__half) * static_cast<size_t>(n) * static_cast<size_t>(k);
      products->emplace_back(tokens, n, k, operands[i].x.as<__half>(), half_weights_.as<__half>(),
                             operands[i].y.as<__half>(), stream_.get());
    }
    const int copies = static_cast<int>(rotated_bytes_ / bytes) + 1;
    const auto enqueue = [&] {
      size_t next = 0;  // halves from the start of the weights
      for (int copy = 0; copy < copies; ++copy) {
        for (size_t i = 0; i < which.size(); ++i) {
          const auto count = static_cast<size_t>(groups_[which[i]].n * groups_[which[i]].k);
          if (sizeof(__half) * (next + count) > half_weights_.bytes()) next = 0;
          (*products)[i].enqueue(operands[i].x.as<__half>(), half_weights_.as<__half>() + next,
                                 operands[i].y.as<__half>(), stream_.get());
          next += (count + 127) / 128 * 128;  // cuBLASLt likes aligned operands
        }
      }
    };
    return Recording(stream_, copies, enqueue);
  }

  Device device_;
  size_t rotated_bytes_ = 0;
  Stream stream_;
  DeviceLimits limits_;
  std::vector<Group> groups_;
  Buffer half_weights_;
};

}  // namespace
}  // namespace cuda

std::unique_ptr<DeviceLinearBench> make_device_linear_bench(int device, std::vector<BenchedLinears> groups,
                                                            ThreadPool& pool) {
  return std::make_unique<cuda::CudaLinearBench>(cuda::open_device(device), std::move(groups), pool);
}

}  // namespace nibble
