// A model whose hidden states are rotated by Hadamard matrices and that computes the same function (QuaRot's
// R1, R2 and R4): in it, outlier channels are spread over all channels, and 4-bit activations hold them.
//
//   residual stream  x becomes Q x. The weights of norms go into the linears behind them, which makes norms
//                    commute with Q; embedding and whatever writes to the stream (o, down) is multiplied by
//                    Q, whatever reads it (q, k, v, gate, up, head) by Q^T.
//   values           each head's values become Q_h v, undone in the columns of the output projection.
//   down input       becomes H D x: D, signs, goes into the up projection, H runs in front of the down
//                    projection (ModelSpec::down_hadamard), whose columns are rotated to match.
//
// A rotation spreads the energy of a large channel over all of them, where it drowns the small ones. The
// norms' weights are gone by then; channels between two linears can be balanced as well: with `channels`,
// each value channel and each channel of the down input is divided by s_j and the column behind it multiplied
// by it, s_j^2 = (root mean square of the channel) / (norm of the column), which makes the product of both
// sides' total energies least (by Cauchy-Schwarz).
#pragma once

#include <cstdint>
#include <vector>

#include "io/checkpoint.h"

namespace nibble {

// Root mean squares of one layer's channels.
struct ChannelSizes {
  std::vector<float> attended;  // [heads * head_dim], the input of the output projection
  std::vector<float> down;      // [intermediate]
};

struct RotationOptions {
  bool down_input = true;              // costs a Hadamard transform per MLP while running
  uint64_t seed = 0;                   // of the signs
  std::vector<ChannelSizes> channels;  // per layer; empty: channels are left as they are
};

// The tensors of the result are computed when they are read, as F32; files and path are the source's. Its
// config has "tie_word_embeddings": false (the head takes up the final norm, the embedding does not) and
// "nibble_rotation", see docs/format.md. Throws Error for a model whose norms are not RMS norms, for one with
// tensors in its blocks that the rotation does not know, and for shapes that contradict the config.
Checkpoint rotate_checkpoint(Checkpoint source, const RotationOptions& options);

}  // namespace nibble
