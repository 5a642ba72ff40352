#include "quantizers/recipe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "formats/format.h"
#include "quantizers/quantizer.h"

namespace nibble {
namespace {

const std::vector<std::pair<std::string, LinearRole>> kLinears = {
    {"model.layers.0.self_attn.q_proj", LinearRole::kQuery},
    {"model.layers.0.self_attn.k_proj", LinearRole::kKey},
    {"model.layers.0.self_attn.v_proj", LinearRole::kValue},
    {"model.layers.0.self_attn.o_proj", LinearRole::kAttentionOutput},
    {"model.layers.0.mlp.gate_proj", LinearRole::kGate},
    {"model.layers.0.mlp.up_proj", LinearRole::kUp},
    {"model.layers.0.mlp.down_proj", LinearRole::kDown},
    {"model.layers.10.mlp.down_proj", LinearRole::kDown}};

Recipe parse(const std::string& text) {
  return Recipe::from_json(parse_json(text, "mine.json", {.allow_comments = true}), "mine.json");
}

template <typename Expected, typename Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const Expected& error) {
    return error.what();
  }
  return "nothing thrown";
}

void expect_mentions(const std::string& message, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' is not in: " << message;
  }
}

TEST(Recipe, BuiltInsAreThoseOfTheContract) {
  const struct {
    const char* recipe;
    LinearRole role;
    const char* quantizer;
    int64_t weight_bits, activation_bits, outlier_columns;
    bool clip, scaling;
  } kRows[] = {
      {"rtn-w4a4", LinearRole::kQuery, "rtn", 4, 4, 0, false, false},
      {"rtn-w4a4", LinearRole::kDown, "rtn", 4, 4, 0, false, false},
      {"quik-4b", LinearRole::kQuery, "gptq", 4, 4, -1, true, false},
      {"quik-4b", LinearRole::kAttentionOutput, "gptq", 4, 4, -1, true, false},
      {"quik-4b", LinearRole::kUp, "gptq", 4, 4, -1, true, false},
      {"quik-4b", LinearRole::kDown, "gptq", 8, 8, -1, true, true},
      {"quik-8b", LinearRole::kGate, "gptq", 8, 8, -1, true, false},
      {"quik-8b", LinearRole::kDown, "gptq", 8, 8, -1, true, true},
  };
  for (const auto& row : kRows) {
    const LinearSettings settings = Recipe::find(row.recipe).settings_for("model.layers.3.x", row.role);
    SCOPED_TRACE(std::string(row.recipe) + " " + std::string(role_name(row.role)));
    EXPECT_EQ(settings.quantizer, row.quantizer);
    EXPECT_EQ(settings.format, "quik");
    EXPECT_EQ(settings.weight_bits, row.weight_bits);
    EXPECT_EQ(settings.activation_bits, row.activation_bits);
    EXPECT_EQ(settings.outlier_columns, row.outlier_columns);
    EXPECT_EQ(settings.clip, row.clip);
    EXPECT_EQ(settings.outlier_scaling, row.scaling);
    EXPECT_EQ(settings.group_size, 0);
    EXPECT_EQ(settings.outlier_threshold, 0);
    EXPECT_EQ(settings.clip_norm, 2.4);
    EXPECT_EQ(settings.clip_steps, 80);
    EXPECT_EQ(settings.damping, 0.01);
    EXPECT_EQ(settings.block_size, 128);
    EXPECT_EQ(settings.column_order, "ascending");
    EXPECT_TRUE(settings.calibrate_on_quantized);
  }
}

