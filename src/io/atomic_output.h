// Output that appears whole or not at all: written beside its place under a temporary name, fsynced, then renamed.
#pragma once

#include <filesystem>

namespace nibble {

// A folder (or file) in the making. The destructor removes it unless commit() succeeded; what a killed process leaves
// behind is named "<final>.tmp-nibble-<pid>" and is recognised and removed by the next run when that process is gone.
class AtomicOutput {
 public:
  // Throws Error when `final_path` exists and `replace` is false, when its parent does not exist or is not writable.
  AtomicOutput(std::filesystem::path final_path, bool is_folder, bool replace);
  ~AtomicOutput();
  AtomicOutput(const AtomicOutput&) = delete;
  AtomicOutput& operator=(const AtomicOutput&) = delete;

  const std::filesystem::path& temporary_path() const { return temporary_; }
  // fsyncs every file and the folder, then renames into place (an existing target is exchanged and removed).
  void commit();

 private:
  std::filesystem::path final_, temporary_;
  bool is_folder_, replace_, committed_ = false;
};

}  // namespace nibble
