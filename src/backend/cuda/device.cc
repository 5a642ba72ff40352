#include "backend/cuda/device.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/format.h"

namespace nibble::cuda {

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // clears it where it is not sticky
  fail("{}: {} ({})", what, cudaGetErrorString(code), cudaGetErrorName(code));
}

void check_last(const char* what) { check(cudaGetLastError(), what); }

bool is_hopper(const Device& device) { return is_hopper(device.major, device.minor); }

bool on_hopper() {
  int index = 0, major = 0, minor = 0;
  check(cudaGetDevice(&index), "asking for the current GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "asking what the GPU can");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "asking what the GPU can");
  return is_hopper(major, minor);
}

std::string capability_refusal(int major, int minor) {
  if (major < 8) {
    return format_text(
        "compute capability {}.{} is older than 8.0 (Ampere), the first that this program has "
        "kernels for",
        major, minor);
  }
  if (major == 8 || is_hopper(major, minor)) return "";
  return format_text(
      "this program has no kernels for compute capability {}.{}, only for 8.0 to 8.9 (Ampere, "
      "Ada) and 9.0 (Hopper)",
      major, minor);
}

std::string absence_reason(cudaError_t code, int driver_version, int runtime_version) {
  const auto text = [](int version) { return format_text("{}.{}", version / 1000, version % 1000 / 10); };
  if (driver_version == 0) return "there is no NVIDIA driver";
  // A driver serves programs of its own major version of CUDA.
  if (code == cudaErrorInsufficientDriver) {
    return format_text("the NVIDIA driver is for CUDA {}, too old for this program's {}; update the driver",
                       text(driver_version), text(runtime_version));
  }
  if (code == cudaSuccess || code == cudaErrorNoDevice) return "the NVIDIA driver finds no GPU";
  return format_text("{} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
}

Device open_device(int index) {
  Device device = {.index = index};
  check(cudaRuntimeGetVersion(&device.runtime_version), "reading CUDA's version");
  check(cudaDriverGetVersion(&device.driver_version), "reading the driver's version");
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess || count == 0) {
    cudaGetLastError();
    fail("--device cuda:{}: {}", index, absence_reason(code, device.driver_version, device.runtime_version));
  }
  if (index < 0 || index >= count)
    fail_usage("--device cuda:{}: there is no such GPU; this machine has {}", index, count);
  cudaDeviceProp properties = {};
  check(cudaGetDeviceProperties(&properties, index), "reading the GPU's properties");
  device.name = properties.name;
  device.major = properties.major;
  device.minor = properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.memory_bytes = properties.totalGlobalMem;
  device.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
  if (const std::string refusal = capability_refusal(device.major, device.minor); !refusal.empty())
    fail("--device cuda:{} ({}): {}", index, device.name, refusal);
  check(cudaSetDevice(index), "opening the GPU");
  return device;
}

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  const cudaError_t code = cudaMalloc(&data_, std::max<size_t>(bytes, 1));
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t available = 0, total = 0;
    check(cudaMemGetInfo(&available, &total), "asking for free GPU memory");
    fail("out of GPU memory: {} were asked for, {} of {} are free", format_bytes(static_cast<double>(bytes)),
         format_bytes(static_cast<double>(available)), format_bytes(static_cast<double>(total)));
  }
  check(code, format_text("allocating {} of GPU memory", format_bytes(static_cast<double>(bytes))).c_str());
}

Buffer::~Buffer() {
  if (data_ != nullptr) cudaFree(data_);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Buffer::upload(const void* from, size_t bytes) {
  NIBBLE_CHECK(bytes <= bytes_);
  check(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), "copying to the GPU");
  // From pageable memory it returns when the data have been taken, not yet arrived; other streams do not
  // wait.
  check(cudaStreamSynchronize(cudaStreamLegacy), "copying to the GPU");
}

void Buffer::download(void* to, size_t bytes) const {
  NIBBLE_CHECK(bytes <= bytes_);
  check(cudaMemcpy(to, data_, bytes, cudaMemcpyDeviceToHost), "copying from the GPU");
}

Buffer Buffer::clone() const {
  if (bytes_ == 0) return {};
  Buffer copy(bytes_);
  check(cudaMemcpy(copy.data_, data_, bytes_, cudaMemcpyDeviceToDevice), "copying within the GPU");
  return copy;
}

Stream::Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
Stream::~Stream() { cudaStreamDestroy(stream_); }
void Stream::synchronize() const { check(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

Graph::Graph(const Stream& stream, const std::function<void()>& enqueue) : stream_(stream) {
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "recording a graph");
  cudaGraph_t graph = nullptr;
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(stream.get(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream.get(), &graph), "recording a graph");
  const cudaError_t code = cudaGraphInstantiate(&executable_, graph, 0);
  cudaGraphDestroy(graph);
  check(code, "preparing a graph");
}

Graph::~Graph() {
  if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
}

void Graph::launch() const { check(cudaGraphLaunch(executable_, stream_.get()), "launching a graph"); }

double median_seconds(const Graph& graph, const Stream& stream, int samples, int replays,
                      double load_seconds) {
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "making an event");
  check(cudaEventCreate(&end), "making an event");
  std::vector<double> seconds;
  double loaded = 0;
  for (int sample = -1; sample < samples;) {  // the first ones warm up
    check(cudaEventRecord(begin, stream.get()), "timing");
    for (int i = 0; i < replays; ++i) graph.launch();
    check(cudaEventRecord(end, stream.get()), "timing");
    stream.synchronize();
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
    if (sample >= 0) seconds.push_back(1e-3 * milliseconds / replays);
    loaded += 1e-3 * milliseconds;
    if (loaded >= load_seconds) ++sample;
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace nibble::cuda
