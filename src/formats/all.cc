// The table of formats. A format is its folder and one line here.
#include <array>

#include "formats/format.h"

namespace nibble {

extern const LinearFormat kDenseFormat;
extern const LinearFormat kGroupIntFormat;
extern const LinearFormat kMixed2416Format;
extern const LinearFormat kGroupIntA8Format;
extern const LinearFormat kQuikFormat;
extern const LinearFormat kSqueezellmFormat;
extern const LinearFormat kQuikSparseFormat;

std::span<const LinearFormat* const> all_formats() {
  static constexpr std::array kFormats = {&kDenseFormat,     &kGroupIntFormat,   &kMixed2416Format,
                                          &kQuikFormat,      &kSqueezellmFormat, &kQuikSparseFormat,
                                          &kGroupIntA8Format};
  return kFormats;
}

}  // namespace nibble
