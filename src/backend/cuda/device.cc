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

Device open_device(int index) {
  Device device = {.index = index};
  int count = 0;
  check(cudaGetDeviceCount(&count), format_text("--device cuda:{}: looking for NVIDIA GPUs", index).c_str());
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
  check(cudaRuntimeGetVersion(&device.runtime_version), "reading CUDA's version");
  check(cudaDriverGetVersion(&device.driver_version), "reading the driver's version");
  if (device.major != 9 || device.minor != 0) {
    fail("GPU {} ({}) has compute capability {}.{}; this build has kernels for 9.0 (Hopper)", index,
         device.name, device.major, device.minor);
  }
  check(cudaSetDevice(index), "opening the GPU");
  return device;
}

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  const std::string what =
      format_text("allocating {} of GPU memory", format_bytes(static_cast<double>(bytes)));
  check(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), what.c_str());
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

double median_seconds(const Graph& graph, const Stream& stream, int samples, int replays) {
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "making an event");
  check(cudaEventCreate(&end), "making an event");
  std::vector<double> seconds;
  for (int sample = -1; sample < samples; ++sample) {  // the first warms up
    check(cudaEventRecord(begin, stream.get()), "timing");
    for (int i = 0; i < replays; ++i) graph.launch();
    check(cudaEventRecord(end, stream.get()), "timing");
    stream.synchronize();
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
    if (sample >= 0) seconds.push_back(1e-3 * milliseconds / replays);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace nibble::cuda
