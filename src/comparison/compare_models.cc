#include "comparison/compare_models.h"

#include <algorithm>
#include <new>

#include "backend/cpu/cpu_path.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "comparison/row_record.h"
#include "comparison/speed.h"
#include "models/linear_info.h"
#include "nibble/version.h"
#include "pipeline/digest.h"
#include "pipeline/forecast.h"
#include "pipeline/quantization_record.h"
#include "pipeline/quantize_model.h"
#include "runtime/model_facts.h"
#include "runtime/perplexity.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// The activation bits of most multiply-adds.
int64_t activation_bits(const Recipe& recipe, const ModelSpec& spec) {
  std::map<int64_t, double> counts;
  for (const LinearInfo& linear : list_linears(spec)) {
    const LinearSettings settings = recipe.settings_for(linear.name, linear.role);
    counts[settings.format == "dense" ? 16 : settings.activation_bits] +=
        static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features);
  }
  int64_t most = 16;
  for (const auto& [bits, count] : counts) {
    if (count > counts[most]) most = bits;
  }
  return most;
}

// A recipe's name as part of a file's.
std::string file_name_of(const std::string& name) {
  std::string result = name.substr(0, 60);
  for (char& c : result) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    if (!plain && c != '.') c = '_';
  }
  return result.empty() || result[0] == '.' ? "recipe" + result : result;
}

std::string text_hash(const std::string& text) { return sha256_hex(std::as_bytes(std::span(text))); }

// Tells how far everything is. Recipes are all alike for the estimate, which is made of those that are done.
class Schedule {
 public:
  Schedule(int64_t steps) : steps_(steps), started_(monotonic_seconds()) {}
  std::string begin(const std::string& name) {
    ++current_;
    std::string left;
    if (worked_ > 0) {
      const double each = seconds_ / static_cast<double>(worked_);
      left =
          format_text(", about {} left", format_seconds(each * static_cast<double>(steps_ - current_ + 1)));
    }
    log_info("[{}/{}] {}{}", current_, steps_, name, left);
    step_started_ = monotonic_seconds();
    return format_text("[{}/{}] {}:", current_, steps_, name);
  }
  // A step that found its work done says nothing about the others.
  void end(bool worked) {
    if (!worked) return;
    seconds_ += monotonic_seconds() - step_started_;
    ++worked_;
  }
  double elapsed() const { return monotonic_seconds() - started_; }

 private:
  int64_t steps_, current_ = 0, worked_ = 0;
  double started_, step_started_ = 0, seconds_ = 0;
};

class ComparisonRun {
 public:
  ComparisonRun(const CompareOptions& options, std::shared_ptr<ThreadPool> pool)
      : options_(options), pool_(std::move(pool)) {}
  CompareOutcome run();

 private:
  // A row with what is needed to make and measure it.
  struct Candidate {
    ComparisonRow row;
    const Recipe* recipe = nullptr;
    fs::path model;   // to measure
    fs::path record;  // beside it in the work folder
  };

  void open_source();
  void prepare_work_folder() const;
  std::string protocol_hash() const;
  void quantize(Candidate* candidate, bool* worked);
  // Fills quality and sizes in, from the record when it is of the same measurement.
  void measure(Candidate* candidate, bool* worked);
  void measure_source(Candidate* candidate, bool* worked);
  void run_source();
  void measure_tasks(const Engine& engine, ComparisonRow* row, std::vector<TaskResult>* source) const;
  void read_errors(const fs::path& folder, ComparisonRow* row) const;
  void clean_up(const std::vector<Candidate>& candidates) const;

  const CompareOptions& options_;
  std::shared_ptr<ThreadPool> pool_;
  std::unique_ptr<Engine> source_;  // until it has run
  ModelSpec spec_;
  std::vector<std::pair<std::string, std::string>> source_hashes_;
  ScoringWindows windows_;
  std::vector<Task> tasks_;
  std::string protocol_;  // hash of everything that quality depends on beside the model
  std::unique_ptr<RecordedReference> reference_;  // made when something must be measured against it
  std::vector<TaskResult> source_tasks_;
  CompareOutcome outcome_;
};

