#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "io/atomic_output.h"
#include "unit/io_bad_case.h"
#include "unit/io_samples.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using samples::read_all;
using samples::TemporaryFolder;

void put(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

size_t entries(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(AtomicOutput, AFolderAppearsWhole) {
  const TemporaryFolder folder;
  const fs::path final_path = folder.path() / "model";
  {
    AtomicOutput output(final_path, true, false);
    EXPECT_EQ(output.temporary_path(),
              fs::canonical(folder.path()) / ("model.tmp-nibble-" + std::to_string(getpid())));
    put(output.temporary_path() / "config.json", "{}");
    EXPECT_FALSE(fs::exists(final_path));
    output.commit();
    EXPECT_EQ(read_all(final_path / "config.json"), "{}");
  }
  EXPECT_TRUE(fs::exists(final_path));
  EXPECT_EQ(entries(folder.path()), 1u);
}

TEST(AtomicOutput, AFileAppearsWhole) {
  const TemporaryFolder folder;
  const fs::path final_path = folder.path() / "logits.safetensors";
  for (const bool replace : {false, true}) {
    AtomicOutput output(final_path, false, replace);
    put(output.temporary_path(), replace ? "new" : "old");
    output.commit();
    EXPECT_EQ(read_all(final_path), replace ? "new" : "old");
  }
  EXPECT_EQ(entries(folder.path()), 1u);
}

TEST(AtomicOutput, WithoutCommitNothingRemains) {
  const TemporaryFolder folder;
  {
    AtomicOutput output(folder.path() / "model", true, false);
    put(output.temporary_path() / "config.json", "{}");
  }
  {
    AtomicOutput output(folder.path() / "file", false, false);
    put(output.temporary_path(), "half");
  }
  EXPECT_EQ(entries(folder.path()), 0u);
}

TEST(AtomicOutput, ReplacesAModelFolder) {
  const TemporaryFolder folder;
  const fs::path final_path = folder.path() / "model";
  fs::create_directories(final_path);
  put(final_path / "config.json", "old");
  put(final_path / "extra", "old");
  expect_error("model: exists already", [&] { AtomicOutput(final_path, true, false); });
  {
    AtomicOutput output(final_path, true, true);
    put(output.temporary_path() / "config.json", "new");
    EXPECT_EQ(read_all(final_path / "config.json"), "old");
  }
  EXPECT_EQ(read_all(final_path / "config.json"), "old") << "no commit, no change";
  AtomicOutput output(final_path, true, true);
  put(output.temporary_path() / "config.json", "new");
  output.commit();
  EXPECT_EQ(read_all(final_path / "config.json"), "new");
  EXPECT_FALSE(fs::exists(final_path / "extra"));
  EXPECT_EQ(entries(folder.path()), 1u);
}

TEST(AtomicOutput, AcceptsTrailingSlashesAndLinks) {
  const TemporaryFolder folder;
  {
    AtomicOutput output(folder.path() / "model" / "", true, false);
    output.commit();
  }
  EXPECT_TRUE(fs::is_directory(folder.path() / "model"));
  fs::create_directory_symlink(folder.path() / "model", folder.path() / "link");
  {
    AtomicOutput output(folder.path() / "link", true, true);
    put(output.temporary_path() / "config.json", "new");
    output.commit();
  }
  EXPECT_TRUE(fs::is_symlink(folder.path() / "link"));
  EXPECT_EQ(read_all(folder.path() / "model" / "config.json"), "new");
}

TEST(AtomicOutput, RefusesToReplaceWhatIsNoModel) {
  const TemporaryFolder folder;
  const fs::path home = folder.path() / "home";
  fs::create_directories(home / "documents");
  put(home / "config.json", "{}");
  expect_error("it holds the folder 'documents'", [&] { AtomicOutput(home, true, true); });
  fs::remove(home / "documents");
  fs::remove(home / "config.json");
  put(home / "letter.txt", "dear");
  expect_error("it has no config.json", [&] { AtomicOutput(home, true, true); });
  EXPECT_EQ(read_all(home / "letter.txt"), "dear");
  expect_error("it is not a folder", [&] { AtomicOutput(home / "letter.txt", true, true); });
  expect_error("it is not a regular file", [&] { AtomicOutput(home, false, true); });
  fs::create_symlink(folder.path() / "absent", folder.path() / "dangling");
  expect_error("dangling", [&] { AtomicOutput(folder.path() / "dangling", false, false); });
}

TEST(AtomicOutput, RefusesImpossiblePlaces) {
  const TemporaryFolder folder;
  folder.write("file", "x");
  expect_error("does not exist", [&] { AtomicOutput(folder.path() / "absent" / "model", true, false); });
  expect_error("file/model", [&] { AtomicOutput(folder.path() / "file" / "model", true, false); });
  expect_error("cannot", [] { AtomicOutput("/proc/nibble-model", true, false); });
  expect_error("empty path", [] { AtomicOutput("", true, false); });
  expect_error("not a possible output", [] { AtomicOutput("/", true, true); });
  expect_error("model",
               [&] { AtomicOutput(folder.path() / ("model" + std::string(300, 'x')), true, false); });
}

TEST(AtomicOutput, RefusesAnUnwritableFolder) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  const TemporaryFolder folder;
  fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::owner_exec);
  expect_error("Permission denied", [&] { AtomicOutput(folder.path() / "model", true, false); });
  fs::permissions(folder.path(), fs::perms::owner_all);
}

