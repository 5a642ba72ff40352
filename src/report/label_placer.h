// Where the labels of a chart's points go.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace nibble {

// Of charts' text, somewhat more than the mean of common fonts.
inline constexpr double kCharacterWidth = 7.1;

// In the units of the drawing; y grows downwards.
struct Box {
  double left, top, right, bottom;
};

struct Line {
  double x0, y0, x1, y1;
};

struct LabelledPoint {
  std::string label;
  double x, y;
};

struct PlacedLabel {
  Box box;
  bool flush_right = false;    // the text ends at box.right
  std::optional<Line> leader;  // from the point to a box too far from it to be read as its label
};

// Places labels of one line each within `frame`, so that they hide neither points nor one another and no line
// to one crosses another: beside their point where there is room, else farther away. Points with the fewest
// places to choose from come first. Where nothing is free, a label goes where it covers least. The result is
// in the order of `points`.
std::vector<PlacedLabel> place_labels(const std::vector<LabelledPoint>& points, const Box& frame);

}  // namespace nibble
