#include "base/error.h"

#include <cstdio>
#include <cstdlib>

namespace nibble {

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "nibble: internal fault at %s:%d: %s does not hold. Please report this.\n", file, line,
               condition);
  std::abort();
}

}  // namespace nibble
