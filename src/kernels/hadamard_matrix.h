// Hadamard matrices of orders that are no powers of two: H H^T = order * I with entries +1 and -1.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

// Largest order that is built: a product with the matrix costs order operations per element.
inline constexpr int64_t kLargestBaseOrder = 512;

// Whether base_hadamard() builds this order (a multiple of 4, at most kLargestBaseOrder): by Paley's first
// construction from a prime q = order - 1 of the form 4 i + 3, by his second from a prime q = order / 2 - 1
// of the form 4 i + 1, or by Goethals and Seidel's array from four circulant matrices.
bool has_base_hadamard(int64_t order);
// Row-major [order, order]. The constructions are tried in the order above and never change: files name
// matrices by their order.
std::vector<int8_t> base_hadamard(int64_t order);

}  // namespace nibble