void ComparisonRun::open_source() {
  source_ = Engine::open(options_.model, pool_);
  if (source_->checkpoint().kind() == CheckpointKind::kNibble) {
    fail("{}: is quantized already; compare recipes on the model it was made from", options_.model.string());
  }
  spec_ = source_->model().spec();
  const int64_t longest = std::max(options_.prompt_tokens, options_.generated_tokens);
  if (!options_.program.empty() && longest > source_->context_length()) {
    fail("{}: {} tokens to measure speed with are more than the model's context of {}",
         options_.model.string(), longest, source_->context_length());
  }
  if (!options_.ids_file.empty()) {
    windows_ = ids_file_windows(*source_, options_.ids_file, options_.window.value_or(0),
                                options_.max_windows, options_.add_special);
  } else {
    windows_ = text_windows(*source_, options_.text,
                            {.window = options_.window.value_or(PerplexityOptions().window),
                             .max_windows = options_.max_windows,
                             .add_special = options_.add_special},
                            options_.text_name);
  }
  if (windows_.length > source_->context_length()) {
    fail("{}: windows of {} tokens are longer than the model's context of {}", options_.model.string(),
         windows_.length, source_->context_length());
  }
  for (const fs::path& path : options_.tasks) tasks_.push_back(read_task(path, options_.task_options));
  for (const Recipe& recipe : options_.recipes) {
    if (recipe_needs_calibration(recipe, spec_) && !names_a_source(options_.calibration)) {
      fail_usage(
          "recipe '{}' needs calibration text: give --calib FILE.txt, --calib-ids FILE.safetensors or "
          "--calib-random",
          recipe.name);
    }
  }
  source_hashes_ = hash_source(source_->checkpoint());
  protocol_ = protocol_hash();
}

void ComparisonRun::prepare_work_folder() const {
  std::error_code error;
  fs::create_directories(options_.work_folder, error);
  if (error || !fs::is_directory(options_.work_folder))
    fail("{}: cannot be made: {}", options_.work_folder.string(), error ? error.message() : "is no folder");
}

std::string ComparisonRun::protocol_hash() const {
  // The program's own hash stands for its version: a rebuilt one measures again.
  Json json = {{"program", sha256_hex_of_file("/proc/self/exe")},
               {"cpu_path", cpu_path_name(active_cpu_path())},
               {"source", source_hashes_},
               {"window", windows_.length},
               {"bos", windows_.bos},
               {"ids", sha256_hex(std::as_bytes(std::span(windows_.ids)))},
               {"add_bos", options_.evaluate_options.add_bos},
               {"truncate", options_.evaluate_options.truncate}};
  json["tasks"] = Json::array();
  for (size_t i = 0; i < tasks_.size(); ++i) {
    json["tasks"].push_back({task_shape_name(tasks_[i].shape), tasks_[i].name,
                             sha256_hex_of_file(options_.tasks[i]), options_.task_options.limit,
                             options_.task_options.shots});
  }
  return text_hash(json.dump());
}

void ComparisonRun::quantize(Candidate* candidate, bool* worked) {
  ComparisonRow& row = candidate->row;
  check_recipe(*candidate->recipe, spec_);
  row.activation_bits = activation_bits(*candidate->recipe, spec_);
  QuantizeOptions quantize = {.model = options_.model,
                              .recipe = *candidate->recipe,
                              .calibration = options_.calibration,
                              .embedding_bits = options_.embedding_bits,
                              .source_hashes = source_hashes_};
  row.fingerprint = quantization_fingerprint(quantize, *pool_);
  const std::string label = file_name_of(row.name) + "-" + row.fingerprint.substr(0, 12);
  candidate->model = quantize.output = options_.work_folder / label;
  candidate->record = options_.work_folder / (label + ".json");
  row.path = candidate->model.string();
  if (!options_.requantize && fs::exists(candidate->model)) {
    try {
      const QuantizationRecord record = read_quantization_record(Checkpoint::open(candidate->model));
      row.reused = record.fingerprint == row.fingerprint;
    } catch (const Error& error) {
      log_warning("{}; it is quantized again", error.what());
    }
  }
  if (row.reused) {
    log_info("{}: is there; used again", candidate->model.string());
    return;
  }
  *worked = true;
  quantize.force = true;
  quantize.resume = !options_.requantize && fs::exists(candidate->model.string() + ".partial");
  const QuantizeResult result = quantize_model(quantize, *pool_);
  // The time of what an earlier run did is not known.
  write_row_record(candidate->record,
                   {.quantize_seconds = result.resumed_blocks > 0 ? kNotMeasured : result.seconds});
}

void ComparisonRun::read_errors(const fs::path& folder, ComparisonRow* row) const {
  const Checkpoint checkpoint = Checkpoint::open(folder);
  if (checkpoint.kind() != CheckpointKind::kNibble) return;
  const QuantizationRecord record = read_quantization_record(checkpoint);
  for (const LinearInfo& linear : list_linears(spec_)) {
    if (const auto found = record.errors.find(linear.name); found != record.errors.end())
      row->layer_errors.push_back({linear.name, found->second.of_linear()});
  }
}

