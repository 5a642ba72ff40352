#include "io/checkpoint.h"

#include "base/error.h"
#include "io/checkpoint_builder.h"
#include "io/gguf.h"
#include "io/mapped_file.h"
#include "io/printable.h"

namespace nibble {
RowLayout row_layout(const Shape& shape) {
  const int64_t elements = element_count(shape);
  const int64_t rows = shape.empty() ? 1 : shape[0];
  return {rows, rows == 0 ? 0 : elements / rows};
}

CheckpointTensor plain_tensor(std::string name, Tensor values, const std::filesystem::path& file) {
  CheckpointTensor made;
  made.name = std::move(name);
  made.shape = values.shape();
  made.storage_type = dtype_name(values.dtype());
  made.stored_bytes = values.bytes();
  made.file = file;
  made.read_rows = [values, label = file.string() + ": tensor '" + printable(made.name) + "'"](
                       int64_t first, int64_t count, float* out) {
    switch (values.dtype()) {
      case DType::kF64:
      case DType::kF32:
      case DType::kF16:
      case DType::kBF16:
        break;
      default:
        fail("{} has type {}, expected floats", label, dtype_name(values.dtype()));
    }
    const RowLayout layout = row_layout(values.shape());
    NIBBLE_CHECK(first >= 0 && count >= 0 && first <= layout.rows && count <= layout.rows - first);
    if (count * layout.row_elements == 0) return;
    copy_to_float(values, first * layout.row_elements, count * layout.row_elements, out);
  };
  made.plain = std::move(values);
  return made;
}

void CheckpointBuilder::add_tensor(CheckpointTensor tensor) {
  if (made.unsupported_.contains(tensor.name) || made.tensors_.contains(tensor.name)) {
    fail("{}: tensor '{}' appears more than once in this model", tensor.file.string(),
         printable(tensor.name));
  }
  std::string name = tensor.name;
  made.tensors_.emplace(std::move(name), std::move(tensor));
}

void CheckpointBuilder::add_unsupported(const std::string& name, const std::string& type,
                                        const std::filesystem::path& file) {
  if (made.tensors_.contains(name) || !made.unsupported_.emplace(name, type).second) {
    fail("{}: tensor '{}' appears more than once in this model", file.string(), printable(name));
  }
}

Tensor CheckpointTensor::read_f32() const {
  Tensor values = Tensor::empty(DType::kF32, shape);
  read_rows(0, row_layout(shape).rows, values.mutable_data<float>());
  return values;
}

const CheckpointTensor* Checkpoint::find(const std::string& name) const {
  if (const auto place = tensors_.find(name); place != tensors_.end()) return &place->second;
  if (const auto place = unsupported_.find(name); place != unsupported_.end()) {
    fail("{}: tensor '{}' has type {}, which is not supported yet", path_.string(), name, place->second);
  }
  return nullptr;
}

const CheckpointTensor& Checkpoint::require(const std::string& name) const {
  const CheckpointTensor* tensor = find(name);
  if (tensor == nullptr) fail("{}: tensor '{}' is missing", path_.string(), name);
  return *tensor;
}

const CheckpointTensor& Checkpoint::require(const std::string& name, const Shape& shape) const {
  const CheckpointTensor& tensor = require(name);
  if (tensor.shape != shape) {
    fail("{}: tensor '{}' has shape {}, expected {}", path_.string(), name, to_string(tensor.shape),
         to_string(shape));
  }
  return tensor;
}

uint64_t Checkpoint::file_bytes() const {
  uint64_t total = 0;
  for (const std::filesystem::path& file : files_) {
    std::error_code error;
    const uint64_t bytes = std::filesystem::file_size(file, error);
    if (error) fail("{}: cannot stat: {}", file.string(), error.message());
    total += bytes;
  }
  return total;
}

Checkpoint Checkpoint::open(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) fail("{}: no such file or folder", path.string());
  if (std::filesystem::is_directory(status)) return open_hf_folder(path);
  if (!std::filesystem::is_regular_file(status)) fail("{}: neither a file nor a folder", path.string());
  const auto file = MappedFile::open(path);
  if (is_gguf(file->bytes())) return gguf_checkpoint(parse_gguf(file->bytes(), file, path));
  const std::string extension = path.extension().string();
  if (extension == ".safetensors") {
    fail("{}: give the folder that holds this file and its config.json", path.string());
  }
  if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
    fail("{}: a pickle file can run code and is not read; safetensors are needed", path.string());
  }
  fail("{}: not a model: expected a Hugging Face folder, a nibble folder or a GGUF file", path.string());
}

}  // namespace nibble
