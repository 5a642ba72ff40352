// Charts as inline SVG. Colours and markers come from the page's style sheet (html.cc), by class: s0 .. s3
// for series, h0 .. h8 for the steps of a heat map.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// Text for HTML and SVG, elements and attributes: markup escaped, control characters and what is no UTF-8
// replaced.
std::string escape_html(std::string_view text);

struct ScatterPoint {
  std::string label;
  double x = 0, y = 0;
  double y_error = 0;  // half the length of its bar; 0 or NaN: none
  int series = 0;      // 0 .. 3
};

// Points whose coordinates are not finite, or not positive on a logarithmic axis, are left out; `left_out`
// counts them.
struct ScatterChart {
  std::string id;  // unique in the page
  std::string title, x_title, y_title;
  bool log_x = false, log_y = false;
  bool more_x_is_better = false;  // else less; less y is always better
  std::string legend_title;
  std::vector<std::string> series;  // names, for the legend; those without points are not shown
  std::vector<ScatterPoint> points;
};
struct Drawing {
  std::string svg;  // empty when there is nothing to draw
  int left_out = 0;
};
Drawing scatter_svg(const ScatterChart& chart);

// Rows of cells, coloured by the logarithm of their values on a scale from `least` to `most` (0, 0: of the
// values themselves). Values that are not positive are blank.
struct HeatMap {
  std::string id, title;
  std::string column_title;  // "layer"
  std::vector<std::string> rows, columns;
  std::vector<std::vector<double>> values;  // [rows][columns]
  double least = 0, most = 0;
};
Drawing heat_map_svg(const HeatMap& map);

// Tick values of an axis from `least` to `most`; at least two where the range is not empty.
std::vector<double> axis_ticks(double least, double most, bool logarithmic);

}  // namespace nibble
