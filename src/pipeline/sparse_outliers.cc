#include "pipeline/sparse_outliers.h"

#include <vector>

#include "base/interrupt.h"
#include "base/log.h"
#include "formats/packed_checkpoint.h"
#include "models/linear_info.h"
#include "quantizers/sparse_selection.h"

namespace nibble {

std::map<std::string, double> find_sparse_outlier_ratios(const Checkpoint& checkpoint, const ModelSpec& spec,
                                                         const Recipe& recipe, ThreadPool& pool) {
  std::map<double, std::vector<LinearInfo>> wanted;  // by percentage
  for (const LinearInfo& linear : list_linears(spec)) {
    const LinearSettings settings = recipe.settings_for(linear.name, linear.role);
    if (settings.format == "dense" || settings.sparse_outlier_percent <= 0) continue;
    wanted[settings.sparse_outlier_percent].push_back(linear);
  }
  std::map<std::string, double> ratios;
  std::vector<float> weight;
  for (const auto& [percent, linears] : wanted) {
    OutlierRatio found;
    Progress progress("looking for outliers", static_cast<double>(linears.size()));
    for (size_t i = 0; i < linears.size(); ++i) {
      throw_if_interrupted();
      const LinearInfo& linear = linears[i];
      const PackedLinear packed =
          load_packed_linear(checkpoint, linear.name, linear.out_features, linear.in_features);
      weight.resize(static_cast<size_t>(linear.out_features * linear.in_features));
      packed.format->dequantize(packed, weight.data());
      found.add(weight.data(), static_cast<int64_t>(weight.size()), pool);
      progress.update(static_cast<double>(i + 1));
    }
    const double ratio = found.ratio(percent);
    progress.finish(format_text("{:.3f} % of {:.1f} M weights are more than {:.3f} interquartile ranges out",
                                found.percent_at(ratio), static_cast<double>(found.weights()) / 1e6, ratio));
    for (const LinearInfo& linear : linears) ratios[linear.name] = ratio;
  }
  return ratios;
}

}  // namespace nibble
