#include "io/safetensors.h"

#include <algorithm>
#include <cstring>

#include "io/aligned_view.h"
#include "io/json.h"
#include "io/printable.h"

namespace nibble {
namespace {

constexpr size_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
constexpr size_t kMaxRank = 32;

// The place of one tensor in the data section.
struct Extent {
  uint64_t begin = 0, end = 0;
  const std::string* name = nullptr;
};

uint64_t read_offset(const Json& value, const std::string& where, const char* what) {
  if (!value.is_number_unsigned()) fail("{}: {} must be non-negative integers", where, what);
  return value.get<uint64_t>();
}

Shape read_shape(const Json& entry, const std::string& where) {
  const auto field = entry.find("shape");
  if (field == entry.end() || !field->is_array()) fail("{}: 'shape' must be an array", where);
  if (field->size() > kMaxRank)
    fail("{}: shape has {} dimensions, at most {} are allowed", where, field->size(), kMaxRank);
  Shape shape;
  for (const Json& extent : *field) {
    const uint64_t value = read_offset(extent, where, "dimensions in 'shape'");
    if (value > static_cast<uint64_t>(INT64_MAX)) fail("{}: dimension {} is too large", where, value);
    shape.push_back(static_cast<int64_t>(value));
  }
  return shape;
}

Extent read_extent(const Json& entry, const std::string& where, size_t data_bytes) {
  const auto field = entry.find("data_offsets");
  if (field == entry.end() || !field->is_array() || field->size() != 2) {
    fail("{}: 'data_offsets' must be an array of two numbers", where);
  }
  Extent extent;
  extent.begin = read_offset((*field)[0], where, "'data_offsets'");
  extent.end = read_offset((*field)[1], where, "'data_offsets'");
  if (extent.begin > extent.end)
    fail("{}: data_offsets [{}, {}] run backwards", where, extent.begin, extent.end);
  if (extent.end > data_bytes) {
    fail("{}: data_offsets [{}, {}] lie outside the file, whose data has {} bytes", where, extent.begin,
         extent.end, data_bytes);
  }
  return extent;
}

// The tensors must tile the data section: every byte belongs to exactly one of them.
void check_tiling(std::vector<Extent> extents, size_t data_bytes, const std::string& source) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t expected = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != expected) {
      fail("{}: tensor '{}' starts at data byte {}, but the tensors before it end at {} ({})", source,
           printable(*extent.name), extent.begin, expected, extent.begin < expected ? "overlap" : "hole");
    }
    expected = extent.end;
  }
  if (expected != data_bytes) {
    fail("{}: {} bytes follow the last tensor", source, data_bytes - expected);
  }
}

std::map<std::string, std::string> read_metadata(const Json& object, const std::string& source) {
  if (!object.is_object()) fail("{}: '__metadata__' must be an object", source);
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.items()) {
    if (!value.is_string()) fail("{}: '__metadata__' entry '{}' must be a string", source, printable(key));
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

}  // namespace

SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                  const std::filesystem::path& path) {
  const std::string source = path.string();
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    fail("{}: not a safetensors file: {} bytes are too few for its header length", source, bytes.size());
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes) {
    fail("{}: not a safetensors file: header length {} is above the limit of {}", source, header_bytes,
         kMaxHeaderBytes);
  }
  if (header_bytes > bytes.size() - sizeof(header_bytes)) {
    fail("{}: truncated: the header has {} bytes but only {} follow", source, header_bytes,
         bytes.size() - sizeof(header_bytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof(header_bytes),
                              header_bytes);
  if (text.empty() || text.front() != '{')
    fail("{}: not a safetensors file: its header does not start with '{{'", source);
  JsonLimits limits;
  limits.max_bytes = kMaxHeaderBytes;
  limits.max_depth = 4;
  limits.max_values = size_t{1} << 22;  // some 8 values describe a tensor
  const Json header = parse_json(text, source, limits);
  const std::span<const std::byte> data = bytes.subspan(sizeof(header_bytes) + header_bytes);

  SafetensorsFile file;
  file.path = path;
  std::vector<Extent> extents;
  struct Pending {
    const std::string* name;
    DType dtype;
    Shape shape;
    uint64_t begin;
  };
  std::vector<Pending> pending;
  for (auto entry = header.begin(); entry != header.end(); ++entry) {
    if (entry.key() == "__metadata__") {
      file.metadata = read_metadata(entry.value(), source);
      continue;
    }
    const std::string where = format_text("{}: tensor '{}'", source, printable(entry.key()));
    if (!entry->is_object()) fail("{}: its header entry must be an object", where);
    const auto type = entry->find("dtype");
    if (type == entry->end() || !type->is_string()) fail("{}: 'dtype' must be a string", where);
    const std::string& type_name = type->get_ref<const std::string&>();
    Shape shape = read_shape(*entry, where);
    Extent extent = read_extent(*entry, where, data.size());
    extent.name = &entry.key();
    extents.push_back(extent);

    const std::optional<DType> dtype = dtype_from_name(type_name);
    if (!dtype) {
      file.unsupported.emplace(entry.key(), printable(type_name, 40));
      continue;
    }
    int64_t needed = static_cast<int64_t>(dtype_size(*dtype));
    for (const int64_t dim : shape) {
      if (__builtin_mul_overflow(needed, dim, &needed))
        fail("{}: shape {} has too many elements", where, to_string(shape));
    }
    if (static_cast<uint64_t>(needed) != extent.end - extent.begin) {
      fail("{}: shape {} of {} needs {} bytes, data_offsets give it {}", where, to_string(shape), type_name,
           needed, extent.end - extent.begin);
    }
    pending.push_back({&entry.key(), *dtype, std::move(shape), extent.begin});
  }
  check_tiling(std::move(extents), data.size(), source);
  // Only now, that no two tensors share bytes, is the memory that copies may take bounded by the file's size.
  for (Pending& tensor : pending) {
    file.tensors.emplace(
        *tensor.name, aligned_view(tensor.dtype, std::move(tensor.shape), data.data() + tensor.begin, owner));
  }
  return file;
}

SafetensorsFile open_safetensors(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  return parse_safetensors(file->bytes(), file, path);
}

}  // namespace nibble
