#include "report/label_placer.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>

namespace nibble {
namespace {

constexpr double kLine = 13;
constexpr double kMarker = 6;  // half the side of what a point takes
constexpr double kNear = 10;   // up to which distance a label needs no line
constexpr double kApart = 9;   // what keeps a label with a line from being read as another point's

// Of the box from its point, in the order of preference.
constexpr std::array<double, 9> kDistances = {9, 20, 34, 50, 68, 88, 110, 136, 166};
constexpr std::array<std::array<double, 2>, 12> kDirections = {{{1, 0},
                                                                {-1, 0},
                                                                {0, -1},
                                                                {0, 1},
                                                                {0.7, -0.7},
                                                                {0.7, 0.7},
                                                                {-0.7, -0.7},
                                                                {-0.7, 0.7},
                                                                {0.9, -0.4},
                                                                {0.9, 0.4},
                                                                {-0.9, -0.4},
                                                                {-0.9, 0.4}}};

double overlap(const Box& a, const Box& b) {
  return std::max(0.0, std::min(a.right, b.right) - std::max(a.left, b.left)) *
         std::max(0.0, std::min(a.bottom, b.bottom) - std::max(a.top, b.top));
}

bool within(const Box& box, const Box& frame) {
  return box.left >= frame.left && box.right <= frame.right && box.top >= frame.top &&
         box.bottom <= frame.bottom;
}

struct Line {
  double x0, y0, x1, y1;
};

// Whether any part of the line is inside the box: what is left of it between the sides, one axis after the
// other, is not empty (Liang and Barsky).
bool crosses(const Line& line, const Box& box) {
  double first = 0, last = 1;
  const auto clip = [&](double start, double step, double low, double high) {
    if (step == 0) return start > low && start < high;
    const double a = (low - start) / step, b = (high - start) / step;
    first = std::max(first, std::min(a, b));
    last = std::min(last, std::max(a, b));
    return first < last;
  };
  return clip(line.x0, line.x1 - line.x0, box.left, box.right) &&
         clip(line.y0, line.y1 - line.y0, box.top, box.bottom);
}

bool cross(const Line& a, const Line& b) {
  const auto side = [](const Line& line, double x, double y) {
    return (line.x1 - line.x0) * (y - line.y0) - (line.y1 - line.y0) * (x - line.x0);
  };
  return side(a, b.x0, b.y0) * side(a, b.x1, b.y1) < 0 && side(b, a.x0, a.y0) * side(b, a.x1, a.y1) < 0;
}

// What has been placed, and what may still be.
class Placement {
 public:
  Placement(const std::vector<LabelledPoint>& points, const Box& frame) : frame_(frame) {
    for (const LabelledPoint& point : points)
      taken_.push_back({point.x - kMarker, point.y - kMarker, point.x + kMarker, point.y + kMarker});
  }

  // Every place of a label within the frame, the preferred first.
  std::vector<PlacedLabel> places_of(const LabelledPoint& point) const {
    const double width = kCharacterWidth * static_cast<double>(point.label.size());
    std::vector<PlacedLabel> places;
    for (const double distance : kDistances) {
      for (const auto& [dx, dy] : kDirections) {
        const double x = point.x + distance * dx, y = point.y + distance * dy;
        const double left = dx > 0 ? x : dx < 0 ? x - width : x - width / 2;
        const double top = dy > 0.5 ? y - 2 : dy < -0.5 ? y - kLine + 2 : y - kLine / 2;
        const Box box = {left, top, left + width, top + kLine};
        if (!within(box, frame_)) continue;
        places.push_back({.box = box,
                          .flush_right = (dx < 0),
                          .leader = (distance > kNear),
                          .leader_x = std::clamp(point.x, box.left, box.right),
                          .leader_y = std::clamp(point.y, box.top, box.bottom)});
      }
    }
    if (places.empty()) {  // a label as wide as the frame, or a point at its edge
      const double left = std::max(frame_.left, std::min(point.x, frame_.right - width));
      const double top = std::clamp(point.y - kLine / 2, frame_.top, frame_.bottom - kLine);
      places.push_back({.box = {left, top, left + width, top + kLine}});
    }
    return places;
  }

  // Whether a label may go there: nothing below it, and its line neither crosses nor is crossed.
  bool is_free(const LabelledPoint& point, const PlacedLabel& place) const {
    if (covered(place) > 0) return false;
    const Line leader = leader_of(point, place);
    for (const Line& line : lines_) {
      if (crosses(line, place.box) || (place.leader && cross(line, leader))) return false;
    }
    if (!place.leader) return true;
    const Box around = {place.box.left - kApart, place.box.top, place.box.right + kApart, place.box.bottom};
    const auto in_the_way = [&](const Box& box) { return crosses(leader, box); };
    return std::none_of(labels_.begin(), labels_.end(), in_the_way) &&
           std::none_of(taken_.begin(), taken_.end(), [&](const Box& marker) {
             const bool own = marker.left == point.x - kMarker && marker.top == point.y - kMarker;
             return !own && (overlap(marker, around) > 0 || in_the_way(marker));
           });
  }

  // The area of points and labels below it.
  double covered(const PlacedLabel& place) const {
    double area = 0;
    for (const Box& box : taken_) area += overlap(box, place.box);
    for (const Box& box : labels_) area += overlap(box, place.box);
    return area;
  }

  void take(const LabelledPoint& point, const PlacedLabel& place) {
    labels_.push_back(place.box);
    if (place.leader) lines_.push_back(leader_of(point, place));
  }

 private:
  static Line leader_of(const LabelledPoint& point, const PlacedLabel& place) {
    return {point.x, point.y, place.leader_x, place.leader_y};
  }

  Box frame_;
  std::vector<Box> taken_, labels_;
  std::vector<Line> lines_;
};

}  // namespace

std::vector<PlacedLabel> place_labels(const std::vector<LabelledPoint>& points, const Box& frame) {
  Placement placement(points, frame);
  std::vector<std::vector<PlacedLabel>> places;  // of every point
  for (const LabelledPoint& point : points) places.push_back(placement.places_of(point));
  std::vector<PlacedLabel> result(points.size());
  std::vector<bool> done(points.size(), false);
  // First those that have a place beside their point, then the others.
  for (const bool beside : {true, false}) {
    while (true) {
      size_t next = points.size(), fewest = std::numeric_limits<size_t>::max();
      std::vector<PlacedLabel> free_places;
      for (size_t i = 0; i < points.size(); ++i) {
        if (done[i]) continue;
        std::vector<PlacedLabel> still_free;
        std::copy_if(places[i].begin(), places[i].end(), std::back_inserter(still_free),
                     [&](const PlacedLabel& place) {
                       return !(beside && place.leader) && placement.is_free(points[i], place);
                     });
        if (still_free.size() >= fewest || (beside && still_free.empty())) continue;
        next = i;
        fewest = still_free.size();
        free_places = std::move(still_free);
      }
      if (next == points.size()) break;
      done[next] = true;
      result[next] = !free_places.empty()
                         ? free_places.front()
                         : *std::min_element(places[next].begin(), places[next].end(),
                                             [&](const PlacedLabel& a, const PlacedLabel& b) {
                                               return placement.covered(a) < placement.covered(b);
                                             });
      placement.take(points[next], result[next]);
    }
  }
  return result;
}

}  // namespace nibble