TEST(Recipe, SqueezellmOnesAreThoseOfTheContract) {
  const struct {
    const char* recipe;
    const char* quantizer;
    int64_t weight_bits;
    double sensitive, outliers;
  } kRows[] = {{"squeezellm-3b", "kmeans", 3, 0, 0},
               {"squeezellm-4b", "kmeans", 4, 0, 0},
               {"squeezellm-3b-sparse", "kmeans", 3, 0.05, 0.4},
               {"squeezellm-4b-sparse", "kmeans", 4, 0.05, 0.4},
               {"squeezellm-3b-lnq", "lnq", 3, 0, 0}};
  for (const auto& row : kRows) {
    SCOPED_TRACE(row.recipe);
    for (const auto& [linear, role] : kLinears) {
      const LinearSettings settings = Recipe::find(row.recipe).settings_for(linear, role);
      EXPECT_EQ(settings.quantizer, row.quantizer);
      EXPECT_EQ(settings.format, "squeezellm");
      EXPECT_EQ(settings.weight_bits, row.weight_bits);
      EXPECT_EQ(settings.activation_bits, 16);
      EXPECT_EQ(settings.group_size, 0);
      EXPECT_EQ(settings.outlier_columns, 0);
      EXPECT_EQ(settings.sensitivity, "fisher");
      EXPECT_EQ(settings.kmeans_solver, "exact");
      EXPECT_EQ(settings.sparse_sensitive_percent, row.sensitive);
      EXPECT_EQ(settings.sparse_outlier_percent, row.outliers);
    }
  }
}

TEST(Recipe, UniformBaselinesAreThoseOfTheContract) {
  const struct {
    const char* recipe;
    const char *quantizer, *format;
    int64_t bits, group_size;
    const char* order;
  } kRows[] = {{"rtn-w4a16-g128", "rtn", "group_int", 4, 128, "ascending"},
               {"rtn-w3a16", "rtn", "group_int", 3, 0, "ascending"},
               {"gptq-w4a16-g128", "gptq", "group_int", 4, 128, "descending"},
               {"gptq-w3a16", "gptq", "group_int", 3, 0, "descending"}};
  for (const auto& row : kRows) {
    const LinearSettings settings = Recipe::find(row.recipe).settings_for("x", LinearRole::kDown);
    EXPECT_EQ(settings.quantizer, row.quantizer);
    EXPECT_EQ(settings.format, row.format);
    EXPECT_EQ(settings.weight_bits, row.bits);
    EXPECT_EQ(settings.activation_bits, 16);
    EXPECT_EQ(settings.group_size, row.group_size);
    EXPECT_EQ(settings.column_order, row.order);
    EXPECT_TRUE(settings.symmetric && settings.static_groups);
    EXPECT_FALSE(settings.clip);
  }
  for (const char* recipe : {"quik-4b-sparse", "quik-8b-sparse", "quik-4b-gptaq"}) {
    for (const LinearRole role : {LinearRole::kQuery, LinearRole::kDown}) {
      // The dense recipe in everything but what its name adds.
      Json with = Recipe::find(recipe).settings_for("x", role).to_json();
      Json without = Recipe::find(std::string(recipe).substr(0, 7)).settings_for("x", role).to_json();
      for (const char* key : {"quantizer", "format", "asymmetric_calibration"}) {
        with.erase(key);
        without.erase(key);
      }
      EXPECT_EQ(with, without) << recipe;
    }
  }
}

TEST(Recipe, SettingsOfCodebooksMustAgree) {
  const auto message = [](std::vector<std::string> sets) {
    Recipe recipe = Recipe::find("squeezellm-3b-sparse");
    for (const std::string& set : sets) recipe.apply_set(set);
    return message_of<Error>([&] { recipe.settings_for("model.layers.0.x", LinearRole::kUp); });
  };
  EXPECT_EQ(message({"weight_bits=2"}), "nothing thrown");
  expect_mentions(message({"sensitivity=uniform"}), {"sparse_sensitive_percent is 0.05", "uniform"});
  EXPECT_EQ(message({"sensitivity=uniform", "sparse_sensitive_percent=0"}), "nothing thrown");
  expect_mentions(message({"outlier_columns=32"}), {"outlier_columns is 32", "kmeans"});
  expect_mentions(message({"quantizer=rtn"}), {"sparse_outlier_percent 0.4", "rtn"});
}

