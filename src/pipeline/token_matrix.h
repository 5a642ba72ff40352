// The embedding table and the head: the two matrices over the vocabulary, which recipes leave alone and
// --embedding-bits stores at 16, 8 or 4 bits.
#pragma once

#include "formats/format.h"

namespace nibble {

// `source` [vocabulary, hidden] at 16 bit (as it is, or rounded to F16), 8 bit (a scale per row) or 4 bit (a
// scale per 32 columns), rounded to nearest. `error`, when not null, gets the relative squared error of what
// the stored codes stand for.
PackedLinear quantize_token_matrix(const PackedLinear& source, int bits, ThreadPool& pool, double* error);

}  // namespace nibble
