// Running another program to its end.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

// Runs `program` with `arguments` and returns what it wrote to standard output. Throws Error with the last
// line of its standard error when it fails; Interrupted, after ending it, on Ctrl-C.
std::string run_program(const std::filesystem::path& program, const std::vector<std::string>& arguments);

}  // namespace nibble