TEST(Recipe, EveryBuiltInFitsTheTablesAndEveryModel) {
  ASSERT_GE(Recipe::builtin_names().size(), 3u);
  for (const std::string& name : Recipe::builtin_names()) {
    SCOPED_TRACE(name);
    const Recipe recipe = Recipe::find(name);
    EXPECT_EQ(recipe.name, name);
    EXPECT_FALSE(recipe.description.empty());
    EXPECT_NO_THROW(recipe.check_all_match(kLinears));
    for (const auto& [linear, role] : kLinears) {
      const LinearSettings settings = recipe.settings_for(linear, role);
      EXPECT_NE(find_format(settings.format), nullptr);
      if (settings.quantizer != "none") {
        EXPECT_NO_THROW(find_quantizer(settings.quantizer));
      }
    }
    const Recipe again = Recipe::from_json(parse_json(recipe.to_json().dump(), name), name);
    EXPECT_EQ(again.to_json(), recipe.to_json());
    for (const auto& [linear, role] : kLinears) {
      EXPECT_EQ(again.settings_for(linear, role).to_json(), recipe.settings_for(linear, role).to_json());
    }
  }
}

// What concerns the whole model cannot be asked for one linear: it would be ignored.
TEST(Recipe, WholeModelSettingsAreNoOverrides) {
  Recipe recipe = parse(R"({"name": "mine", "defaults": {"rotation": "hadamard-offline"}})");
  EXPECT_EQ(recipe.defaults.rotation, "hadamard-offline");
  recipe.apply_set("rotation=hadamard");
  EXPECT_EQ(recipe.defaults.rotation, "hadamard");
  EXPECT_EQ(Recipe::find("w4a4-hadamard").defaults.rotation, "hadamard-inputs");
  EXPECT_EQ(Recipe::find("quik-4b").defaults.rotation, "none");
  for (const std::string setting : {"rotation", "balance_channels"}) {
    const std::string value = setting == "rotation" ? "\"hadamard\"" : "true";
    expect_mentions(message_of<UsageError>([&] { recipe.apply_set("down." + setting + "=" + value); }),
                    {"'" + setting + "'", "whole model"});
    expect_mentions(
        message_of<Error>([&] {
          parse(R"({"name": "x", "overrides": [{"settings": {")" + setting + "\": " + value + "}}]}");
        }),
        {"'" + setting + "'", "whole model"});
  }
  expect_mentions(message_of<UsageError>([&] { recipe.apply_set("rotation=sideways"); }),
                  {"sideways", "none, hadamard, hadamard-inputs, hadamard-offline"});
}

TEST(Recipe, OverridesApplyInOrderByNameRoleAndBits) {
  const Recipe recipe = parse(R"({
    "name": "mine",  // comments are allowed
    "defaults": {"weight_bits": 4, "damping": 0.5},
    "overrides": [
      {"roles": ["down", "o"], "settings": {"weight_bits": 8}},
      {"name": "model.layers.?.mlp.*", "bits": 8, "settings": {"group_size": 64, "clip": true}},
      {"name": "*.10.*", "settings": {"weight_bits": 3}},
      {"bits": 3, "settings": {"column_order": "natural"}}
    ]
  })");
  const auto bits = [&](size_t i) {
    return recipe.settings_for(kLinears[i].first, kLinears[i].second).weight_bits;
  };
  EXPECT_EQ(bits(0), 4);
  EXPECT_EQ(bits(3), 8);
  EXPECT_EQ(bits(5), 4);
  EXPECT_EQ(bits(6), 8);
  EXPECT_EQ(bits(7), 3);
  const auto settings = [&](size_t i) { return recipe.settings_for(kLinears[i].first, kLinears[i].second); };
  EXPECT_EQ(settings(6).group_size, 64);  // layer 0's down is of 8 bits when the second override comes
  EXPECT_EQ(settings(3).group_size, 0);   // o is no mlp
  EXPECT_EQ(settings(5).group_size, 0);   // up has 4 bits
  EXPECT_EQ(settings(7).group_size, 0);   // "?" is one character: not layer 10
  EXPECT_EQ(settings(7).column_order, "natural");
  EXPECT_EQ(settings(0).damping, 0.5);
  EXPECT_NO_THROW(recipe.check_all_match(kLinears));
}

TEST(Recipe, AnOverrideThatMatchesNothingIsAnError) {
  for (const char* match :
       {R"("name": "model.layer.*")", R"("roles": ["gate"], "name": "*.10.*")", R"("bits": 3)"}) {
    const Recipe recipe =
        parse(R"({"name": "mine", "overrides": [{"roles": ["q"], "settings": {"clip": true}}, {)" +
              std::string(match) + R"(, "settings": {"clip": true}}]})");
    expect_mentions(message_of<Error>([&] { recipe.check_all_match(kLinears); }),
                    {"mine", "override 2", "matches none"});
  }
}

