#include "io/gguf.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>

#include "base/error.h"
#include "io/printable.h"

static_assert(std::endian::native == std::endian::little, "GGUF is read in place and is little-endian");

namespace nibble {
namespace {

constexpr char kMagic[] = {'G', 'G', 'U', 'F'};
constexpr uint64_t kMaxMetadataKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxKeyBytes = (1 << 16) - 1;  // the specification's limit
constexpr uint64_t kMaxNameBytes = 63;            // as ggml
constexpr uint32_t kMaxDimensions = 4;            // as ggml
constexpr uint64_t kMaxArrayElements = 1 << 24;   // of all arrays together; a vocabulary has some 10^5
constexpr uint64_t kDefaultAlignment = 32;
// The least a metadata entry (empty key, one byte value) and a tensor description (empty name, no dimensions)
// take.
constexpr uint64_t kMinEntryBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 4 + 8;

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kValueTypes
};

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string source) : bytes_(bytes), source_(std::move(source)) {}

  const std::string& source() const { return source_; }
  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  template <typename T>
  T number(const char* what) {
    need(sizeof(T), what);
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }
  std::string string(const char* what, uint64_t limit = UINT64_MAX) {
    const uint64_t length = number<uint64_t>(what);
    if (length > remaining()) {
      fail("{}: truncated: {} at byte {} has length {}, only {} bytes are left", source_, what, position_,
           length, remaining());
    }
    if (length > limit) fail("{}: {} has length {}, at most {} is allowed", source_, what, length, limit);
    const auto* text = reinterpret_cast<const char*>(bytes_.data() + position_);
    position_ += length;
    return std::string(text, length);
  }
  // A count of things that take at least `least_bytes` each, checked against what is left before anything is
  // allocated.
  void check_count(uint64_t count, uint64_t least_bytes, uint64_t limit, const char* what) const {
    if (count > remaining() / least_bytes) {
      fail("{}: truncated: {} {} cannot fit into the {} bytes left", source_, count, what, remaining());
    }
    if (count > limit) fail("{}: {} {}, at most {} are allowed", source_, count, what, limit);
  }

 private:
  void need(uint64_t count, const char* what) const {
    if (count > remaining()) {
      fail("{}: truncated at byte {}: {} needs {} bytes, {} are left", source_, position_, what, count,
           remaining());
    }
  }
  std::span<const std::byte> bytes_;
  std::string source_;
  uint64_t position_ = 0;
};

// Bytes of one value of a type; for strings the least.
uint64_t least_value_bytes(uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    default:
      return 8;
  }
}

class MetadataReader {
 public:
  explicit MetadataReader(Reader& reader) : reader_(reader) {}

  Json value(uint32_t type, const std::string& key) {
    if (type != kArray) return scalar(type, key);
    const auto element_type = reader_.number<uint32_t>("an array's element type");
    const auto count = reader_.number<uint64_t>("an array's length");
    if (element_type == kArray) {
      fail("{}: key '{}' is an array of arrays, which is not supported", reader_.source(), printable(key));
    }
    check_type(element_type, key);
    reader_.check_count(count, least_value_bytes(element_type), kMaxArrayElements - elements_,
                        "array elements");
    elements_ += count;
    Json array = Json::array();
    array.get_ref<Json::array_t&>().reserve(count);
    for (uint64_t i = 0; i < count; ++i) array.push_back(scalar(element_type, key));
    return array;
  }

 private:
  void check_type(uint32_t type, const std::string& key) const {
    if (type >= kValueTypes) {
      fail("{}: key '{}' has value type {}, known are 0 to {}", reader_.source(), printable(key), type,
           kValueTypes - 1);
    }
  }
  Json scalar(uint32_t type, const std::string& key) {
    check_type(type, key);
    constexpr const char* kWhat = "a metadata value";
    switch (type) {
      case kU8:
        return reader_.number<uint8_t>(kWhat);
      case kI8:
        return reader_.number<int8_t>(kWhat);
      case kU16:
        return reader_.number<uint16_t>(kWhat);
      case kI16:
        return reader_.number<int16_t>(kWhat);
      case kU32:
        return reader_.number<uint32_t>(kWhat);
      case kI32:
        return reader_.number<int32_t>(kWhat);
      case kF32:
        return reader_.number<float>(kWhat);
      case kU64:
        return reader_.number<uint64_t>(kWhat);
      case kI64:
        return reader_.number<int64_t>(kWhat);
      case kF64:
        return reader_.number<double>(kWhat);
      case kString:
        return reader_.string("a metadata string");
      default: {
        const auto byte = reader_.number<uint8_t>(kWhat);
        if (byte > 1) fail("{}: key '{}' is a bool of value {}", reader_.source(), printable(key), byte);
        return byte == 1;
      }
    }
  }
  Reader& reader_;
  uint64_t elements_ = 0;
};

