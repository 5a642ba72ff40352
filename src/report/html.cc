// The comparison as one page.
#include <algorithm>

#include "base/format.h"
#include "report/comparison.h"
#include "report/numbers.h"
#include "report/svg.h"

namespace nibble {
namespace {

// Colours after Okabe and Ito, told apart with any colour vision; markers differ in shape as well.
constexpr const char* kStyle = R"css(
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #5b6470; --line: #d7dce2; --shade: #f4f6f8;
  --s0: #0072b2; --s1: #b35900; --s2: #00795a; --s3: #5b6470; --bad: #b3261e;
  --h0: #eef3f8; --h1: #d6e4f0; --h2: #b9d3e8; --h3: #93bcdc; --h4: #68a0cc; --h5: #4383b8; --h6: #2a659b; --h7: #194978; --h8: #0b2e52; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6e9ed; --soft: #9aa4b0; --line: #333b45; --shade: #1c2229;
  --s0: #56b4e9; --s1: #f0a23a; --s2: #2fc197; --s3: #9aa4b0; --bad: #ff8a80;
  --h0: #1a2633; --h1: #1d3448; --h2: #20435f; --h3: #245578; --h4: #2d6c96; --h5: #4087b3; --h6: #61a5cd; --h7: #91c5e2; --h8: #d0e8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } .soft, figcaption, dd { color: var(--soft); }
ul { padding-left: 1.2rem; margin: .6rem 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
thead th { background: var(--shade); font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
thead th:first-child { background: var(--shade); }
td.text { white-space: normal; min-width: 14rem; } td small { color: var(--soft); display: block; }
tr.failed td, tr.failed th { color: var(--bad); text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1.2rem; }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px; min-width: 0; }
figcaption { font-size: .875rem; } figcaption b { color: var(--ink); display: block; font-size: 1rem; }
svg { width: 100%; height: auto; display: block; font-family: inherit; }
svg text { fill: var(--ink); font-size: 12.5px; } svg .tick { fill: var(--soft); } svg .axis { font-size: 13px; }
svg .leader { stroke: var(--soft); stroke-width: .7; fill: none; }
svg .label { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
figure.alone { max-width: 680px; }
svg .grid { stroke: var(--line); fill: none; } svg .frame { stroke: var(--soft); fill: none; }
svg .frontier { stroke: var(--soft); stroke-dasharray: 3 4; fill: none; } svg .bar { stroke: var(--ink); opacity: .6; }
.m { stroke: var(--paper); stroke-width: 1; } .s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); } .s3 { fill: var(--s3); }
.h0 { fill: var(--h0); } .h1 { fill: var(--h1); } .h2 { fill: var(--h2); } .h3 { fill: var(--h3); } .h4 { fill: var(--h4); }
.h5 { fill: var(--h5); } .h6 { fill: var(--h6); } .h7 { fill: var(--h7); } .h8 { fill: var(--h8); }
details { margin: .8rem 0; } summary { cursor: pointer; } dl { margin: 0; } dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; }
code { font-size: .85rem; overflow-wrap: anywhere; }
@media (max-width: 560px) { body { padding: 1rem .7rem 2rem; font-size: 15px; } figure { padding: .5rem .3rem; } svg text, svg .axis { font-size: 13.5px; }
  th:first-child { white-space: normal; min-width: 6.5rem; max-width: 8.5rem; overflow-wrap: anywhere; } }
)css";

enum Series { kActivations16, kActivations8, kActivations4, kSourceSeries };

int series_of(const ComparisonRow& row) {
  if (row.kind == RowKind::kSource) return kSourceSeries;
  return row.activation_bits > 8 ? kActivations16 : row.activation_bits > 4 ? kActivations8 : kActivations4;
}

std::string error_text(const Measured& measured) {
  return std::isfinite(measured.standard_error)
             ? format_text("<small>&plusmn; {}</small>", short_number(measured.standard_error, 2))
             : "";
}

std::string cell(const std::string& text, const std::string& small = "") {
  return format_text("<td>{}{}</td>", escape_html(text),
                     small.empty() || small.starts_with("<small>")
                         ? small
                         : format_text("<small>{}</small>", escape_html(small)));
}

