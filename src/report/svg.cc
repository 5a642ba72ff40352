#include "report/svg.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/format.h"
#include "report/label_placer.h"
#include "report/numbers.h"

namespace nibble {
namespace {

constexpr double kWidth = 520;
constexpr double kLeft = 62, kRight = 16, kTop = 14, kBottom = 50;

struct Axis {
  double least = 0, most = 1;
  bool logarithmic = false;
  double first = 0, last = 1;  // in the drawing

  double scale(double value) const { return logarithmic ? std::log10(value) : value; }
  double place(double value) const {
    return first + (scale(value) - scale(least)) / (scale(most) - scale(least)) * (last - first);
  }
};

// An axis with a margin around the values, so that no point sits on the frame.
Axis make_axis(const std::vector<double>& values, bool logarithmic, double first, double last) {
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  Axis axis{.least = *least, .most = *most, .logarithmic = logarithmic, .first = first, .last = last};
  if (logarithmic) {
    const double margin = std::max(0.08 * std::log10(*most / *least), 0.05);
    axis.least = *least / std::pow(10, margin);
    axis.most = *most * std::pow(10, margin);
  } else {
    const double margin = std::max(0.08 * (*most - *least), 0.02 * std::fabs(*most) + 1e-9);
    axis.least = *least - margin;
    axis.most = *most + margin;
    if (*least >= 0) axis.least = std::max(0.0, axis.least);
  }
  return axis;
}

std::string tick_text(double value) {
  if (value == 0) return "0";
  const double magnitude = std::fabs(value);
  if (magnitude >= 1e6 || magnitude < 1e-4) return format_text("{:.0e}", value);
  std::string text = format_text("{:.6f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.ends_with('.')) text.pop_back();
  return text;
}

std::string marker(int series, double x, double y) {
  switch (series) {
    case 0:
      return format_text("<circle class=\"m s0\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\"/>", x, y);
    case 1:
      return format_text("<rect class=\"m s1\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"9\" height=\"9\"/>", x - 4.5,
                         y - 4.5);
    case 2:
      return format_text("<path class=\"m s2\" d=\"M{:.1f} {:.1f}l5.5 9.5h-11z\"/>", x, y - 5.5);
    default:
      return format_text("<path class=\"m s3\" d=\"M{:.1f} {:.1f}l6 6l-6 6l-6 -6z\"/>", x, y - 6);
  }
}

bool drawable(double value, bool logarithmic) { return std::isfinite(value) && (!logarithmic || value > 0); }

// The points that no other beats on both axes, in the order of x.
std::vector<ScatterPoint> frontier(std::vector<ScatterPoint> points, bool more_x_is_better) {
  std::sort(points.begin(), points.end(), [&](const ScatterPoint& a, const ScatterPoint& b) {
    if (a.x != b.x) return more_x_is_better ? a.x > b.x : a.x < b.x;
    return a.y < b.y;
  });
  std::vector<ScatterPoint> best;
  for (const ScatterPoint& point : points) {
    if (best.empty() || point.y < best.back().y) best.push_back(point);
  }
  return best;
}

std::string label_text(const std::string& label, const PlacedLabel& place) {
  std::string line;
  if (place.leader) {
    line = format_text("<path class=\"leader\" d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\"/>", place.leader->x0,
                       place.leader->y0, place.leader->x1, place.leader->y1);
  }
  return line + format_text("<text class=\"label\" x=\"{:.1f}\" y=\"{:.1f}\"{}>{}</text>",
                            place.flush_right ? place.box.right : place.box.left, place.box.bottom - 3,
                            place.flush_right ? " text-anchor=\"end\"" : "", escape_html(label));
}

std::string open_svg(const std::string& id, const std::string& title, const std::string& description,
                     double width, double height) {
  return format_text(
      "<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" aria-labelledby=\"{}-title {}-description\">"
      "<title id=\"{}-title\">{}</title><desc id=\"{}-description\">{}</desc>",
      width, height, id, id, id, escape_html(title), id, escape_html(description));
}

std::string draw_axes(const ScatterChart& chart, const Axis& x_axis, const Axis& y_axis, double height) {
  std::string svg;
  for (const double tick : axis_ticks(x_axis.least, x_axis.most, x_axis.logarithmic)) {
    const double x = x_axis.place(tick);
    svg += format_text("<path class=\"grid\" d=\"M{:.1f} {:.1f}V{:.1f}\"/>", x, kTop, height - kBottom);
    svg += format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", x,
                       height - kBottom + 16, tick_text(tick));
  }
  for (const double tick : axis_ticks(y_axis.least, y_axis.most, y_axis.logarithmic)) {
    const double y = y_axis.place(tick);
    svg += format_text("<path class=\"grid\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>", kLeft, y, kWidth - kRight);
    svg += format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
                       kLeft - 6, y + 4, tick_text(tick));
  }
  svg += format_text("<path class=\"frame\" d=\"M{:.1f} {:.1f}V{:.1f}H{:.1f}\"/>", kLeft, kTop,
                     height - kBottom, kWidth - kRight);
  svg += format_text("<text class=\"axis\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                     (kLeft + kWidth - kRight) / 2, height - 12, escape_html(chart.x_title));
  svg += format_text(
      "<text class=\"axis\" transform=\"translate(14 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
      (kTop + height - kBottom) / 2, escape_html(chart.y_title));
  return svg;
}

std::string legend(const ScatterChart& chart, const std::vector<ScatterPoint>& points, double height) {
  std::string svg = format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", kLeft,
                                height + 12, escape_html(chart.legend_title));
  double x = kLeft + 8 + kCharacterWidth * static_cast<double>(chart.legend_title.size());
  for (size_t series = 0; series < chart.series.size(); ++series) {
    if (std::none_of(points.begin(), points.end(),
                     [&](const ScatterPoint& point) { return point.series == static_cast<int>(series); })) {
      continue;
    }
    svg += marker(static_cast<int>(series), x + 6, height + 8);
    svg += format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", x + 16, height + 12,
                       escape_html(chart.series[series]));
    x += 28 + kCharacterWidth * static_cast<double>(chart.series[series].size());
  }
  return svg;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string result;
  const auto replacement = [&] { result += "\xef\xbf\xbd"; };
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x80) {
      ++i;
      switch (byte) {
        case '&':
          result += "&amp;";
          break;
        case '<':
          result += "&lt;";
          break;
        case '>':
          result += "&gt;";
          break;
        case '"':
          result += "&quot;";
          break;
        case '\'':
          result += "&#39;";
          break;
        default:
          if (byte >= 0x20 && byte != 0x7f) {
            result += static_cast<char>(byte);
          } else if (byte == '\n' || byte == '\t') {
            result += ' ';
          } else {
            replacement();
          }
      }
      continue;
    }
    const size_t length = byte >= 0xf0 && byte < 0xf5 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc2 ? 2 : 0;
    uint32_t code = length == 4 ? byte & 7u : length == 3 ? byte & 15u : byte & 31u;
    bool valid = length > 0 && byte < 0xf5 && i + length <= text.size();
    for (size_t k = 1; valid && k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      valid = (next & 0xc0) == 0x80;
      code = code << 6 | (next & 0x3fu);
    }
    constexpr std::array<uint32_t, 5> kLeastCode = {0, 0, 0x80, 0x800, 0x10000};
    valid = valid && code >= kLeastCode[length] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff) &&
            code >= 0xa0;
    if (valid) {
      result += text.substr(i, length);
      i += length;
    } else {
      replacement();
      ++i;
    }
  }
  return result;
}

