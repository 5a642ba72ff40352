// The table of quantizers. A quantizer is its file and one line here.
#include <array>

#include "base/error.h"
#include "quantizers/quantizer.h"

namespace nibble {

extern const Quantizer kGptqQuantizer;
extern const Quantizer kMixedPrecisionQuantizer;
extern const Quantizer kRtnQuantizer;
extern const Quantizer kKmeansQuantizer;
extern const Quantizer kLnqQuantizer;
extern const Quantizer kSparseGptqQuantizer;

std::span<const Quantizer* const> all_quantizers() {
  static constexpr std::array kQuantizers = {&kGptqQuantizer, &kMixedPrecisionQuantizer,
                                             &kRtnQuantizer,  &kKmeansQuantizer,
                                             &kLnqQuantizer,  &kSparseGptqQuantizer};
  return kQuantizers;
}

const Quantizer& find_quantizer(std::string_view name) {
  std::string known;
  for (const Quantizer* quantizer : all_quantizers()) {
    if (name == quantizer->name) return *quantizer;
    known += known.empty() ? "" : ", ";
    known += quantizer->name;
  }
  fail_usage("there is no quantizer '{}'; expected one of {}", name, known);
}

}  // namespace nibble