void ComparisonRun::run_source() {
  if (reference_) return;
  if (!source_) source_ = Engine::open(options_.model, pool_);
  log_info("{}: runs once; its hidden states ({}) serve every comparison", options_.model.string(),
           format_bytes(RecordedReference::bytes(spec_, windows_)));
  reference_ = record_reference(*source_, windows_);
  for (const Task& task : tasks_)
    source_tasks_.push_back(evaluate_task(*source_, task, options_.evaluate_options));
}

void ComparisonRun::measure_tasks(const Engine& engine, ComparisonRow* row,
                                  std::vector<TaskResult>* source) const {
  for (size_t i = 0; i < tasks_.size(); ++i) {
    TaskResult result;
    if (source == nullptr) {
      result = source_tasks_[i];
    } else {
      result = evaluate_task(engine, tasks_[i], options_.evaluate_options);
      compare_predictions((*source)[i], &result);
    }
    TaskAccuracy task = {.task = result.name,
                         .shape = std::string(task_shape_name(result.shape)),
                         .examples = result.examples,
                         .accuracy = {result.accuracy, result.accuracy_stderr}};
    if (result.has_norm) task.accuracy_norm = {result.accuracy_norm, result.accuracy_norm_stderr};
    if (result.has_perplexity) task.perplexity = {result.perplexity, result.perplexity_stderr};
    if (result.has_reference) task.agreement = {result.agreement, result.agreement_stderr};
    row->tasks.push_back(std::move(task));
  }
}

void fill_facts(const ModelFacts& facts, const Checkpoint& checkpoint, ComparisonRow* row) {
  row->bits_per_weight = facts.bits_per_weight();
  row->file_bytes = static_cast<double>(checkpoint.file_bytes());
  row->mac_share = facts.mac_share();
  row->arithmetic = facts.arithmetic_share();
}

// What a record tells goes into the row that was prepared for it.
void adopt(const RowRecord& record, ComparisonRow* row) {
  row->perplexity = record.row.perplexity;
  row->kl_divergence = record.row.kl_divergence;
  row->top1_agreement = record.row.top1_agreement;
  row->bits_per_weight = record.row.bits_per_weight;
  row->file_bytes = record.row.file_bytes;
  row->arithmetic = record.row.arithmetic;
  row->mac_share = record.row.mac_share;
  row->layer_errors = record.row.layer_errors;
  row->tasks = record.row.tasks;
}

void ComparisonRun::measure_source(Candidate* candidate, bool* worked) {
  const std::string key = text_hash(protocol_ + "source");
  RowRecord record = read_row_record(candidate->record);
  if (record.key == key && !options_.requantize) {
    adopt(record, &candidate->row);
    source_.reset();
    return;
  }
  *worked = true;
  run_source();
  ComparisonRow& row = candidate->row;
  row.perplexity = {reference_->result().perplexity, reference_->result().perplexity_stderr};
  fill_facts(model_facts(source_->checkpoint(), source_->model()), source_->checkpoint(), &row);
  measure_tasks(*source_, &row, nullptr);
  source_.reset();
  write_row_record(candidate->record, {.key = key, .row = row});
}

void ComparisonRun::measure(Candidate* candidate, bool* worked) {
  ComparisonRow& row = candidate->row;
  RowRecord record = read_row_record(candidate->record);
  row.quantize_seconds = record.quantize_seconds;
  const std::string key = text_hash(protocol_ + row.fingerprint);
  if (record.key == key && !options_.requantize) {
    log_info("{}: was measured already", row.name);
    adopt(record, &row);
    return;
  }
  *worked = true;
  if (!reference_) {
    run_source();
    source_.reset();
  }
  const std::unique_ptr<Engine> engine = Engine::open(candidate->model, pool_);
  const PerplexityResult result = measure_perplexity(*engine, windows_, *reference_);
  row.perplexity = {result.perplexity, result.perplexity_stderr};
  row.kl_divergence = {result.kl_divergence, result.kl_stderr};
  row.top1_agreement = {result.top1_agreement, result.top1_stderr};
  fill_facts(model_facts(engine->checkpoint(), engine->model()), engine->checkpoint(), &row);
  read_errors(candidate->model, &row);
  measure_tasks(*engine, &row, &source_tasks_);
  write_row_record(candidate->record, {.quantize_seconds = row.quantize_seconds, .key = key, .row = row});
}

// Only what this comparison put there, and the folder when nothing else is in it.
void ComparisonRun::clean_up(const std::vector<Candidate>& candidates) const {
  std::error_code ignored;
  for (const Candidate& candidate : candidates) {
    if (!candidate.record.empty()) fs::remove(candidate.record, ignored);
    if (candidate.row.kind != RowKind::kRecipe || candidate.model.empty()) continue;
    fs::remove_all(candidate.model, ignored);
    fs::remove_all(candidate.model.string() + ".partial", ignored);
  }
  fs::remove(options_.work_folder, ignored);
}