std::vector<double> axis_ticks(double least, double most, bool logarithmic) {
  std::vector<double> ticks;
  if (!std::isfinite(least) || !std::isfinite(most) || !(least < most) || (logarithmic && least <= 0))
    return ticks;
  if (!logarithmic) {
    const double rough = (most - least) / 5;
    const double power = std::pow(10, std::floor(std::log10(rough)));
    double step = 10 * power;
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (rough <= factor * power) {
        step = factor * power;
        break;
      }
    }
    for (double i = std::ceil(least / step); i * step <= most; ++i) ticks.push_back(i * step);
    return ticks;
  }
  const double decades = std::log10(most / least);
  const int first = static_cast<int>(std::floor(std::log10(least))),
            last = static_cast<int>(std::ceil(std::log10(most)));
  const int every = std::max(1, static_cast<int>(std::ceil(decades / 7)));
  for (int exponent = first; exponent <= last; ++exponent) {
    for (const double factor : {1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0}) {
      const bool coarse = factor == 1 || factor == 2 || factor == 5;
      if (!coarse && decades > 1.1) continue;
      if (factor != 1 && decades > 2.5) continue;
      if (factor == 1 && decades > 2.5 && (exponent - first) % every != 0) continue;
      const double tick = factor * std::pow(10, exponent);
      if (tick >= least && tick <= most) ticks.push_back(tick);
    }
  }
  if (ticks.size() < 2) return axis_ticks(least, most, false);  // less than an octave
  return ticks;
}