std::string gap_cell(const Comparison& comparison, const ComparisonRow& row, Baseline baseline) {
  const auto gap = gap_closed(comparison, row, baseline);
  if (!gap) return cell(kNoNumber);
  return cell(percent_text(gap->share),
              format_text("<small>of {}</small><small>at {} bits</small>", escape_html(gap->baseline->name),
                          fixed_number(gap->baseline->bits_per_weight, 2)));
}

std::string spread(const std::vector<double>& samples) {
  if (samples.size() < 2) return "";
  const auto [least, most] = std::minmax_element(samples.begin(), samples.end());
  return format_text("{} to {}", fixed_number(*least, 1), fixed_number(*most, 1));
}

std::string open_table(const std::string& label, std::initializer_list<const char*> heads) {
  std::string html = format_text(
      "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table><thead><tr>", label);
  for (const char* head : heads) html += format_text("<th scope=\"col\">{}</th>", head);
  return html + "</tr></thead><tbody>\n";
}
constexpr const char* kCloseTable = "</tbody></table></div>\n";

std::string name_cell(const ComparisonRow& row) {
  const std::string title =
      row.description.empty() ? "" : format_text(" title=\"{}\"", escape_html(row.description));
  return format_text("<th scope=\"row\"{}>{}</th>", title, escape_html(row.name));
}

std::string quality_table(const Comparison& comparison) {
  std::string html = open_table("Quality", {"model", "bits per weight", "size", "KL, nats", "perplexity",
                                            "top-1 agreement", "gap to RTN closed", "gap to GPTQ closed"});
  for (const ComparisonRow& row : comparison.rows) {
    if (row.failed()) {
      html += format_text("<tr class=\"failed\">{}<td class=\"text\" colspan=\"7\">failed: {}</td></tr>\n",
                          name_cell(row), escape_html(row.error));
      continue;
    }
    const Measured agreement{100 * row.top1_agreement.value, 100 * row.top1_agreement.standard_error};
    html += "<tr>" + name_cell(row) + cell(fixed_number(row.bits_per_weight, 3)) +
            cell(bytes_text(row.file_bytes)) +
            cell(short_number(row.kl_divergence.value), error_text(row.kl_divergence)) +
            cell(short_number(row.perplexity.value), error_text(row.perplexity)) +
            cell(percent_text(row.top1_agreement.value), error_text(agreement)) +
            gap_cell(comparison, row, Baseline::kRtn) + gap_cell(comparison, row, Baseline::kGptq) +
            "</tr>\n";
  }
  return html + kCloseTable;
}

std::string speed_table(const Comparison& comparison) {
  std::string html = open_table("Speed and memory", {"model", "prompt, tokens/s", "decode, tokens/s",
                                                     "memory", "quantized in", "multiply-adds"});
  for (const ComparisonRow& row : comparison.rows) {
    if (row.failed()) continue;
    html += "<tr>" + name_cell(row) + cell(fixed_number(row.prompt_speed, 1), spread(row.prompt_samples)) +
            cell(fixed_number(row.decode_speed, 1), spread(row.decode_samples)) +
            cell(bytes_text(row.peak_memory_bytes)) + cell(seconds_text(row.quantize_seconds)) +
            format_text("<td class=\"text\">{}</td></tr>\n", escape_html(shares_text(row.arithmetic)));
  }
  return html + kCloseTable;
}

std::string task_table(const Comparison& comparison) {
  std::string body;
  for (const ComparisonRow& row : comparison.rows) {
    if (row.failed()) continue;
    for (const TaskAccuracy& task : row.tasks) {
      const auto share = [](const Measured& measured) {
        const Measured percent{100 * measured.value, 100 * measured.standard_error};
        return cell(percent_text(measured.value), error_text(percent));
      };
      body += "<tr>" + name_cell(row) + cell(task.task) + cell(std::to_string(task.examples)) +
              share(task.accuracy) + share(task.accuracy_norm) +
              cell(short_number(task.perplexity.value), error_text(task.perplexity)) + share(task.agreement) +
              "</tr>\n";
    }
  }
  if (body.empty()) return "";
  return "<h2>Tasks</h2>\n" +
         open_table("Tasks", {"model", "task", "examples", "accuracy", "accuracy by length",
                              "perplexity of answers", "agreement with source"}) +
         body + kCloseTable;
}

