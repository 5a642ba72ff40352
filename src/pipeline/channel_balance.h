// How large each channel is in front of the linears that a rotation mixes channels for, measured on the float
// model: what rotate_checkpoint() balances channels by.
#pragma once

#include <vector>

#include "base/thread_pool.h"
#include "pipeline/calibration_data.h"
#include "transforms/rotate_checkpoint.h"

namespace nibble {

// Root mean squares over some thousand tokens of the calibration data, one entry per layer. The same bits for
// any number of threads. Polls for Ctrl-C.
std::vector<ChannelSizes> measure_channels(const Checkpoint& checkpoint, const CalibrationData& data,
                                           ThreadPool& pool);

}  // namespace nibble
