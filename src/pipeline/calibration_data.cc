#include "pipeline/calibration_data.h"

#include <algorithm>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "io/safetensors.h"
#include "pipeline/digest.h"

namespace nibble {
namespace {

constexpr int64_t kDefaultSequences = 128;
constexpr int64_t kDefaultLength = 2048;
// Longer texts are read up to here: 128 x 2048 tokens are about one megabyte of English.
constexpr size_t kMaxTextBytes = size_t{64} << 20;

// SplitMix64: a counter hashed well; the same numbers on every platform.
uint64_t random_bits(uint64_t seed, uint64_t counter) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + (counter + 1) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("{}: cannot be read: {}", path.string(), std::strerror(errno));
  std::string text;
  file.seekg(0, std::ios::end);
  const auto size = file.tellg();
  if (size < 0) fail("{}: is no regular file", path.string());
  text.resize(std::min<size_t>(static_cast<size_t>(size), kMaxTextBytes));
  file.seekg(0);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file) fail("{}: cannot be read", path.string());
  return text;
}

CalibrationData from_text(const CalibrationOptions& options, const ModelSpec& spec,
                          const std::filesystem::path& model_path) {
  const std::string source = options.text_file.string();
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(model_path);
  const std::vector<int32_t> ids =
      tokenizer->encode(read_text(options.text_file), {.add_special = false, .parse_special = false});
  const int64_t available = static_cast<int64_t>(ids.size());

  CalibrationData data;
  data.length = std::min(options.length.value_or(kDefaultLength), spec.context_length);
  const int64_t whole = available / data.length;
  if (whole == 0) {
    fail(
        "{}: has {} tokens, too little calibration text for one sequence of {}; give more text or a smaller "
        "--calib-length",
        source, available, data.length);
  }
  if (options.sequences && *options.sequences > whole) {
    fail("{}: has {} tokens, enough for {} sequences of {}, not for the {} asked for", source, available,
         whole, data.length, *options.sequences);
  }
  data.sequences = std::min(options.sequences.value_or(kDefaultSequences), whole);
  if (data.sequences * data.length < 8192) {
    log_warning("{}: only {} calibration tokens; second-order methods want 16,000 or more", source,
                data.sequences * data.length);
  }
  // Spread evenly over the text, so that the whole of it speaks.
  for (int64_t s = 0; s < data.sequences; ++s) {
    const int64_t first = whole == data.sequences
                              ? s * data.length
                              : (available - data.length) * s / std::max<int64_t>(1, data.sequences - 1);
    data.ids.insert(data.ids.end(), ids.begin() + first, ids.begin() + first + data.length);
  }
  for (const int32_t id : data.ids) {
    if (id < 0 || id >= spec.vocabulary) {
      fail("{}: the tokenizer gives token {}, but the model's vocabulary has {} entries", model_path.string(),
           id, spec.vocabulary);
    }
  }
  data.description = format_text("{} sequences of {} tokens from {}", data.sequences, data.length,
                                 options.text_file.filename().string());
  return data;
}

CalibrationData from_random(const CalibrationOptions& options, const ModelSpec& spec) {
  CalibrationData data;
  data.sequences = options.sequences.value_or(kDefaultSequences);
  data.length = std::min(options.length.value_or(kDefaultLength), spec.context_length);
  data.ids.resize(static_cast<size_t>(data.sequences * data.length));
  for (size_t i = 0; i < data.ids.size(); ++i) {
    data.ids[i] = static_cast<int32_t>(random_bits(options.seed, i) % static_cast<uint64_t>(spec.vocabulary));
  }
  data.description =
      format_text("{} sequences of {} random tokens, seed {}", data.sequences, data.length, options.seed);
  return data;
}

CalibrationData from_ids(const CalibrationOptions& options, const ModelSpec& spec) {
  CalibrationData data = read_token_ids(options.ids_file, spec.vocabulary);
  if (data.length > spec.context_length) {
    fail("{}: sequences of {} tokens, but the model's context is {}", options.ids_file.string(), data.length,
         spec.context_length);
  }
  if (options.sequences && *options.sequences > data.sequences) {
    fail("{}: has {} sequences, not the {} asked for", options.ids_file.string(), data.sequences,
         *options.sequences);
  }
  const int64_t sequences = options.sequences.value_or(data.sequences);
  const int64_t length = std::min(options.length.value_or(data.length), data.length);
  std::vector<int32_t> kept;
  for (int64_t s = 0; s < sequences; ++s) {
    kept.insert(kept.end(), data.ids.begin() + s * data.length, data.ids.begin() + s * data.length + length);
  }
  data.ids = std::move(kept);
  data.sequences = sequences;
  data.length = length;
  data.description = format_text("{} sequences of {} tokens from {}", sequences, length,
                                 options.ids_file.filename().string());
  return data;
}

}  // namespace

bool names_a_source(const CalibrationOptions& options) {
  return !options.text_file.empty() || !options.ids_file.empty() || options.random_tokens;
}

CalibrationData read_token_ids(const std::filesystem::path& path, int64_t vocabulary) {
  const SafetensorsFile file = open_safetensors(path);
  const auto found = file.tensors.find("input_ids");
  if (found == file.tensors.end()) fail("{}: tensor 'input_ids' is missing", path.string());
  const Tensor& tensor = found->second;
  if (tensor.dtype() != DType::kI32 && tensor.dtype() != DType::kI64) {
    fail("{}: tensor 'input_ids' is {}, expected I32 or I64", path.string(), dtype_name(tensor.dtype()));
  }
  if (tensor.rank() < 1 || tensor.rank() > 2 || tensor.elements() == 0) {
    fail("{}: tensor 'input_ids' has shape {}, expected [sequences, length]", path.string(),
         to_string(tensor.shape()));
  }
  CalibrationData data;
  data.sequences = tensor.rank() == 2 ? tensor.dim(0) : 1;
  data.length = tensor.dim(tensor.rank() - 1);
  data.ids.resize(static_cast<size_t>(tensor.elements()));
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    const int64_t id = tensor.dtype() == DType::kI32 ? tensor.data<int32_t>()[i] : tensor.data<int64_t>()[i];
    if (id < 0 || id >= vocabulary) {
      fail("{}: input_ids[{}] is {}, expected a token of a vocabulary of {}", path.string(), i, id,
           vocabulary);
    }
    data.ids[static_cast<size_t>(i)] = static_cast<int32_t>(id);
  }
  return data;
}

CalibrationData load_calibration_data(const CalibrationOptions& options, const ModelSpec& spec,
                                      const std::filesystem::path& model_path) {
  const int sources =
      int{!options.text_file.empty()} + int{!options.ids_file.empty()} + int{options.random_tokens};
  if (sources != 1) {
    fail_usage(
        "calibration needs exactly one of --calib FILE.txt, --calib-ids FILE.safetensors and --calib-random");
  }
  if (options.sequences && *options.sequences < 1) {
    fail_usage("--calib-sequences is {}, expected at least 1", *options.sequences);
  }
  if (options.length && *options.length < 2)
    fail_usage("--calib-length is {}, expected at least 2", *options.length);

  CalibrationData data = !options.text_file.empty()  ? from_text(options, spec, model_path)
                         : !options.ids_file.empty() ? from_ids(options, spec)
                                                     : from_random(options, spec);
  data.hash = sha256_hex(std::as_bytes(std::span(data.ids)));
  return data;
}

}  // namespace nibble