Drawing scatter_svg(const ScatterChart& chart) {
  Drawing drawing;
  std::vector<ScatterPoint> points;
  std::vector<double> xs, ys;
  for (const ScatterPoint& point : chart.points) {
    if (!drawable(point.x, chart.log_x) || !drawable(point.y, chart.log_y)) {
      ++drawing.left_out;
      continue;
    }
    points.push_back(point);
    xs.push_back(point.x);
    ys.push_back(point.y);
  }
  if (points.empty()) return drawing;
  const double height = points.size() > 10 ? 470 : 380;  // many labels need room
  const Axis x_axis = make_axis(xs, chart.log_x, kLeft, kWidth - kRight);
  const Axis y_axis = make_axis(ys, chart.log_y, height - kBottom, kTop);

  std::string description;
  for (const ScatterPoint& point : points) {
    description += format_text("{}{}: {} at {}", description.empty() ? "" : "; ", point.label,
                               short_number(point.y), short_number(point.x));
  }
  std::string svg = open_svg(chart.id, chart.title, description, kWidth, height + 22);
  svg += draw_axes(chart, x_axis, y_axis, height);

  const std::vector<ScatterPoint> best = frontier(points, chart.more_x_is_better);
  if (best.size() > 1) {
    std::string path;
    for (const ScatterPoint& point : best)
      path += format_text("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x_axis.place(point.x),
                          y_axis.place(point.y));
    svg += format_text("<path class=\"frontier\" d=\"{}\"/>", path);
  }
  std::vector<LabelledPoint> labelled;
  for (const ScatterPoint& point : points)
    labelled.push_back({point.label, x_axis.place(point.x), y_axis.place(point.y)});
  const std::vector<PlacedLabel> places =
      place_labels(labelled, {kLeft, kTop - 6, kWidth - 2, height - kBottom});
  std::string labels;  // below the markers, which lines to them may touch
  for (size_t i = 0; i < labelled.size(); ++i) labels += label_text(labelled[i].label, places[i]);
  svg += labels;
  for (const ScatterPoint& point : points) {
    const double x = x_axis.place(point.x), y = y_axis.place(point.y);
    if (std::isfinite(point.y_error) && point.y_error > 0) {
      const double low = std::max(point.y - point.y_error, y_axis.least);
      const double high = std::min(point.y + point.y_error, y_axis.most);
      svg += format_text("<path class=\"bar\" d=\"M{:.1f} {:.1f}V{:.1f}\"/>", x, y_axis.place(low),
                         y_axis.place(high));
    }
    svg += format_text("<g><title>{}: {} at {}</title>{}</g>", escape_html(point.label),
                       short_number(point.y), short_number(point.x), marker(point.series, x, y));
  }
  drawing.svg = svg + legend(chart, points, height) + "</svg>";
  return drawing;
}

Drawing heat_map_svg(const HeatMap& map) {
  constexpr int kSteps = 9;
  Drawing drawing;
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (const auto& row : map.values) {
    for (const double value : row) {
      if (!drawable(value, true)) {
        ++drawing.left_out;
        continue;
      }
      least = std::min(least, value);
      most = std::max(most, value);
    }
  }
  if (!(most > 0)) return drawing;
  if (map.least > 0 && map.most > map.least) {
    least = map.least;
    most = map.most;
  }
  size_t longest = 0;
  for (const std::string& row : map.rows) longest = std::max(longest, row.size());
  const double left = std::min(200.0, 14 + kCharacterWidth * static_cast<double>(longest));
  const double cell_height = 18, top = 22;
  const double cell_width =
      (kWidth - left - 4) / static_cast<double>(std::max<size_t>(1, map.columns.size()));
  const double bottom = top + cell_height * static_cast<double>(map.rows.size());
  std::string svg = open_svg(
      map.id, map.title, format_text("values from {} to {}", short_number(least, 2), short_number(most, 2)),
      kWidth, bottom + 40);
  svg += format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"14\" text-anchor=\"end\">{}</text>", left - 6,
                     escape_html(map.column_title));
  const size_t every = std::max<size_t>(1, static_cast<size_t>(std::ceil(26 / cell_width)));
  for (size_t column = 0; column < map.columns.size(); column += every) {
    svg += format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"14\" text-anchor=\"middle\">{}</text>",
                       left + cell_width * (static_cast<double>(column) + 0.5),
                       escape_html(map.columns[column]));
  }
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double y = top + cell_height * static_cast<double>(row);
    svg += format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
                       left - 6, y + 13, escape_html(map.rows[row]));
    for (size_t column = 0; column < map.columns.size(); ++column) {
      const double value = map.values[row][column];
      if (!drawable(value, true)) continue;
      const double share = most > least ? std::log(value / least) / std::log(most / least) : 0.5;
      const int step = std::clamp(static_cast<int>(share * kSteps), 0, kSteps - 1);
      svg += format_text(
          "<rect class=\"h{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"><title>{}, {} "
          "{}: {}</title></rect>",
          step, left + cell_width * static_cast<double>(column), y, std::max(1.0, cell_width - 1),
          cell_height - 1, escape_html(map.rows[row]), escape_html(map.column_title),
          escape_html(map.columns[column]), short_number(value, 2));
    }
  }
  for (int step = 0; step < kSteps; ++step) {
    svg += format_text("<rect class=\"h{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"18\" height=\"10\"/>", step,
                       left + 18.0 * step, bottom + 10);
  }
  svg += format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", left, bottom + 34,
                     short_number(least, 2));
  svg += format_text("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
                     left + 18.0 * kSteps, bottom + 34, short_number(most, 2));
  drawing.svg = svg + "</svg>";
  return drawing;
}

}  // namespace nibble