TEST(Recipe, PatternsMatchWholeNames) {
  const struct {
    const char* pattern;
    bool matches;
  } kRows[] = {{"*", true},      {"a.b.c", true},   {"a.b", false},    {"b.c", false},  {"a*c", true},
               {"*.c", true},    {"?.b.?", true},   {"a.?b.c", false}, {"**c", true},   {"a.b.c*", true},
               {"*b*b*", false}, {"*a*b*c*", true}, {"a.b.c?", false}, {"A.b.c", false}};
  for (const auto& row : kRows) {
    Recipe recipe;
    recipe.name = "test";
    RecipeOverride override_;
    override_.name_pattern = row.pattern;
    override_.settings = {{"weight_bits", 8}};
    recipe.overrides.push_back(override_);
    EXPECT_EQ(recipe.settings_for("a.b.c", LinearRole::kUp).weight_bits == 8, row.matches) << row.pattern;
  }
}

TEST(Recipe, SetChangesDefaultsAndRoles) {
  Recipe recipe = Recipe::find("quik-4b");
  recipe.apply_set("activation_bits=8");
  recipe.apply_set("clip=false");
  recipe.apply_set("damping=5e-2");
  recipe.apply_set("column_order=natural");
  recipe.apply_set("down.column_order=\"descending\"");
  recipe.apply_set("o.weight_bits=8");
  const LinearSettings query = recipe.settings_for("x", LinearRole::kQuery);
  EXPECT_EQ(query.activation_bits, 8);
  EXPECT_FALSE(query.clip);
  EXPECT_EQ(query.damping, 0.05);
  EXPECT_EQ(query.column_order, "natural");
  EXPECT_EQ(query.weight_bits, 4);
  EXPECT_EQ(recipe.settings_for("x", LinearRole::kDown).column_order, "descending");
  EXPECT_EQ(recipe.settings_for("x", LinearRole::kDown).weight_bits, 8);
  EXPECT_EQ(recipe.settings_for("x", LinearRole::kAttentionOutput).weight_bits, 8);
  // What was set survives the way through config.json.
  const Recipe again = Recipe::from_json(parse_json(recipe.to_json().dump(), "config.json"), "config.json");
  EXPECT_EQ(again.settings_for("x", LinearRole::kAttentionOutput).to_json(),
            recipe.settings_for("x", LinearRole::kAttentionOutput).to_json());
}