std::string figure(const std::string& title, const std::string& caption, const Drawing& drawing) {
  if (drawing.svg.empty()) return "";
  return format_text("<figure>{}<figcaption><b>{}</b>{}{}</figcaption></figure>\n", drawing.svg,
                     escape_html(title), escape_html(caption),
                     drawing.left_out > 0
                         ? format_text(" {} of the models {} no such values.", drawing.left_out,
                                       drawing.left_out == 1 ? "has" : "have")
                         : "");
}

std::string charts(const Comparison& comparison) {
  struct Chart {
    const char *id, *title, *x_title, *y_title, *caption;
    double ComparisonRow::*x;
    Measured ComparisonRow::*y;
    bool more_x_is_better;
  };
  constexpr const char* kFrontier =
      "Lower is better. The dashed line joins the models that no other beats in both.";
  const Chart kCharts[] = {
      {"kl-bits", "KL divergence against size", "bits per weight", "KL divergence, nats (log)", kFrontier,
       &ComparisonRow::bits_per_weight, &ComparisonRow::kl_divergence, false},
      {"perplexity-bits", "Perplexity against size", "bits per weight", "perplexity", kFrontier,
       &ComparisonRow::bits_per_weight, &ComparisonRow::perplexity, false},
      {"kl-decode", "KL divergence against decode speed", "decoded tokens per second",
       "KL divergence, nats (log)", kFrontier, &ComparisonRow::decode_speed, &ComparisonRow::kl_divergence,
       true},
      {"kl-prompt", "KL divergence against prompt speed", "prompt tokens per second",
       "KL divergence, nats (log)", kFrontier, &ComparisonRow::prompt_speed, &ComparisonRow::kl_divergence,
       true}};
  std::string html;
  for (const Chart& chart : kCharts) {
    ScatterChart scatter = {.id = chart.id,
                            .title = chart.title,
                            .x_title = chart.x_title,
                            .y_title = chart.y_title,
                            .more_x_is_better = chart.more_x_is_better,
                            .legend_title = "activations:",
                            .series = {"16 bit", "8 bit", "4 bit", "source"}};
    double least = std::numeric_limits<double>::infinity(), most = 0;
    for (const ComparisonRow& row : comparison.rows) {
      const Measured& y = row.*chart.y;
      if (row.failed() || (row.kind == RowKind::kSource && std::isnan(y.value))) continue;
      scatter.points.push_back({row.name, row.*chart.x, y.value, y.standard_error, series_of(row)});
      if (y.value > 0) {
        least = std::min(least, y.value);
        most = std::max(most, y.value);
      }
    }
    scatter.log_x = chart.x == &ComparisonRow::bits_per_weight;
    scatter.log_y = chart.y == &ComparisonRow::kl_divergence || most > 4 * least;
    if (scatter.log_y && chart.y == &ComparisonRow::perplexity) scatter.y_title += " (log)";
    html += figure(chart.title, chart.caption, scatter_svg(scatter));
  }
  return html.empty() ? ""
                      : "<h2>Quality against size and speed</h2><div class=\"charts\">" + html + "</div>\n";
}

// "model.layers.12.mlp.down_proj" -> layer 12, "down_proj".
struct LinearPlace {
  int64_t layer = -1;
  std::string role;
};
LinearPlace place_of(const std::string& name) {
  LinearPlace place;
  const size_t at = name.find("layers.");
  if (at == std::string::npos) return place;
  size_t end = at + 7;
  int64_t layer = 0;
  while (end < name.size() && name[end] >= '0' && name[end] <= '9' && layer < 100000)
    layer = layer * 10 + (name[end++] - '0');
  if (end == at + 7 || layer >= 4096) return place;
  place.layer = layer;
  place.role = name.substr(name.rfind('.') + 1);
  return place;
}

