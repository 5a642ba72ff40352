// JSON results on standard output.
#pragma once

#include <nlohmann/json.hpp>

#include "command.h"

namespace nibble {

// Keys in the order of insertion, as a reader expects to see them.
using OrderedJson = nlohmann::ordered_json;

// One line. Bytes that are no UTF-8 become the replacement character; NaN and infinity become null.
inline void write_json(const OrderedJson& value) {
  write_output(value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
  flush_output();
}

}  // namespace nibble