TEST(Recipe, SetRefusesWithFieldValueAndWhatIsAllowed) {
  const struct {
    const char* text;
    std::vector<std::string> words;
  } kRows[] = {
      {"weight_bits=5", {"weight_bits", "5", "2, 3, 4, 8"}},
      {"weight_bits=4.0", {"weight_bits", "4.0", "2, 3, 4, 8"}},
      {"weight_bits=four", {"weight_bits", "\"four\""}},
      {"weight_bits=", {"weight_bits", "\"\""}},
      {"weight_bits=true", {"weight_bits", "true"}},
      {"weight_bits=18446744073709551620", {"weight_bits", "2, 3, 4, 8"}},
      {"activation_bits=3", {"activation_bits", "3", "4, 8, 16"}},
      {"group_size=-3", {"group_size", "-3", "from 0 to"}},
      {"group_size=18446744073709551615", {"group_size", "18446744073709551615"}},
      {"outlier_columns=-2", {"outlier_columns", "-2"}},
      {"outlier_threshold=-1", {"outlier_threshold", "-1"}},
      {"damping=nan", {"damping", "nan"}},
      {"damping=-0.01", {"damping", "-0.01"}},
      {"damping=1e999", {"damping"}},
      {"clip=1", {"clip", "1", "true or false"}},
      {"clip=yes", {"clip", "yes", "true or false"}},
      {"clip_norm=0", {"clip_norm", "0", "0.1"}},
      {"clip_steps=101", {"clip_steps", "101", "1 to 100"}},
      {"block_size=0", {"block_size", "0"}},
      {"scale_steps=256", {"scale_steps", "256", "0 to 255"}},
      {"scale_steps=-1", {"scale_steps", "-1", "0 to 255"}},
      {"column_order=random", {"column_order", "random", "ascending, natural, descending"}},
      {"quantizer=awq", {"quantizer", "awq", "gptq"}},
      {"format=int4", {"format", "int4", "quik"}},
      {"format=[1]", {"format", "[1]"}},
      {"bits=4", {"bits", "weight_bits"}},
      {"head.weight_bits=8", {"head", "q, k, v, o, gate, up, down"}},
      {"down.bits=8", {"bits", "weight_bits"}},
      {"down.weight_bits=7", {"weight_bits", "7"}},
      {"a.b.c=1", {"role 'a'"}},
      {"weight_bits", {"FIELD=VALUE"}},
      {"=4", {"FIELD=VALUE"}},
      {"", {"FIELD=VALUE"}},
  };
  for (const auto& row : kRows) {
    Recipe recipe = Recipe::find("quik-4b");
    const Json before = recipe.to_json();
    const std::string message = message_of<UsageError>([&] { recipe.apply_set(row.text); });
    expect_mentions(message, row.words);
    expect_mentions(message, {"--set"});
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_EQ(recipe.to_json(), before) << row.text;
  }
  LinearSettings settings;
  EXPECT_THROW(settings.set("damping", Json(std::nan("")), "test"), UsageError);
  EXPECT_EQ(settings.damping, 0.01);
}

TEST(Recipe, FilesAreRefusedWithTheirNameAndTheFault) {
  const struct {
    const char* text;
    std::vector<std::string> words;
  } kRows[] = {
      {R"([])", {"expected a JSON object"}},
      {R"({})", {"name"}},
      {R"({"name": 3})", {"name"}},
      {R"({"name": ""})", {"name", "empty"}},
      {R"({"name": "m", "default": {}})", {"\"default\"", "defaults"}},
      {R"({"name": "m", "defaults": []})", {"defaults", "[]"}},
      {R"({"name": "m", "defaults": {"weight_bits": 5}})", {"defaults", "weight_bits", "5"}},
      {R"({"name": "m", "defaults": {"wieght_bits": 4}})", {"wieght_bits", "weight_bits"}},
      {R"({"name": "m", "overrides": {}})", {"overrides"}},
      {R"({"name": "m", "overrides": [3]})", {"override 1", "3"}},
      {R"({"name": "m", "overrides": [{"roles": ["down"]}]})", {"override 1", "settings"}},
      {R"({"name": "m", "overrides": [{"settings": {}}]})", {"override 1", "settings"}},
      {R"({"name": "m", "overrides": [{"settings": 3}]})", {"override 1", "settings", "3"}},
      {R"({"name": "m", "overrides": [{"roles": "down", "settings": {"clip": true}}]})",
       {"roles", "\"down\""}},
      {R"({"name": "m", "overrides": [{"roles": [], "settings": {"clip": true}}]})", {"roles"}},
      {R"({"name": "m", "overrides": [{"roles": ["downn"], "settings": {"clip": true}}]})",
       {"downn", "gate"}},
      {R"({"name": "m", "overrides": [{"roles": [1], "settings": {"clip": true}}]})", {"roles", "1"}},
      {R"({"name": "m", "overrides": [{"bits": 5, "settings": {"clip": true}}]})", {"bits", "5"}},
      {R"({"name": "m", "overrides": [{"name": "", "settings": {"clip": true}}]})", {"name", "empty"}},
      {R"({"name": "m", "overrides": [{"name": 1, "settings": {"clip": true}}]})", {"name"}},
      {R"({"name": "m", "overrides": [{"pattern": "*", "settings": {"clip": true}}]})", {"pattern", "name"}},
      {R"({"name": "m", "overrides": [{"settings": {"clip": true}}, {"settings": {"clip": 0}}]})",
       {"override 2", "clip", "0"}},
  };
  for (const auto& row : kRows) {
    const std::string message = message_of<Error>([&] { parse(row.text); });
    expect_mentions(message, row.words);
    expect_mentions(message, {"mine.json"});
  }
}