TEST(AtomicOutput, KeepsWhatAppearedMeanwhile) {
  const TemporaryFolder folder;
  const fs::path final_path = folder.path() / "model";
  AtomicOutput output(final_path, true, false);
  fs::create_directories(final_path);
  put(final_path / "theirs", "x");
  expect_error("exists already", [&] { output.commit(); });
  EXPECT_TRUE(fs::exists(final_path / "theirs"));
}

TEST(AtomicOutput, OneWriterAtATime) {
  const TemporaryFolder folder;
  AtomicOutput first(folder.path() / "model", true, false);
  put(first.temporary_path() / "config.json", "{}");
  expect_error("another process is writing it", [&] { AtomicOutput(folder.path() / "model", true, false); });
  first.commit();
  EXPECT_EQ(read_all(folder.path() / "model" / "config.json"), "{}");
}

TEST(AtomicOutput, AResumableFolderOutlivesItsProcess) {
  const TemporaryFolder folder;
  const fs::path final_path = folder.path() / "model";
  const auto begin = [&] { return AtomicOutput::resumable_folder(final_path, false); };
  {
    const AtomicOutput output = begin();
    put(output.temporary_path() / "shard", "done");
    expect_error("another process is writing it", [&] { begin(); });
  }
  EXPECT_FALSE(fs::exists(final_path));
  AtomicOutput output = begin();
  EXPECT_EQ(read_all(output.temporary_path() / "shard"), "done");
  output.commit();
  EXPECT_EQ(read_all(final_path / "shard"), "done");
  EXPECT_EQ(entries(folder.path()), 1u);
  put(folder.path() / "other.partial", "a file");
  expect_error("is in the way", [&] { AtomicOutput::resumable_folder(folder.path() / "other", false); });
}

TEST(AtomicOutput, TheNextRunRemovesWhatAKilledOneLeft) {
  const TemporaryFolder folder;
  const fs::path final_path = folder.path() / "model";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    AtomicOutput output(final_path, true, false);
    put(output.temporary_path() / "model.safetensors", "half");
    kill(getpid(), SIGKILL);
    _exit(1);
  }
  // A living process of the same sort, and files whose names only look alike.
  const fs::path alive = folder.path() / ("model.tmp-nibble-" + std::to_string(getppid()));
  fs::create_directories(alive);
  const fs::path other = folder.path() / "model.tmp-nibble-x1";
  fs::create_directories(other);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  const fs::path left = folder.path() / ("model.tmp-nibble-" + std::to_string(child));
  EXPECT_TRUE(fs::exists(left));
  EXPECT_FALSE(fs::exists(final_path));

  const AtomicOutput output(final_path, true, false);
  EXPECT_FALSE(fs::exists(left));
  EXPECT_TRUE(fs::exists(alive));
  EXPECT_TRUE(fs::exists(other));
}

}  // namespace
}  // namespace nibble