std::string layer_errors(const Comparison& comparison) {
  double least = std::numeric_limits<double>::infinity(), most = 0;
  int64_t layers = 0;
  for (const ComparisonRow& row : comparison.rows) {
    for (const LayerError& error : row.layer_errors) {
      layers = std::max(layers, place_of(error.linear).layer + 1);
      if (!(error.error > 0) || !std::isfinite(error.error)) continue;
      least = std::min(least, error.error);
      most = std::max(most, error.error);
    }
  }
  if (layers == 0 || !(most > 0)) return "";
  std::vector<std::string> columns;
  for (int64_t layer = 0; layer < layers; ++layer) columns.push_back(std::to_string(layer));
  const auto blank = std::vector<double>(static_cast<size_t>(layers), kNotMeasured);

  HeatMap overview = {
      .id = "errors", .title = "Mean error of each layer", .column_title = "layer", .columns = columns};
  std::string details;
  for (size_t r = 0; r < comparison.rows.size(); ++r) {
    const ComparisonRow& row = comparison.rows[r];
    if (row.failed() || row.layer_errors.empty()) continue;
    HeatMap map = {.id = format_text("errors-{}", r),
                   .title = format_text("Errors of {}", row.name),
                   .column_title = "layer",
                   .columns = columns,
                   .least = least,
                   .most = most};
    std::vector<double> sums(static_cast<size_t>(layers), 0), counts(static_cast<size_t>(layers), 0);
    for (const LayerError& error : row.layer_errors) {
      const LinearPlace place = place_of(error.linear);
      if (place.layer < 0) continue;
      auto found = std::find(map.rows.begin(), map.rows.end(), place.role);
      if (found == map.rows.end()) {
        map.rows.push_back(place.role);
        map.values.push_back(blank);
        found = map.rows.end() - 1;
      }
      const auto layer = static_cast<size_t>(place.layer);
      map.values[static_cast<size_t>(found - map.rows.begin())][layer] = error.error;
      if (!std::isfinite(error.error)) continue;
      sums[layer] += error.error;
      ++counts[layer];
    }
    overview.rows.push_back(row.name);
    overview.values.push_back(blank);
    for (size_t layer = 0; layer < sums.size(); ++layer) {
      if (counts[layer] > 0) overview.values.back()[layer] = sums[layer] / counts[layer];
    }
    details += format_text("<figure>{}<figcaption><b>{}</b></figcaption></figure>\n", heat_map_svg(map).svg,
                           escape_html(row.name));
  }
  return format_text(
      "<h2>Where the error is</h2>\n<p class=\"soft\">Relative squared error of the linears' outputs on the "
      "calibration "
      "tokens, as it was when they were quantized (of the weights, for recipes without calibration). Darker "
      "or, on "
      "dark pages, brighter is more; the scale is logarithmic.</p>\n<figure "
      "class=\"alone\">{}<figcaption><b>Mean over the "
      "linears of "
      "each layer</b></figcaption></figure>\n<details><summary>Every linear</summary><div "
      "class=\"charts\">{}</div></details>\n",
      heat_map_svg(overview).svg, details);
}

// What a reader in a hurry takes away.
std::string highlights(const Comparison& comparison) {
  const ComparisonRow *closest = nullptr, *smallest = nullptr, *fastest = nullptr, *source = nullptr;
  for (const ComparisonRow& row : comparison.rows) {
    if (row.failed()) continue;
    if (row.kind == RowKind::kSource) {
      source = &row;
      continue;
    }
    const auto better = [&](const ComparisonRow* best, double mine, double theirs, bool more) {
      return std::isfinite(mine) && (best == nullptr || (more ? mine > theirs : mine < theirs));
    };
    if (better(closest, row.kl_divergence.value, closest ? closest->kl_divergence.value : 0, false))
      closest = &row;
    if (better(smallest, row.bits_per_weight, smallest ? smallest->bits_per_weight : 0, false))
      smallest = &row;
    if (better(fastest, row.decode_speed, fastest ? fastest->decode_speed : 0, true)) fastest = &row;
  }
  std::string html;
  const auto about = [](const ComparisonRow& row) {
    return format_text("<b>{}</b> ({} bits per weight, KL {})", escape_html(row.name),
                       fixed_number(row.bits_per_weight, 2), short_number(row.kl_divergence.value, 3));
  };
  if (closest != nullptr) html += "<li>Closest to the source: " + about(*closest) + "</li>";
  if (smallest != nullptr && smallest != closest) html += "<li>Smallest: " + about(*smallest) + "</li>";
  if (fastest != nullptr) {
    const double times = source != nullptr ? fastest->decode_speed / source->decode_speed : kNotMeasured;
    html += format_text("<li>Fastest to decode: {}, {} tokens per second{}</li>", about(*fastest),
                        fixed_number(fastest->decode_speed, 1),
                        std::isfinite(times) ? format_text(", {:.2f} times the source's", times) : "");
  }
  return html.empty() ? "" : "<ul>" + html + "</ul>\n";
}

