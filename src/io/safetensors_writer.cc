#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "io/json.h"
#include "io/printable.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

constexpr uint64_t kAlignment = 64;

// Bytes of one declared tensor.
uint64_t declared_bytes(const SafetensorsWriter::Declaration& declaration, const std::string& source) {
  int64_t bytes = static_cast<int64_t>(dtype_size(declaration.dtype));
  for (const int64_t extent : declaration.shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, extent, &bytes)) {
      fail("{}: tensor '{}' cannot have shape {}", source, printable(declaration.name),
           to_string(declaration.shape));
    }
  }
  return static_cast<uint64_t>(bytes);
}

// Offsets within the data section. Multiples of 64 bytes first; then by falling element size, so that
// everything before a tensor is a multiple of its element size.
std::vector<uint64_t> lay_out(const std::vector<SafetensorsWriter::Declaration>& declarations,
                              const std::vector<uint64_t>& sizes, uint64_t* total) {
  std::vector<size_t> order(declarations.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto rank = [&](size_t i) {
    return sizes[i] % kAlignment == 0 ? size_t{0} : 16 - dtype_size(declarations[i].dtype);
  };
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return rank(a) != rank(b) ? rank(a) < rank(b) : a < b; });
  std::vector<uint64_t> offsets(declarations.size());
  *total = 0;
  for (const size_t i : order) {
    offsets[i] = *total;
    *total += sizes[i];
  }
  return offsets;
}

}  // namespace

struct SafetensorsWriter::State {
  std::filesystem::path path;
  std::vector<Declaration> declarations;
  std::vector<uint64_t> sizes, offsets;  // of each declaration; offsets from the start of the data section
  uint64_t data_start = 0, file_bytes = 0;
  size_t written = 0;
  int descriptor = -1;

  ~State() {
    if (descriptor < 0) return;
    ::close(descriptor);
    ::unlink(path.c_str());  // never closed: not a whole file
  }

  [[noreturn]] void fail_write(const char* what, int code) const {
    if (code == ENOSPC || code == EDQUOT) {
      fail("{}: no space left on the disk: the file needs {} ({} bytes)", path.string(),
           format_bytes(static_cast<double>(file_bytes)), file_bytes);
    }
    fail("{}: cannot {}: {}", path.string(), what, std::strerror(code));
  }

  void reserve() {
    if (::fallocate(descriptor, 0, 0, static_cast<off_t>(file_bytes)) == 0) return;
    // Some file systems cannot reserve; running out of space then shows when writing.
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) fail_write("reserve space", errno);
  }

  void write_at(uint64_t position, const std::byte* data, size_t count) {
    while (count > 0) {
      const ssize_t done =
          ::pwrite(descriptor, data, std::min(count, size_t{1} << 30), static_cast<off_t>(position));
      if (done < 0) {
        if (errno == EINTR) continue;
        fail_write("write", errno);
      }
      position += static_cast<uint64_t>(done);
      data += done;
      count -= static_cast<size_t>(done);
    }
  }
};

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<Declaration> declarations,
                                     std::map<std::string, std::string> metadata)
    : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.path = std::move(path);
  state.declarations = std::move(declarations);
  const std::string source = state.path.string();

  for (const Declaration& declaration : state.declarations) {
    state.sizes.push_back(declared_bytes(declaration, source));
  }
  uint64_t data_bytes = 0;
  state.offsets = lay_out(state.declarations, state.sizes, &data_bytes);

  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  for (size_t i = 0; i < state.declarations.size(); ++i) {
    const Declaration& declaration = state.declarations[i];
    if (declaration.name.empty() || declaration.name == "__metadata__" || header.contains(declaration.name)) {
      fail("{}: cannot write a tensor named '{}': the name is empty, reserved or taken", source,
           printable(declaration.name));
    }
    header[declaration.name] = {{"dtype", dtype_name(declaration.dtype)},
                                {"shape", declaration.shape},
                                {"data_offsets", {state.offsets[i], state.offsets[i] + state.sizes[i]}}};
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception&) {
    fail("{}: tensor names and metadata must be UTF-8", source);
  }
  const uint64_t length_bytes = sizeof(uint64_t);
  text.append((kAlignment - (length_bytes + text.size()) % kAlignment) % kAlignment, ' ');
  const uint64_t header_bytes = text.size();
  state.data_start = length_bytes + header_bytes;
  state.file_bytes = state.data_start + data_bytes;

  state.descriptor = ::open(state.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (state.descriptor < 0) fail("{}: cannot create: {}", source, std::strerror(errno));
  state.reserve();
  state.write_at(0, reinterpret_cast<const std::byte*>(&header_bytes), sizeof(header_bytes));
  state.write_at(length_bytes, reinterpret_cast<const std::byte*>(text.data()), text.size());
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(const Tensor& tensor) {
  State& state = *state_;
  NIBBLE_CHECK(state.descriptor >= 0);
  NIBBLE_CHECK(state.written < state.declarations.size());
  const Declaration& declaration = state.declarations[state.written];
  NIBBLE_CHECK(tensor.dtype() == declaration.dtype && tensor.shape() == declaration.shape);
  state.write_at(state.data_start + state.offsets[state.written], tensor.raw(), tensor.bytes());
  ++state.written;
}

void SafetensorsWriter::close() {
  State& state = *state_;
  NIBBLE_CHECK(state.descriptor >= 0);
  if (state.written < state.declarations.size()) {
    fail("{}: only {} of {} tensors were written, '{}' is the next", state.path.string(), state.written,
         state.declarations.size(), printable(state.declarations[state.written].name));
  }
  // Without a reservation, trailing empty tensors would leave nothing to set the size; with one it is set
  // already.
  if (::ftruncate(state.descriptor, static_cast<off_t>(state.file_bytes)) != 0)
    state.fail_write("set its size", errno);
  if (::fsync(state.descriptor) != 0) state.fail_write("flush to the disk", errno);
  const int descriptor = std::exchange(state.descriptor, -1);
  if (::close(descriptor) != 0) {
    const int code = errno;
    ::unlink(state.path.c_str());
    state.fail_write("close", code);
  }
}

void write_safetensors(const std::filesystem::path& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsWriter::Declaration> declarations;
  for (const auto& [name, tensor] : tensors) declarations.push_back({name, tensor.dtype(), tensor.shape()});
  SafetensorsWriter writer(path, std::move(declarations), metadata);
  for (const auto& [name, tensor] : tensors) writer.write(tensor);
  writer.close();
}

}  // namespace nibble