TEST(Recipe, ContradictionsAreRefusedWithTheLinear) {
  for (const char* set : {"format=dense", "quantizer=none"}) {
    Recipe recipe = Recipe::find("rtn-w4a4");
    recipe.apply_set(set);
    expect_mentions(
        message_of<Error>([&] { recipe.settings_for("model.layers.2.mlp.up_proj", LinearRole::kUp); }),
        {"rtn-w4a4", "model.layers.2.mlp.up_proj", "none", "dense"});
  }
  Recipe recipe = Recipe::find("rtn-w4a4");
  recipe.apply_set("up.format=dense");
  recipe.apply_set("up.quantizer=none");
  EXPECT_EQ(recipe.settings_for("x", LinearRole::kUp).format, "dense");
  EXPECT_EQ(recipe.settings_for("x", LinearRole::kGate).format, "quik");
}

TEST(Recipe, SettingsOfSolversThatContradictEachOtherAreRefused) {
  const struct {
    const char* recipe;
    std::vector<std::string> sets, words;
  } kRows[] = {
      {"gptq-w4a16-g128", {"static_groups=false"}, {"static_groups", "128", "descending", "natural"}},
      {"rtn-w4a16-g128", {"asymmetric_calibration=true"}, {"asymmetric_calibration", "rtn", "gptq"}},
      {"quik-4b-gptaq",
       {"calibrate_on_quantized=false"},
       {"asymmetric_calibration", "calibrate_on_quantized"}},
      {"quik-4b", {"quantizer=sparse_gptq"}, {"sparse_gptq", "quik_sparse", "go together"}},
      {"quik-4b-sparse", {"quantizer=gptq"}, {"quik_sparse", "go together"}},
      {"quik-4b-sparse", {"symmetric=false"}, {"sparse_gptq", "symmetric"}},
      {"quik-4b-sparse", {"group_size=64"}, {"sparse_gptq", "group_size 0"}},
  };
  for (const auto& row : kRows) {
    Recipe recipe = Recipe::find(row.recipe);
    for (const std::string& set : row.sets) recipe.apply_set(set);
    const std::string message =
        message_of<Error>([&] { recipe.settings_for("layers.2.up", LinearRole::kUp); });
    expect_mentions(message, row.words);
    expect_mentions(message, {"layers.2.up", row.recipe});
  }
  Recipe recipe = Recipe::find("gptq-w4a16-g128");
  recipe.apply_set("static_groups=false");
  recipe.apply_set("column_order=natural");
  EXPECT_FALSE(recipe.settings_for("x", LinearRole::kUp).static_groups);
  // Part of the linears pruned, part of them dense.
  recipe = Recipe::find("quik-4b-sparse");
  for (const char* role : {"gate", "up", "down"}) {
    recipe.apply_set(std::string(role) + ".quantizer=gptq");
    recipe.apply_set(std::string(role) + ".format=quik");
  }
  EXPECT_EQ(recipe.settings_for("x", LinearRole::kDown).format, "quik");
  EXPECT_EQ(recipe.settings_for("x", LinearRole::kQuery).format, "quik_sparse");
}

TEST(Recipe, AreFoundByNameOrFile) {
  const std::string path = testing::TempDir() + "/nibble_recipe_test.json";
  std::ofstream(path) << "{/* mine */ \"name\": \"from-file\", \"defaults\": {\"weight_bits\": 3}}";
  EXPECT_EQ(Recipe::find(path).name, "from-file");
  EXPECT_EQ(Recipe::find(path).defaults.weight_bits, 3);
  std::ofstream(path) << "{\"name\": ";
  expect_mentions(message_of<Error>([&] { Recipe::find(path); }), {"nibble_recipe_test.json"});
  std::remove(path.c_str());
  expect_mentions(message_of<UsageError>([&] { Recipe::find(path); }),
                  {"nibble_recipe_test.json", "quik-4b"});
  expect_mentions(message_of<UsageError>([&] { Recipe::find("quik-5b"); }),
                  {"quik-5b", "quik-4b, quik-8b, rtn-w4a4"});
}

}  // namespace
}  // namespace nibble