std::string method(const Comparison& comparison) {
  std::string html = "<h2>How it was measured</h2>\n<dl>\n";
  const auto entry = [&](const char* term, const std::string& text) {
    html += format_text("<dt>{}</dt><dd>{}</dd>\n", term, text);
  };
  entry("Perplexity, KL divergence, top-1 agreement",
        format_text(
            "{} windows of {} tokens of {}, {}, each scored alone from its second token: {} tokens. KL is "
            "KL(source || model) over the whole vocabulary, in nats per token; agreement is the share of "
            "tokens "
            "where both find the same token most likely. Standard errors are clustered by window.",
            comparison.windows, comparison.context, escape_html(comparison.text),
            comparison.special ? "with a BOS before each" : "without special tokens", comparison.tokens));
  entry("Gap closed",
        "The share of a baseline's KL divergence that a recipe avoids: (KL of baseline - KL) / KL of "
        "baseline. The "
        "baseline is the RTN or GPTQ recipe of this table with the same activation bits whose bits per "
        "weight are "
        "nearest.");
  entry("Bits per weight",
        "All bytes of the quantized linears, scales, tables and 16-bit parts included, x 8 / their weights.");
  if (!comparison.calibration.empty()) entry("Calibration", escape_html(comparison.calibration));
  if (comparison.embedding_bits > 0) {
    entry("Embedding and head", format_text("{} bit in every quantized model.", comparison.embedding_bits));
  }
  if (comparison.repetitions > 0) {
    entry(
        "Speed and memory",
        format_text(
            "A prompt of {} tokens into an empty context and {} tokens decoded one by one, after a warm-up; "
            "medians of {} runs in which the models took turns, each in a process of its own. Memory is that "
            "process's largest resident set.",
            comparison.prompt_tokens, comparison.generated_tokens, comparison.repetitions));
  }
  entry("Machine", escape_html(comparison.machine));
  entry("Program", escape_html(comparison.program + (comparison.date.empty() ? "" : ", " + comparison.date)));
  if (!comparison.command.empty()) entry("Command", "<code>" + escape_html(comparison.command) + "</code>");
  return html + "</dl>\n";
}

}  // namespace

std::string comparison_html(const Comparison& comparison) {
  size_t quantized = 0;
  for (const ComparisonRow& row : comparison.rows) quantized += row.kind != RowKind::kSource && !row.failed();
  return format_text(
             "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" "
             "content=\"width=device-width, initial-scale=1\">\n<title>{} "
             "compared</title>\n<style>{}</style></head>\n"
             "<body><main>\n<h1>{}</h1>\n<p class=\"soft\">{} quantized {} beside the source, measured under "
             "one "
             "protocol.</p>\n",
             escape_html(comparison.model), kStyle, escape_html(comparison.model), quantized,
             quantized == 1 ? "model" : "models") +
         highlights(comparison) + "<h2>Quality</h2>\n" + quality_table(comparison) + charts(comparison) +
         "<h2>Speed and memory</h2>\n" + speed_table(comparison) + task_table(comparison) +
         layer_errors(comparison) + method(comparison) + "</main></body></html>\n";
}

}  // namespace nibble
