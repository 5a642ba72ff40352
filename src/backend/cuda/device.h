// A GPU through the CUDA runtime: errors as exceptions, memory, streams, graphs. Host code only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>
#include <string>

namespace nibble::cuda {

// Throws Error naming what was tried and CUDA's own words.
void check(cudaError_t code, const char* what);
// After launches: an error of a kernel that has already been enqueued.
void check_last(const char* what);

struct Device {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  size_t memory_bytes = 0, l2_bytes = 0;
  int runtime_version = 0, driver_version = 0;
};

// Makes device `index` the current one of this thread. Throws Error when there is no driver, no such device,
// or when it is older or newer than the kernels of this build.
Device open_device(int index);

// Whether a GPU of this compute capability has what most kernels are written for: wgmma, the copy engine,
// clusters, dependent launches (9.0 and no other). GPUs of 8.0 to 8.9 run those of the table's kernels that
// are `portable` (linear.h).
constexpr bool is_hopper(int major, int minor) { return major == 9 && minor == 0; }
bool is_hopper(const Device& device);
// Of the current device.
bool on_hopper();

// Why a GPU of this compute capability cannot be used, or nothing: "compute capability 7.5 is older than ..."
std::string capability_refusal(int major, int minor);
// What to tell someone for whom looking for GPUs ended with `code`: whether the driver is missing, too old
// for `runtime_version` (13000 is 13.0), or finds no GPU. `driver_version` as cudaDriverGetVersion() tells,
// 0 without a driver.
std::string absence_reason(cudaError_t code, int driver_version, int runtime_version);

// Memory of the current device. Uninitialised.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) noexcept;
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  void upload(const void* from, size_t bytes);
  void download(void* to, size_t bytes) const;
  Buffer clone() const;  // the same bytes in other memory; empty when this is

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// What `enqueue` puts on the stream, recorded once, replayed as one launch.
class Graph {
 public:
  Graph(const Stream& stream, const std::function<void()>& enqueue);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch() const;

 private:
  const Stream& stream_;
  cudaGraphExec_t executable_ = nullptr;
};

// Median over `samples` of the seconds that one replay takes on the device; `replays` between two events.
// Before, replays load the device for `load_seconds`: a GPU at its power limit takes 0.1 s until its clock is
// that of this load and not of the one before.
double median_seconds(const Graph& graph, const Stream& stream, int samples, int replays,
                      double load_seconds = 0);

}  // namespace nibble::cuda