CompareOutcome ComparisonRun::run() {
  open_source();
  prepare_work_folder();
  const std::string name = options_.model.filename().empty()
                               ? options_.model.parent_path().filename().string()
                               : options_.model.filename().string();
  std::vector<Candidate> candidates;
  candidates.push_back(
      {.row = {.name = name, .description = "the source, not quantized", .kind = RowKind::kSource},
       .model = options_.model,
       .record = options_.work_folder / "source.json"});
  for (const fs::path& model : options_.models) {
    const std::string path_hash = text_hash(fs::absolute(model).string()).substr(0, 12);
    candidates.push_back({.row = {.name = model.string(), .kind = RowKind::kModel, .path = model.string()},
                          .model = model,
                          .record = options_.work_folder /
                                    (file_name_of(model.filename().string()) + "-" + path_hash + ".json")});
  }
  for (const Recipe& recipe : options_.recipes) {
    candidates.push_back({.row = {.name = recipe.name,
                                  .description = recipe.description,
                                  .kind = RowKind::kRecipe,
                                  .baseline = baseline_of_recipe(recipe.name)},
                          .recipe = &recipe});
  }

  Schedule schedule(static_cast<int64_t>(candidates.size()));
  try {
    for (Candidate& candidate : candidates) {
      throw_if_interrupted();
      const ProgressScope scope(schedule.begin(candidate.row.name));
      bool worked = false;
      if (candidate.row.kind == RowKind::kSource) {
        measure_source(&candidate, &worked);  // what fails here fails everywhere
        continue;
      }
      try {
        if (candidate.recipe != nullptr) {
          quantize(&candidate, &worked);
        } else {
          const Checkpoint checkpoint = Checkpoint::open(candidate.model);
          candidate.row.fingerprint = text_hash(Json(hash_source(checkpoint)).dump());
          if (checkpoint.kind() == CheckpointKind::kNibble) {
            const Recipe recipe =
                Recipe::from_json(read_quantization_record(checkpoint).recipe, candidate.model.string());
            candidate.row.activation_bits = activation_bits(recipe, spec_);
          }
        }
        measure(&candidate, &worked);
      } catch (const Interrupted&) {
        throw;
      } catch (const Error& error) {
        candidate.row.error = error.what();
      } catch (const std::bad_alloc&) {
        candidate.row.error = "out of memory";
      }
      if (candidate.row.failed()) {
        log_warning("{}: failed, left out: {}", candidate.row.name, candidate.row.error);
        ++outcome_.failures;
      }
      schedule.end(worked);
    }
    reference_.reset();  // its memory is not the measured models'
    if (!options_.program.empty()) {
      std::vector<SpeedTarget> targets;
      for (Candidate& candidate : candidates) {
        if (!candidate.row.failed()) targets.push_back({candidate.model, &candidate.row});
      }
      outcome_.failures += measure_speed(options_, pool_->size(), targets);
    }
  } catch (const Interrupted&) {
    log_info("what is finished is kept in {}; the same command goes on from there",
             options_.work_folder.string());
    throw;
  }
  log_debug("all measured in {}", format_seconds(schedule.elapsed()));

  Comparison& comparison = outcome_.comparison;
  comparison.model = name;
  comparison.text = options_.ids_file.empty() ? options_.text_name : options_.ids_file.filename().string();
  comparison.context = windows_.length;
  comparison.windows = windows_.windows;
  comparison.tokens = windows_.windows * (windows_.length - 1);
  comparison.special = windows_.bos >= 0;
  comparison.embedding_bits = options_.recipes.empty() ? 0 : options_.embedding_bits;
  if (names_a_source(options_.calibration)) {
    comparison.calibration = load_calibration_data(options_.calibration, spec_, options_.model).description;
  }
  if (!options_.program.empty()) {
    comparison.prompt_tokens = options_.prompt_tokens;
    comparison.generated_tokens = options_.generated_tokens;
    comparison.repetitions = options_.repetitions;
  }
  comparison.machine = format_text("{}, path {}, {} threads", cpu_description(),
                                   cpu_path_name(active_cpu_path()), pool_->size());
  comparison.program = std::string("nibble ") + kVersion;
  if (!options_.keep) clean_up(candidates);
  for (Candidate& candidate : candidates) {
    if (!options_.keep && candidate.row.kind == RowKind::kRecipe) candidate.row.path.clear();
    comparison.rows.push_back(std::move(candidate.row));
  }
  return std::move(outcome_);
}

}  // namespace

CompareOutcome compare_models(const CompareOptions& options, const std::shared_ptr<ThreadPool>& pool) {
  return ComparisonRun(options, pool).run();
}

}  // namespace nibble
