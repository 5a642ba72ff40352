// A nibble folder in the making. Everything is written into "<output>.partial": one safetensors shard per
// finished block, each appearing whole or not at all, so that an interrupted run can go on where it stopped.
// commit() adds the index and config.json, fsyncs, and renames the folder into place.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "formats/format.h"
#include "io/atomic_output.h"
#include "io/checkpoint.h"

namespace nibble {

class QuantizedFolder {
 public:
  // `fingerprint` tells which run this is (recipe, source, calibration). Blocks of an earlier run with the
  // same fingerprint are kept when `resume` is set; with another one that is an Error. Without `resume` an
  // earlier partial run is removed. Throws Error when the output exists and `replace` is false, when it
  // cannot be written, or when another process is at it.
  QuantizedFolder(std::filesystem::path output, int64_t shards, const std::string& fingerprint, bool resume,
                  bool replace);

  // Shards are numbered 0 .. shards-1; `entries` are tensors by full name, `notes` any JSON to be read back.
  bool has_shard(int64_t shard) const;
  void write_shard(int64_t shard, const std::map<std::string, Tensor>& entries, const Json& notes);
  // The tensors and notes of a finished shard.
  std::map<std::string, Tensor> read_shard(int64_t shard, Json* notes) const;

  // Writes the index over all shards (each must be there), config.json, and copies of the source's tokenizer
  // and generation config; then renames into place.
  void commit(const Json& config, const Checkpoint& source);

  const std::filesystem::path& partial_path() const { return output_.temporary_path(); }

 private:
  std::filesystem::path shard_path(int64_t shard) const;
  AtomicOutput output_;
  int64_t shards_;
};

// The tensors of a packed linear by their full names, "<linear>.<suffix>".
void add_entries(const PackedLinear& linear, std::map<std::string, Tensor>* entries);

}  // namespace nibble
