// The recipes of per-row codebooks.
#include "quantizers/recipes.h"

namespace nibble {

const std::string_view kSqueezellm3b = R"({
  "name": "squeezellm-3b",
  "description": "SqueezeLLM at 3 bits: 8 levels per row by k-means, weights counted by the loss's squared gradients",
  "defaults": {
    "quantizer": "kmeans",
    "format": "squeezellm",
    "weight_bits": 3,
    "activation_bits": 16,
    "sensitivity": "fisher"
  }
})";

const std::string_view kSqueezellm4b = R"({
  "name": "squeezellm-4b",
  "description": "SqueezeLLM at 4 bits: 16 levels per row by k-means, weights counted by the loss's squared gradients",
  "defaults": {
    "quantizer": "kmeans",
    "format": "squeezellm",
    "weight_bits": 4,
    "activation_bits": 16,
    "sensitivity": "fisher"
  }
})";

const std::string_view kSqueezellm3bSparse = R"({
  "name": "squeezellm-3b-sparse",
  "description": "squeezellm-3b with 0.45 % of the weights corrected one by one: the most sensitive and the outliers",
  "defaults": {
    "quantizer": "kmeans",
    "format": "squeezellm",
    "weight_bits": 3,
    "activation_bits": 16,
    "sensitivity": "fisher",
    "sparse_sensitive_percent": 0.05,
    "sparse_outlier_percent": 0.4
  }
})";

const std::string_view kSqueezellm4bSparse = R"({
  "name": "squeezellm-4b-sparse",
  "description": "squeezellm-4b with 0.45 % of the weights corrected one by one: the most sensitive and the outliers",
  "defaults": {
    "quantizer": "kmeans",
    "format": "squeezellm",
    "weight_bits": 4,
    "activation_bits": 16,
    "sensitivity": "fisher",
    "sparse_sensitive_percent": 0.05,
    "sparse_outlier_percent": 0.4
  }
})";

const std::string_view kSqueezellm3bLnq = R"({
  "name": "squeezellm-3b-lnq",
  "description": "squeezellm-3b, then levels and codes refined by LNQ for the output error of each row",
                       "defaults" : {
  "quantizer" : "lnq",
                "format" : "squeezellm",
                           "weight_bits" : 3,
                           "activation_bits" : 16,
                           "sensitivity" : "fisher"
}
})";

}  // namespace nibble
