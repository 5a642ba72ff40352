// What readers of a comparison see: numbers, charts, the page. Everything from results made up here.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "report/comparison.h"
#include "report/label_placer.h"
#include "report/numbers.h"
#include "report/svg.h"

namespace nibble {
namespace {

size_t count(const std::string& text, const std::string& what) {
  size_t found = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + what.size())) ++found;
  return found;
}
bool has(const std::string& text, const std::string& what) { return text.find(what) != std::string::npos; }

// Every start tag has its end tag, in order; returns what is wrong.
std::string unbalanced(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at + 1)) {
    const size_t end = html.find('>', at);
    if (end == std::string::npos) return "a tag without end";
    const std::string tag = html.substr(at + 1, end - at - 1);
    if (tag.starts_with("!") || tag.ends_with("/")) continue;
    const bool closes = tag.starts_with("/");
    const std::string name = tag.substr(closes ? 1 : 0, tag.find_first_of(" >", 1) - (closes ? 1 : 0));
    if (name == "meta") continue;
    if (!closes) {
      open.push_back(name);
    } else if (open.empty() || open.back() != tag.substr(1)) {
      return tag + " closes " + (open.empty() ? "nothing" : open.back());
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : open.back() + " stays open";
}

ComparisonRow recipe_row(const std::string& name, double bits, double kl, int64_t activation_bits = 16) {
  ComparisonRow row = {.name = name, .description = "made up", .kind = RowKind::kRecipe};
  row.bits_per_weight = bits;
  row.kl_divergence = {kl, kl / 20};
  row.perplexity = {40 * std::exp(kl), 0.5};
  row.top1_agreement = {std::exp(-kl), 0.01};
  row.file_bytes = bits * 1e7;
  row.activation_bits = activation_bits;
  row.baseline = baseline_of_recipe(name);
  row.arithmetic = {{"int4xint4->int32", 0.75}, {"16-bit weights", 0.25}};
  row.mac_share = {{4, 0.75}, {16, 0.25}};
  row.quantize_seconds = 12;
  row.prompt_speed = 1000 / bits;
  row.decode_speed = 400 / bits;
  row.prompt_samples = {990 / bits, 1000 / bits, 1010 / bits};
  row.decode_samples = {400 / bits};
  row.peak_memory_bytes = 1e8;
  for (int layer = 0; layer < 3; ++layer) {
    for (const char* role : {"self_attn.q_proj", "mlp.down_proj"})
      row.layer_errors.push_back({"model.layers." + std::to_string(layer) + "." + role, kl / (layer + 2)});
  }
  return row;
}

Comparison some_comparison() {
  Comparison comparison = {.model = "Small-1B",
                           .text = "valid.txt",
                           .context = 512,
                           .windows = 40,
                           .tokens = 40 * 511,
                           .special = false,
                           .calibration = "32 sequences of 512 tokens from ids.safetensors",
                           .embedding_bits = 16,
                           .prompt_tokens = 512,
                           .generated_tokens = 128,
                           .repetitions = 3,
                           .machine = "A processor, path avx2, 2 threads",
                           .program = "nibble 0.0",
                           .date = "2026-01-31",
                           .command = "nibble compare 'a b'"};
  ComparisonRow source = {.name = "Small-1B", .kind = RowKind::kSource};
  source.perplexity = {40, 0.5};
  source.bits_per_weight = 16;
  source.file_bytes = 16e7;
  source.decode_speed = 20;
  comparison.rows = {source,
                     recipe_row("rtn-w4a16", 4.2, 0.4),
                     recipe_row("rtn-w3a16", 3.1, 1.2),
                     recipe_row("gptq-w3a16", 3.1, 0.6),
                     recipe_row("squeezellm-3b", 3.3, 0.3),
                     recipe_row("rtn-w4a4", 4.0, 3.5, 4),
                     recipe_row("quik-4b", 6.2, 0.16, 4)};
  return comparison;
}

const ComparisonRow& row_named(const Comparison& comparison, const std::string& name) {
  return *std::find_if(comparison.rows.begin(), comparison.rows.end(),
                       [&](const ComparisonRow& row) { return row.name == name; });
}

TEST(Numbers, AreShortAndReadable) {
  EXPECT_EQ(short_number(50.8123), "50.81");
  EXPECT_EQ(short_number(1454.2), "1454");
  EXPECT_EQ(short_number(123456), "123456");
  EXPECT_EQ(short_number(0.15738), "0.1574");
  EXPECT_EQ(short_number(0.0018973), "0.001897");
  EXPECT_EQ(short_number(0.1, 2), "0.10");
  EXPECT_EQ(short_number(3.14e-5), "3.140e-05");
  EXPECT_EQ(short_number(2.5e9, 2), "2.5e+09");
  EXPECT_EQ(short_number(0), "0.000");
  EXPECT_EQ(short_number(-12.345), "-12.35");
  EXPECT_EQ(short_number(std::nan("")), "-");
  EXPECT_EQ(short_number(INFINITY), "-");
  EXPECT_EQ(percent_text(0.754), "75.4 %");
  EXPECT_EQ(percent_text(std::nan("")), "-");
  EXPECT_EQ(percent_with_error({0.5, 0.015}), "50.0 +- 1.5 %");
  EXPECT_EQ(shares_text({{"a", 0.25}, {"b", 0.75}}), "b 75.0 %, a 25.0 %");
}

TEST(GapClosed, IsAgainstTheBaselineOfNearestBitsAndTheSameActivations) {
  const Comparison comparison = some_comparison();
  const auto rtn = gap_closed(comparison, row_named(comparison, "squeezellm-3b"), Baseline::kRtn);
  ASSERT_TRUE(rtn);
  EXPECT_EQ(rtn->baseline->name, "rtn-w3a16");
  EXPECT_DOUBLE_EQ(rtn->share, (1.2 - 0.3) / 1.2);
  const auto gptq = gap_closed(comparison, row_named(comparison, "squeezellm-3b"), Baseline::kGptq);
  ASSERT_TRUE(gptq);
  EXPECT_DOUBLE_EQ(gptq->share, 0.5);
  EXPECT_EQ(gap_closed(comparison, row_named(comparison, "quik-4b"), Baseline::kRtn)->baseline->name,
            "rtn-w4a4");
  EXPECT_FALSE(gap_closed(comparison, row_named(comparison, "quik-4b"), Baseline::kGptq));
  EXPECT_EQ(gap_closed(comparison, row_named(comparison, "gptq-w3a16"), Baseline::kRtn)->baseline->name,
            "rtn-w3a16");
  EXPECT_FALSE(gap_closed(comparison, row_named(comparison, "gptq-w3a16"), Baseline::kGptq));
  EXPECT_FALSE(gap_closed(comparison, row_named(comparison, "rtn-w3a16"), Baseline::kRtn));
  EXPECT_FALSE(gap_closed(comparison, row_named(comparison, "rtn-w3a16"), Baseline::kGptq));
  EXPECT_FALSE(gap_closed(comparison, comparison.rows[0], Baseline::kRtn));
}

TEST(GapClosed, FailedAndUnmeasuredBaselinesDoNotCount) {
  Comparison comparison = some_comparison();
  comparison.rows[2].error = "broken";
  comparison.rows[1].kl_divergence = {};
  EXPECT_FALSE(gap_closed(comparison, row_named(comparison, "squeezellm-3b"), Baseline::kRtn));
}

TEST(SpeedWarning, TellsOfRoundsThatDiffer) {
  Comparison comparison = some_comparison();
  EXPECT_EQ(speed_warning(comparison), "");
  EXPECT_EQ(speed_warning({}), "");
  comparison.rows[3].decode_samples = {10, 31};
  EXPECT_TRUE(has(speed_warning(comparison), "up to 3.1 times (gptq-w3a16)")) << speed_warning(comparison);
  EXPECT_TRUE(has(comparison_text(comparison), "speeds are not reliable"));
  EXPECT_TRUE(has(comparison_html(comparison), "speeds are not reliable"));
  comparison.rows[3].error = "broken";
  EXPECT_EQ(speed_warning(comparison), "");
}

TEST(SortRows, SourceFirstFailedLast) {
  Comparison comparison = some_comparison();
  comparison.rows[1].error = "broken";
  comparison.rows[3].kl_divergence = {};
  sort_rows(&comparison, RowOrder::kBits);
  std::vector<std::string> names;
  for (const ComparisonRow& row : comparison.rows) names.push_back(row.name);
  EXPECT_EQ(names, (std::vector<std::string>{"Small-1B", "quik-4b", "rtn-w4a4", "squeezellm-3b", "rtn-w3a16",
                                             "gptq-w3a16", "rtn-w4a16"}));
  sort_rows(&comparison, RowOrder::kDivergence);
  EXPECT_EQ(comparison.rows[1].name, "quik-4b");
  EXPECT_EQ(comparison.rows[5].name, "gptq-w3a16");  // its KL is not known
  EXPECT_EQ(comparison.rows[6].name, "rtn-w4a16");
}

TEST(Escape, MarkupControlCharactersAndBrokenText) {
  EXPECT_EQ(escape_html("<a href=\"x\">'&'</a>"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;");
  EXPECT_EQ(escape_html("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"),
            "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
  const std::string bad = "\xef\xbf\xbd";
  EXPECT_EQ(escape_html("a\x1b[31m"), "a" + bad + "[31m");
  EXPECT_EQ(escape_html("a\nb"), "a b");
  EXPECT_EQ(escape_html("\xff"), bad);
  EXPECT_EQ(escape_html("\xc3"), bad);
  EXPECT_EQ(escape_html("\xc0\xaf"), bad + bad);            // overlong '/'
  EXPECT_EQ(escape_html("\xed\xa0\x80"), bad + bad + bad);  // a surrogate
  EXPECT_EQ(escape_html("\xf4\x90\x80\x80"), bad + bad + bad + bad);
  EXPECT_EQ(escape_html("\xc2\x9b"), bad + bad);  // a C1 control
}

TEST(AxisTicks, CoverTheRange) {
  EXPECT_EQ(axis_ticks(0, 10, false), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  const std::vector<double> decades = axis_ticks(0.001, 10, true);
  ASSERT_EQ(decades.size(), 5u);
  EXPECT_NEAR(decades[0], 0.001, 1e-12);
  for (const auto& [least, most] : {std::pair{0.9, 1.1}, std::pair{1e-9, 1e9}, std::pair{3.0, 40.0}}) {
    const std::vector<double> ticks = axis_ticks(least, most, true);
    EXPECT_GE(ticks.size(), 2u) << least;
    EXPECT_LE(ticks.size(), 12u) << least;
    for (const double tick : ticks) EXPECT_TRUE(tick >= least && tick <= most) << tick;
  }
  EXPECT_TRUE(axis_ticks(1, 1, false).empty());
  EXPECT_TRUE(axis_ticks(-1, 1, true).empty());
  EXPECT_TRUE(axis_ticks(std::nan(""), 1, false).empty());
}

TEST(Scatter, LeavesOutWhatHasNoPlace) {
  ScatterChart chart = {
      .id = "c", .title = "T", .x_title = "x", .y_title = "y", .log_y = true, .series = {"a", "b"}};
  EXPECT_EQ(scatter_svg(chart).svg, "");
  chart.points = {{"one", 1, std::nan(""), 0, 0},
                  {"two", INFINITY, 1, 0, 0},
                  {"three", 1, 0, 0, 0},
                  {"four", 1, -1, 0, 0}};
  EXPECT_EQ(scatter_svg(chart).svg, "");
  EXPECT_EQ(scatter_svg(chart).left_out, 4);
  chart.points.push_back({"<five>", 2, 3, std::nan(""), 1});
  const Drawing drawing = scatter_svg(chart);
  EXPECT_EQ(drawing.left_out, 4);
  EXPECT_TRUE(has(drawing.svg, "&lt;five&gt;"));
  EXPECT_FALSE(has(drawing.svg, "<five>"));
  EXPECT_FALSE(has(drawing.svg, "nan"));
  EXPECT_FALSE(has(drawing.svg, "inf"));
  EXPECT_EQ(unbalanced(drawing.svg), "");
  EXPECT_EQ(count(drawing.svg, "class=\"m s1\""), 2u);  // the point, and the legend's
  EXPECT_EQ(count(drawing.svg, "class=\"m s0\""), 0u);
}

TEST(Scatter, TheFrontierJoinsWhatNothingBeats) {
  ScatterChart chart = {.id = "c", .title = "T"};
  chart.points = {{"a", 4, 1, 0, 0}, {"b", 3, 2, 0, 0}, {"beaten", 5, 2, 0, 0}, {"c", 2, 4, 0, 0}};
  const std::string less = scatter_svg(chart).svg;
  const size_t start = less.find("frontier\" d=\"");
  ASSERT_NE(start, std::string::npos);
  const std::string path = less.substr(start + 13, less.find('"', start + 13) - start - 13);
  EXPECT_EQ(count(path, "L"), 2u) << path;  // c, b, a
  chart.more_x_is_better = true;            // only "beaten" (most x) and "a" (least y)
  const std::string more = scatter_svg(chart).svg;
  const size_t other = more.find("frontier\" d=\"");
  EXPECT_EQ(count(more.substr(other + 13, more.find('"', other + 13) - other - 13), "L"), 1u);
}

TEST(Scatter, LabelsOfNeighboursDoNotCover) {
  ScatterChart chart = {.id = "c", .title = "T"};
  for (int i = 0; i < 6; ++i)
    chart.points.push_back({"a-longer-name-" + std::to_string(i), 4 + 0.01 * i, 1, 0, 0});
  chart.points.push_back({"far", 8, 2, 0, 0});
  const std::string svg = scatter_svg(chart).svg;
  std::vector<std::string> places;
  for (size_t at = svg.find("class=\"label\""); at != std::string::npos;
       at = svg.find("class=\"label\"", at + 1))
    places.push_back(svg.substr(at, svg.find('>', at) - at));
  ASSERT_EQ(places.size(), 7u);
  std::sort(places.begin(), places.end());
  EXPECT_EQ(std::unique(places.begin(), places.end()), places.end());
}

bool overlap(const Box& a, const Box& b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

constexpr Box kFrame = {60, 10, 510, 420};

void expect_apart(const std::vector<LabelledPoint>& points) {
  const std::vector<PlacedLabel> places = place_labels(points, kFrame);
  ASSERT_EQ(places.size(), points.size());
  for (size_t i = 0; i < points.size(); ++i) {
    const Box& box = places[i].box;
    EXPECT_TRUE(box.left >= kFrame.left && box.right <= kFrame.right && box.top >= kFrame.top &&
                box.bottom <= kFrame.bottom)
        << points[i].label;
    for (size_t j = 0; j < points.size(); ++j) {
      const auto [label, x, y] = points[j];
      EXPECT_FALSE(overlap(box, {x - 4, y - 4, x + 4, y + 4})) << points[i].label << " on " << label;
      EXPECT_TRUE(i == j || !overlap(box, places[j].box)) << points[i].label << " on " << label;
    }
  }
}

TEST(Labels, OfNeighboursDoNotCover) {
  std::vector<LabelledPoint> points;
  for (int i = 0; i < 6; ++i) points.push_back({"a-longer-name-" + std::to_string(i), 200 + 1.0 * i, 200});
  points.push_back({"far", 400, 100});
  expect_apart(points);
  const std::vector<PlacedLabel> places = place_labels(points, kFrame);
  EXPECT_FALSE(places[6].leader);  // alone, and so beside its point
  EXPECT_EQ(places[6].box.left, 409);
}

// As crowded as all recipes by bits per weight and KL.
TEST(Labels, OfACrowdDoNotCover) {
  std::vector<LabelledPoint> points;
  for (int i = 0; i < 22; ++i) {
    points.push_back({"recipe-" + std::string(i % 7, 'x') + std::to_string(i), 90.0 + 53 * (i % 5) + i / 5,
                      120.0 + 9 * (i % 9) + 2 * (i % 4)});
  }
  expect_apart(points);
}

TEST(Labels, WithoutAFreePlaceCoverLittle) {
  // Five at one point, in a frame where the marker leaves room for one.
  const std::vector<LabelledPoint> points(5, {"same", 70, 20});
  const Box frame = {60, 10, 112, 36};
  const std::vector<PlacedLabel> places = place_labels(points, frame);
  int beside = 0;
  for (const PlacedLabel& place : places) {
    EXPECT_TRUE(place.box.left >= frame.left && place.box.right <= frame.right &&
                place.box.top >= frame.top && place.box.bottom <= frame.bottom);
    beside += place.box.left == 79;
  }
  EXPECT_GE(beside, 1);
  EXPECT_LT(beside, 5);  // others where they cover less than that label
  // Wider than the frame: from its left edge.
  EXPECT_EQ(place_labels({{std::string(200, 'w'), 300, 100}}, kFrame)[0].box.left, kFrame.left);
  EXPECT_TRUE(place_labels({}, kFrame).empty());
}

TEST(HeatMap, ColoursByTheLogarithm) {
  HeatMap map = {
      .id = "h", .title = "T", .column_title = "layer", .rows = {"a", "b"}, .columns = {"0", "1", "2"}};
  map.values = {{1e-4, 1e-3, 1e-2}, {std::nan(""), 0, -1}};
  const Drawing drawing = heat_map_svg(map);
  EXPECT_EQ(drawing.left_out, 3);
  EXPECT_EQ(count(drawing.svg, "<title>a, layer"), 3u);
  EXPECT_TRUE(has(drawing.svg, "<rect class=\"h4\"") && has(drawing.svg, "a, layer 1: 0.0010"));
  EXPECT_EQ(unbalanced(drawing.svg), "");
  map.values = {{0, 0, 0}, {0, 0, 0}};
  EXPECT_EQ(heat_map_svg(map).svg, "");
}

TEST(Page, HoldsEverythingAndIsWellFormed) {
  Comparison comparison = some_comparison();
  comparison.rows[6].tasks = {
      {.task = "quiz", .shape = "choices", .examples = 5, .accuracy = {0.8, 0.2}, .agreement = {0.6, 0.1}}};
  ComparisonRow broken = {.name = "mine", .kind = RowKind::kRecipe, .error = "weight <b>is</b> NaN"};
  comparison.rows.push_back(broken);
  const std::string html = comparison_html(comparison);
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_EQ(count(html, "<svg "), 4u + 1u + 6u);  // charts, overview, one map per recipe
  EXPECT_TRUE(has(html, "prefers-color-scheme: dark"));
  EXPECT_TRUE(has(html, "name=\"viewport\""));
  EXPECT_TRUE(has(html, "failed: weight &lt;b&gt;is&lt;/b&gt; NaN"));
  EXPECT_TRUE(has(html, "nibble compare &#39;a b&#39;"));
  EXPECT_TRUE(has(html, "of rtn-w3a16</small><small>at 3.10 bits"));
  EXPECT_TRUE(has(html, "<h2>Tasks</h2>"));
  EXPECT_TRUE(has(html, "20 to 20") || has(html, "2.00 times") || has(html, "times the source"));
  for (const char* outside : {"http://", "https://", "src=", "<script", "<link", "@import", "url("})
    EXPECT_FALSE(has(html, outside)) << outside;
  EXPECT_FALSE(has(html, "nan"));
  // Ids are unique.
  std::vector<std::string> ids;
  for (size_t at = html.find(" id=\""); at != std::string::npos; at = html.find(" id=\"", at + 1))
    ids.push_back(html.substr(at + 5, html.find('"', at + 5) - at - 5));
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::adjacent_find(ids.begin(), ids.end()), ids.end());
}

TEST(Page, NamesFromFilesCannotBecomeMarkup) {
  Comparison comparison = some_comparison();
  const std::string evil = "\"><script>alert(1)</script>";
  comparison.model = comparison.text = comparison.calibration = comparison.machine = comparison.command =
      evil;
  for (ComparisonRow& row : comparison.rows) {
    row.name += evil;
    row.description = evil;
    row.arithmetic[evil] = 0.5;
    row.tasks = {{.task = evil, .shape = evil}};
    row.layer_errors.push_back({"model.layers.1." + evil, 0.1});
  }
  comparison.rows[3].error = evil;
  const std::string html = comparison_html(comparison);
  EXPECT_FALSE(has(html, "<script"));
  EXPECT_EQ(unbalanced(html), "");
}

TEST(Page, EmptyOneRowAndNothingMeasured) {
  Comparison comparison;
  EXPECT_EQ(unbalanced(comparison_html(comparison)), "");
  EXPECT_EQ(count(comparison_html(comparison), "<svg "), 0u);
  comparison.rows.push_back({.name = "only"});
  const std::string html = comparison_html(comparison);
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_EQ(count(html, "<svg "), 0u);
  EXPECT_FALSE(has(html, "nan"));
  comparison.rows[0].bits_per_weight = 4;
  comparison.rows[0].kl_divergence = {0.1, kNotMeasured};
  EXPECT_EQ(count(comparison_html(comparison), "<svg "), 1u);
  comparison.rows[0].layer_errors = {
      {"head", 0.1}, {"model.layers.x.q", 0.1}, {"layers.99999999999999999999.q", 0.1}};
  EXPECT_EQ(count(comparison_html(comparison), "<svg "), 1u);  // none of these has a layer
}

TEST(Text, OneTableForEach) {
  Comparison comparison = some_comparison();
  comparison.rows.push_back({.name = "mine", .error = "it broke"});
  const std::string text = comparison_text(comparison);
  EXPECT_TRUE(has(text, "75.0 % rtn-w3a16")) << text;
  EXPECT_TRUE(has(text, "0.1600 +- 0.0080")) << text;
  EXPECT_TRUE(has(text, "mine: failed: it broke\n")) << text;
  EXPECT_FALSE(has(text, "nan"));
  EXPECT_EQ(text.find(" \n"), std::string::npos);
  EXPECT_FALSE(has(comparison_text({}), "nan"));
}

TEST(ReportJson, WhatIsNotMeasuredIsNull) {
  Comparison comparison = some_comparison();
  comparison.rows[6].quantize_seconds = kNotMeasured;
  comparison.rows.push_back({.name = "mine", .error = "it broke"});
  const OrderedJson json = comparison_json(comparison);
  const OrderedJson& source = json.at("rows").at(0);
  EXPECT_EQ(source.at("kind"), "source");
  EXPECT_TRUE(source.at("kl_divergence").is_null());
  EXPECT_TRUE(source.at("gap_closed").at("rtn").is_null());
  const OrderedJson& quik = json.at("rows").at(6);
  EXPECT_EQ(quik.at("gap_closed").at("rtn").at("baseline"), "rtn-w4a4");
  EXPECT_EQ(quik.at("mac_share").at("4"), 0.75);
  EXPECT_TRUE(quik.at("quantize_seconds").is_null());
  EXPECT_EQ(quik.at("layer_errors").size(), 6u);
  EXPECT_EQ(json.at("rows").at(7).at("error"), "it broke");
  EXPECT_FALSE(has(json.dump(), "nan"));
}

}  // namespace
}  // namespace nibble
