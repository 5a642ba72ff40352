// Output that appears whole or not at all: written beside its place under a temporary name, fsynced, then
// renamed.
#pragma once

#include <filesystem>

namespace nibble {

// A folder (or file) in the making. The destructor removes it unless commit() succeeded; what a killed
// process leaves behind is named "<final>.tmp-nibble-<pid>" and is recognised and removed by the next run
// when that process is gone.
class AtomicOutput {
 public:
  // Throws Error when `final_path` exists and `replace` is false, when its parent does not exist or is not
  // writable. A folder is replaced only when it is empty or looks like a model folder (config.json, no
  // folders inside). The temporary folder is made here; a temporary file is the caller's to create.
  AtomicOutput(std::filesystem::path final_path, bool is_folder, bool replace);
  // A folder whose unfinished state outlives its process, as "<final>.partial": what an earlier run left
  // there is kept for the caller to adopt or clear, and the destructor removes nothing. Also throws Error
  // when another process is at it.
  static AtomicOutput resumable_folder(std::filesystem::path final_path, bool replace);
  ~AtomicOutput();
  AtomicOutput(const AtomicOutput&) = delete;
  AtomicOutput& operator=(const AtomicOutput&) = delete;

  const std::filesystem::path& temporary_path() const { return temporary_; }
  // fsyncs every file and the folder, then renames into place (an existing target is exchanged and removed).
  void commit();

 private:
  AtomicOutput(std::filesystem::path final_path, bool is_folder, bool replace, bool resumable);
  void prepare(const std::filesystem::path& given);
  bool try_lock();  // of the temporary folder, for the life of this process
  void put_in_place();
  std::filesystem::path final_, temporary_;
  bool is_folder_, replace_, resumable_, committed_ = false;
  int lock_ = -1;  // descriptor of the temporary folder, locked while this process lives
};

}  // namespace nibble