void read_header(Reader& reader, uint32_t* version, uint64_t* tensors, uint64_t* keys) {
  *version = reader.number<uint32_t>("the version");
  if ((*version & 0xffff) == 0 && *version != 0) {
    fail("{}: a big-endian GGUF file; only little-endian ones are supported", reader.source());
  }
  if (*version != 2 && *version != 3) {
    fail("{}: GGUF version {} is not supported, expected 2 or 3", reader.source(), *version);
  }
  *tensors = reader.number<uint64_t>("the tensor count");
  *keys = reader.number<uint64_t>("the metadata count");
  reader.check_count(*keys, kMinEntryBytes, kMaxMetadataKeys, "metadata keys");
  reader.check_count(*tensors, kMinTensorBytes, kMaxTensors, "tensors");
}

// Sets `alignment` from general.alignment when it is there; its type must be exactly what the specification
// says.
Json read_metadata(Reader& reader, uint64_t keys, uint64_t* alignment) {
  MetadataReader values(reader);
  Json metadata = Json::object();
  for (uint64_t i = 0; i < keys; ++i) {
    const std::string key = reader.string("a metadata key", kMaxKeyBytes);
    if (key.empty()) fail("{}: metadata key {} is empty", reader.source(), i);
    const auto type = reader.number<uint32_t>("a metadata type");
    if (metadata.contains(key)) fail("{}: metadata key '{}' appears twice", reader.source(), printable(key));
    Json value = values.value(type, key);
    if (key == "general.alignment") {
      if (type != kU32)
        fail("{}: general.alignment has value type {}, expected {} (uint32)", reader.source(), type, +kU32);
      *alignment = value.get<uint64_t>();
      if (!std::has_single_bit(*alignment)) {
        fail("{}: general.alignment is {}, expected a power of two", reader.source(), *alignment);
      }
    }
    metadata.emplace(key, std::move(value));
  }
  return metadata;
}

struct Description {
  GgufTensor tensor;
  uint64_t offset = 0;
};

Description read_description(Reader& reader) {
  Description made;
  GgufTensor& tensor = made.tensor;
  tensor.name = reader.string("a tensor name", kMaxNameBytes);
  const std::string where = format_text("{}: tensor '{}'", reader.source(), printable(tensor.name));
  if (tensor.name.empty()) fail("{}: a tensor has no name", reader.source());
  const auto dimensions = reader.number<uint32_t>("a tensor's dimension count");
  if (dimensions > kMaxDimensions)
    fail("{}: {} dimensions, at most {} are allowed", where, dimensions, kMaxDimensions);
  int64_t elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const auto extent = reader.number<uint64_t>("a tensor's dimension");
    if (extent == 0) fail("{}: dimension {} is 0", where, i);
    if (extent > static_cast<uint64_t>(INT64_MAX)) fail("{}: dimension {} is too large", where, extent);
    tensor.shape.push_back(static_cast<int64_t>(extent));
    if (__builtin_mul_overflow(elements, tensor.shape.back(), &elements)) {
      fail("{}: dimensions {} have too many elements", where, to_string(tensor.shape));
    }
  }
  const int64_t innermost = tensor.shape.empty() ? 1 : tensor.shape.front();
  std::reverse(tensor.shape.begin(), tensor.shape.end());

  const auto type_id = reader.number<uint32_t>("a tensor's type");
  tensor.type = find_gguf_type(type_id);
  if (tensor.type == nullptr) fail("{}: unknown type id {}", where, type_id);
  if (innermost % tensor.type->weights_per_block != 0) {
    fail("{}: rows of {} do not divide into {} blocks of {}", where, innermost, tensor.type->name,
         tensor.type->weights_per_block);
  }
  int64_t bytes = elements / tensor.type->weights_per_block;
  if (__builtin_mul_overflow(bytes, static_cast<int64_t>(tensor.type->bytes_per_block), &bytes)) {
    fail("{}: shape {} has too many elements", where, to_string(tensor.shape));
  }
  tensor.bytes = static_cast<size_t>(bytes);
  made.offset = reader.number<uint64_t>("a tensor's offset");
  return made;
}

