#include "kernels/hadamard_matrix.h"

#include <array>
#include <string_view>

#include "base/error.h"

namespace nibble {
namespace {

bool is_prime(int64_t value) {
  if (value < 2) return false;
  for (int64_t d = 2; d * d <= value; ++d) {
    if (value % d == 0) return false;
  }
  return true;
}

bool is_paley_1(int64_t order) { return order % 4 == 0 && is_prime(order - 1); }
bool is_paley_2(int64_t order) {
  return order % 4 == 0 && (order / 2 - 1) % 4 == 1 && is_prime(order / 2 - 1);
}

// Four sequences of length n whose periodic autocorrelations add up to 0 away from the origin; their
// circulants A, B, C, D then have A A^T + B B^T + C C^T + D D^T = 4 n I. Found by matching pairs of sequences
// that are constant on the orbits of a group of multipliers modulo n.
struct CirculantRows {
  int64_t length;
  std::array<std::string_view, 4> rows;
};
constexpr CirculantRows kCirculants[] = {
    {13, {"+-+++-++-+++-", "+-++------++-", "+-++------++-", "++---+--+---+"}},
    {23,
     {"+--+-+-++++++++++-+-+--", "+--++-+-+-++++-+-+-++--", "+++---++--++++--++---++",
      "+--+--+++------+++--+--"}},
    {25,
     {"+-++---++++++++++++---++-", "+-+---+---++++++---+---+-", "+-+--+-++--++++--++-+--+-",
      "++--+--++-+----+-++--+--+"}},
    {39,
     {"+--++----++------+-+---+-++++--+------+", "+---+-+---+-+-++--++-----++-++++---++--",
      "+-------+--++++--+-+++-++-+-++++-+-++-+", "+---+---+-+++----+-+++-++++-+-++-+--+-+"}},
    {43,
     {"+---++--++++-+-+++-++--++-+++-+-++++--++---", "++---++++-+--+--++--------++--+--+-++++---+",
      "+++-+-++--+-+-++++-+----+-++++-+-+--++-+-++", "++-++++++----+-+--++-++-++--+-+----++++++-+"}},
};

const CirculantRows* find_circulants(int64_t order) {
  for (const CirculantRows& each : kCirculants) {
    if (4 * each.length == order) return &each;
  }
  return nullptr;
}

// Legendre symbols modulo the prime q.
std::vector<int8_t> quadratic_characters(int64_t q) {
  std::vector<int8_t> symbols(static_cast<size_t>(q), -1);
  symbols[0] = 0;
  for (int64_t i = 1; i < q; ++i) symbols[static_cast<size_t>(i * i % q)] = 1;
  return symbols;
}

// H = I + S with the skew S = [[0, 1], [-1, Q]], Q[i][j] = symbol(i - j).
void fill_paley_1(int64_t order, std::vector<int8_t>* matrix) {
  const int64_t q = order - 1;
  const std::vector<int8_t> symbols = quadratic_characters(q);
  for (int64_t i = 0; i < order; ++i) {
    for (int64_t j = 0; j < order; ++j) {
      int8_t value = 1;  // the diagonal and the first row
      if (i > 0 && j == 0) value = -1;
      if (i > 0 && j > 0 && i != j) value = symbols[static_cast<size_t>((i - j + q) % q)];
      (*matrix)[static_cast<size_t>(i * order + j)] = value;
    }
  }
}

// H = C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] with the symmetric C = [[0, 1], [1, Q]].
void fill_paley_2(int64_t order, std::vector<int8_t>* matrix) {
  const int64_t q = order / 2 - 1;
  const std::vector<int8_t> symbols = quadratic_characters(q);
  for (int64_t i = 0; i <= q; ++i) {
    for (int64_t j = 0; j <= q; ++j) {
      int8_t c = 1;
      if (i > 0 && j > 0) c = symbols[static_cast<size_t>((i - j + q) % q)];
      if (i == j) c = 0;
      int8_t* cell = matrix->data() + 2 * i * order + 2 * j;
      cell[0] = i == j ? 1 : c;
      cell[1] = i == j ? -1 : c;
      cell[order] = i == j ? -1 : c;
      cell[order + 1] = i == j ? -1 : static_cast<int8_t>(-c);
    }
  }
}

// [[A, BR, CR, DR], [-BR, A, D'R, -C'R], [-CR, -D'R, A, B'R], [-DR, C'R, -B'R, A]] where R reverses columns
// and ' transposes.
void fill_goethals_seidel(const CirculantRows& circulants, std::vector<int8_t>* matrix) {
  const int64_t n = circulants.length, order = 4 * n;
  struct Cell {
    int which;
    int8_t sign;
    bool transposed;
  };
  constexpr Cell kArray[4][4] = {
      {{0, 1, false}, {1, 1, false}, {2, 1, false}, {3, 1, false}},
      {{1, -1, false}, {0, 1, false}, {3, 1, true}, {2, -1, true}},
      {{2, -1, false}, {3, -1, true}, {0, 1, false}, {1, 1, true}},
      {{3, -1, false}, {2, 1, true}, {1, -1, true}, {0, 1, false}},
  };
  for (int64_t p = 0; p < 4; ++p) {
    for (int64_t r = 0; r < 4; ++r) {
      const Cell& cell = kArray[p][r];
      const std::string_view row = circulants.rows[static_cast<size_t>(cell.which)];
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          // Entry (i, column) of the circulant is row[column - i].
          const int64_t column = cell.which == 0 ? j : n - 1 - j;
          const int64_t step = cell.transposed ? i - column : column - i;
          const int8_t value = row[static_cast<size_t>((step + n) % n)] == '+' ? 1 : -1;
          (*matrix)[static_cast<size_t>((p * n + i) * order + r * n + j)] =
              static_cast<int8_t>(cell.sign * value);
        }
      }
    }
  }
}

}  // namespace

bool has_base_hadamard(int64_t order) {
  if (order < 4 || order > kLargestBaseOrder) return false;
  return is_paley_1(order) || is_paley_2(order) || find_circulants(order) != nullptr;
}

std::vector<int8_t> base_hadamard(int64_t order) {
  NIBBLE_CHECK(has_base_hadamard(order));
  std::vector<int8_t> matrix(static_cast<size_t>(order * order));
  if (is_paley_1(order)) {
    fill_paley_1(order, &matrix);
  } else if (is_paley_2(order)) {
    fill_paley_2(order, &matrix);
  } else {
    fill_goethals_seidel(*find_circulants(order), &matrix);
  }
  return matrix;
}

}  // namespace nibble
