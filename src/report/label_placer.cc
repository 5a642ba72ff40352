#include "report/label_placer.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

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

Box marker_of(const LabelledPoint& point) {
  return {point.x - kMarker, point.y - kMarker, point.x + kMarker, point.y + kMarker};
}

// Every place of a point's label within the frame, the preferred first; at least one.
std::vector<PlacedLabel> places_of(const LabelledPoint& point, const Box& frame) {
  const double width = kCharacterWidth * static_cast<double>(point.label.size());
  std::vector<PlacedLabel> places;
  for (const double distance : kDistances) {
    for (const auto& [dx, dy] : kDirections) {
      const double x = point.x + distance * dx, y = point.y + distance * dy;
      const double left = dx > 0 ? x : dx < 0 ? x - width : x - width / 2;
      const double top = dy > 0.5 ? y - 2 : dy < -0.5 ? y - kLine + 2 : y - kLine / 2;
      const Box box = {left, top, left + width, top + kLine};
      if (!within(box, frame)) continue;
      PlacedLabel place = {.box = box, .flush_right = (dx < 0)};
      if (distance > kNear) {
        place.leader = {point.x, point.y, std::clamp(point.x, box.left, box.right),
                        std::clamp(point.y, box.top, box.bottom)};
      }
      places.push_back(place);
    }
  }
  if (places.empty()) {  // a label as wide as the frame, or a point at its edge
    const double left = std::max(frame.left, std::min(point.x, frame.right - width));
    const double top = std::clamp(point.y - kLine / 2, frame.top, frame.bottom - kLine);
    places.push_back({.box = {left, top, left + width, top + kLine}});
  }
  return places;
}

// Whether the place hides the point `other`, or can be taken for its label.
bool disturbs(const PlacedLabel& place, const LabelledPoint& other) {
  const Box marker = marker_of(other);
  if (overlap(marker, place.box) > 0) return true;
  if (!place.leader || (place.leader->x0 == other.x && place.leader->y0 == other.y)) return false;
  const Box around = {place.box.left - kApart, place.box.top, place.box.right + kApart, place.box.bottom};
  return overlap(marker, around) > 0 || crosses(*place.leader, marker);
}

bool collide(const PlacedLabel& a, const PlacedLabel& b) {
  return overlap(a.box, b.box) > 0 || (a.leader && crosses(*a.leader, b.box)) ||
         (b.leader && crosses(*b.leader, a.box)) || (a.leader && b.leader && cross(*a.leader, *b.leader));
}

// How soon a point's label is to be placed, the least first: those that have a place beside their point
// before the others, and those with fewer of them before those with more.
std::pair<bool, size_t> urgency(const std::vector<PlacedLabel>& places) {
  const auto beside = static_cast<size_t>(
      std::count_if(places.begin(), places.end(), [](const PlacedLabel& place) { return !place.leader; }));
  return beside > 0 ? std::pair(false, beside) : std::pair(true, places.size());
}

}  // namespace

std::vector<PlacedLabel> place_labels(const std::vector<LabelledPoint>& points, const Box& frame) {
  std::vector<std::vector<PlacedLabel>> free;  // places of each point that nothing is in the way of yet
  for (const LabelledPoint& point : points) {
    free.push_back(places_of(point, frame));
    std::erase_if(free.back(), [&](const PlacedLabel& place) {
      return std::any_of(points.begin(), points.end(),
                         [&](const LabelledPoint& other) { return disturbs(place, other); });
    });
  }
  std::vector<PlacedLabel> result(points.size());
  std::vector<size_t> placed, waiting(points.size());
  std::iota(waiting.begin(), waiting.end(), size_t{0});
  const auto covered = [&](const PlacedLabel& place) {
    double area = 0;
    for (const LabelledPoint& point : points) area += overlap(marker_of(point), place.box);
    for (const size_t i : placed) area += overlap(result[i].box, place.box);
    return area;
  };
  while (!waiting.empty()) {
    const auto most_urgent = std::min_element(waiting.begin(), waiting.end(), [&](size_t a, size_t b) {
      return urgency(free[a]) < urgency(free[b]);
    });
    const size_t next = *most_urgent;
    waiting.erase(most_urgent);
    if (!free[next].empty()) {
      result[next] = free[next].front();
    } else {
      const std::vector<PlacedLabel> places = places_of(points[next], frame);
      result[next] = *std::min_element(
          places.begin(), places.end(),
          [&](const PlacedLabel& a, const PlacedLabel& b) { return covered(a) < covered(b); });
    }
    placed.push_back(next);
    for (const size_t i : waiting)
      std::erase_if(free[i], [&](const PlacedLabel& place) { return collide(place, result[next]); });
  }
  return result;
}

}  // namespace nibble