void check_overlap(std::vector<const GgufTensor*> tensors, const std::string& source) {
  std::sort(tensors.begin(), tensors.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
  });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i - 1]->data + tensors[i - 1]->bytes > tensors[i]->data) {
      fail("{}: tensors '{}' and '{}' overlap", source, printable(tensors[i - 1]->name),
           printable(tensors[i]->name));
    }
  }
}

}  // namespace

bool is_gguf(std::span<const std::byte> bytes) {
  return bytes.size() >= sizeof(kMagic) && std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) == 0;
}

GgufFile parse_gguf(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                    const std::filesystem::path& path) {
  Reader reader(bytes, path.string());
  if (!is_gguf(bytes)) fail("{}: not a GGUF file: it does not start with 'GGUF'", reader.source());
  reader.number<uint32_t>("the magic");

  GgufFile file;
  file.path = path;
  file.owner = std::move(owner);
  uint64_t tensors = 0, keys = 0, alignment = kDefaultAlignment;
  read_header(reader, &file.version, &tensors, &keys);
  file.metadata = read_metadata(reader, keys, &alignment);
  file.header = bytes.first(reader.position());
  reader.check_count(tensors, kMinTensorBytes, kMaxTensors, "tensors");

  std::vector<Description> descriptions;
  descriptions.reserve(tensors);
  std::set<std::string_view> names;
  for (uint64_t i = 0; i < tensors; ++i) {
    descriptions.push_back(read_description(reader));
    if (!names.insert(descriptions.back().tensor.name).second) {
      fail("{}: tensor '{}' appears twice", reader.source(), printable(descriptions.back().tensor.name));
    }
  }

  // Below 2^32 + the file's size, so the sum cannot wrap; a file without tensors may end before the padding.
  const uint64_t data_start = (reader.position() + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = bytes.size() - std::min<uint64_t>(data_start, bytes.size());
  std::vector<const GgufTensor*> in_memory;
  file.tensors.reserve(tensors);
  for (Description& described : descriptions) {
    GgufTensor& tensor = described.tensor;
    const std::string where = format_text("{}: tensor '{}'", reader.source(), printable(tensor.name));
    if (described.offset % alignment != 0) {
      fail("{}: offset {} is not a multiple of the alignment {}", where, described.offset, alignment);
    }
    if (described.offset > data_bytes || tensor.bytes > data_bytes - described.offset) {
      fail("{}: {} bytes at offset {} lie outside the file, whose data has {} bytes", where, tensor.bytes,
           described.offset, data_bytes);
    }
    tensor.data = bytes.data() + std::min<uint64_t>(data_start, bytes.size()) + described.offset;
    file.tensors.push_back(std::move(tensor));
    if (file.tensors.back().bytes > 0) in_memory.push_back(&file.tensors.back());
  }
  check_overlap(std::move(in_memory), reader.source());
  return file;
}

void write_gguf_metadata(const GgufFile& file, const std::filesystem::path& path) {
  // Magic, version (u32), then the count of tensors (u64), which becomes zero.
  constexpr size_t kTensorCountOffset = 8;
  std::string bytes(reinterpret_cast<const char*>(file.header.data()), file.header.size());
  bytes.replace(kTensorCountOffset, sizeof(uint64_t), sizeof(uint64_t), '\0');
  std::ofstream stream(path, std::ios::binary);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  stream.close();
  if (!stream) fail("{}: cannot be written: {}", path.string(), std::strerror(errno));
}

}  // namespace nibble
