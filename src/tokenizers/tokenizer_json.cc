// Tokenizers from Hugging Face folders: tokenizer.json, and beside it tokenizer_config.json for what the
// model's authors changed since and for the names of special tokens.
#include <charconv>
#include <optional>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "io/gguf.h"
#include "io/mapped_file.h"
#include "io/printable.h"
#include "tokenizers/description.h"
#include "tokenizers/pipeline_tokenizer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

Json read_optional(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return Json::object();
  Json read = read_json_file(path);
  if (!read.is_object()) fail("{}: expected an object, found {}", path.string(), read.type_name());
  return read;
}

int64_t id_of(const Json& value, const std::string& token, const std::string& source) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT32_MAX) {
    fail("{}: token '{}' has id {}, expected 0 to {}", source, printable(token), value.dump(),
         kMaxVocabulary - 1);
  }
  if (!value.is_number_integer()) {
    fail("{}: token '{}' has an id that is {}, expected an integer", source, printable(token),
         value.type_name());
  }
  return value.get<int64_t>();
}

class FolderTokenizerBuilder {
 public:
  explicit FolderTokenizerBuilder(const fs::path& folder)
      : folder_(folder),
        source_((folder / "tokenizer.json").string()),
        config_path_(folder / "tokenizer_config.json"),
        json_(read_json_file(folder / "tokenizer.json")),
        config_(read_optional(config_path_)),
        special_map_(read_optional(folder / "special_tokens_map.json")) {
    if (!json_.is_object()) fail("{}: expected an object, found {}", source_, json_.type_name());
  }

  std::unique_ptr<Tokenizer> build() {
    parts_.source = source_;
    parts_.vocabulary = std::make_unique<Vocabulary>();
    build_model();
    parts_.normalizers = parse_normalizers(part("normalizer"), source_);
    parts_.pre_tokenizers = parse_pre_tokenizers(part("pre_tokenizer"), source_);
    parts_.decoders = parse_decoders(part("decoder"), source_);
    read_added_tokens();
    parts_.bos_id = named_token("bos_token");
    parts_.eos_id = named_token("eos_token");
    for (const char* key : {"unk_token", "pad_token"}) named_token(key);
    parts_.special.resize(static_cast<size_t>(parts_.vocabulary->size()));
    for (const AddedToken& token : added_) parts_.special[static_cast<size_t>(token.id)] = token.special;
    parts_.added = AddedTokens(std::move(added_), parts_.normalizers);
    build_post_processor();
    parts_.chat_template = read_chat_template();
    return make_pipeline_tokenizer(std::move(parts_));
  }

 private:
  const Json& part(const std::string& key) const {
    static const Json kNull;
    const auto found = json_.find(key);
    return found == json_.end() ? kNull : *found;
  }

  void build_model() {
    const Description model(part("model"), source_, "model");
    // Files from before version 0.9 of `tokenizers` leave the type out.
    const std::string type = model.string("type", model.find("merges") != nullptr ? "BPE" : "without a name");
    if (type != "BPE") fail("{}: type '{}' is not supported, expected BPE", model.name(), printable(type));
    const Json* vocab = model.find("vocab");
    if (vocab == nullptr || !vocab->is_object()) fail("{}: 'vocab' must be an object", model.name());
    parts_.vocabulary->reserve(vocab->size());
    for (const auto& [token, id] : vocab->items()) {
      if (token.empty()) continue;  // nothing is ever encoded to it
      parts_.vocabulary->add(token, id_of(id, token, model.name()), model.name());
    }

    const Json* lines = model.find("merges");
    if (lines == nullptr || !lines->is_array()) fail("{}: 'merges' must be an array", model.name());
    std::vector<std::pair<std::string_view, std::string_view>> merges;
    merges.reserve(lines->size());
    for (size_t i = 0; i < lines->size(); ++i) merges.push_back(parse_merge((*lines)[i], i, model.name()));

    BpeOptions options;
    options.unk_token = model.string("unk_token", "");
    options.fuse_unk = model.boolean("fuse_unk", false);
    options.byte_fallback = model.boolean("byte_fallback", false);
    options.ignore_merges = model.boolean("ignore_merges", false);
    options.continuing_subword_prefix = model.string("continuing_subword_prefix", "");
    options.end_of_word_suffix = model.string("end_of_word_suffix", "");
    parts_.model = make_bpe_model(*parts_.vocabulary, merges, std::move(options), model.name());
  }

  // "a b", or since version 0.20 ["a", "b"].
  static std::pair<std::string_view, std::string_view> parse_merge(const Json& line, size_t index,
                                                                   const std::string& source) {
    if (line.is_array() && line.size() == 2 && line[0].is_string() && line[1].is_string()) {
      return {line[0].get_ref<const std::string&>(), line[1].get_ref<const std::string&>()};
    }
    if (line.is_string()) {
      const std::string_view text = line.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
        return {text.substr(0, space), text.substr(space + 1)};
      }
    }
    fail("{}: merge {} is not two tokens", source, index);
  }

  void read_added_tokens() {
    if (const Json& list = part("added_tokens"); !list.is_null()) {
      if (!list.is_array()) fail("{}: 'added_tokens' must be an array", source_);
      for (size_t i = 0; i < list.size(); ++i) {
        const Description token(list[i], source_, format_text("added_tokens[{}]", i));
        const Json* id = token.find("id");
        if (id == nullptr) fail("{}: 'id' is missing", token.name());
        add_token(token, id_of(*id, token.string("content"), token.name()));
      }
    }
    // Tokens that tokenizer_config.json has on top.
    if (const auto found = config_.find("added_tokens_decoder");
        found != config_.end() && found->is_object()) {
      for (const auto& [key, value] : found->items()) {
        const Description token(value, config_path_.string(), "added_tokens_decoder." + printable(key, 20));
        int64_t id = -1;
        const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
        if (error != std::errc() || end != key.data() + key.size())
          fail("{}: the key is not an id", token.name());
        if (!is_added(token.string("content"))) add_token(token, id);
      }
    }
  }

  bool is_added(std::string_view content) const {
    return added_ids_.contains(parts_.vocabulary->find(content));
  }

  // The id that a token has in the model's vocabulary counts, as in the `tokenizers` library.
  void add_token(const Description& description, int64_t id) {
    AddedToken token;
    token.content = description.string("content");
    if (token.content.empty()) return;
    token.special = description.boolean("special", false);
    token.normalized = description.boolean("normalized", !token.special);
    token.single_word = description.boolean("single_word", false);
    token.lstrip = description.boolean("lstrip", false);
    token.rstrip = description.boolean("rstrip", false);
    token.id = parts_.vocabulary->find(token.content);
    if (token.id < 0) {
      parts_.vocabulary->add(token.content, id, description.name());
      token.id = static_cast<int32_t>(id);
    } else if (token.id != id) {
      log_warning("{}: token '{}' has id {}, but {} in the vocabulary, which counts", description.name(),
                  printable(token.content), id, token.id);
    }
    added_ids_.insert(token.id);
    added_.push_back(std::move(token));
  }

  // The name in one of the configuration files: a string, or an object with "content". Nothing when the key
  // is missing in all, an empty name when it is null.
  std::optional<std::string> token_name(const std::string& key) const {
    for (const Json* config : {&config_, &special_map_}) {
      const auto found = config->find(key);
      if (found == config->end()) continue;
      if (found->is_null()) return "";
      if (found->is_string()) return found->get<std::string>();
      if (found->is_object() && found->contains("content") && (*found)["content"].is_string()) {
        return (*found)["content"].get<std::string>();
      }
      fail("{}: '{}' must be a string or an object with 'content'", config_path_.string(), key);
    }
    return std::nullopt;
  }

  // The id of a named special token, which counts as special from then on; -1 when there is none.
  int32_t named_token(const std::string& key) {
    const std::optional<std::string> name = token_name(key);
    if (!name) return id_from_config(key + "_id");
    const int32_t id = parts_.vocabulary->find(*name);
    if (id < 0) return -1;
    if (!is_added(*name)) {
      AddedToken token;
      token.id = id;
      token.content = *name;
      token.special = true;
      added_ids_.insert(id);
      added_.push_back(std::move(token));
    }
    return id;
  }

  // "eos_token_id" of generation_config.json or config.json, the first one of a list.
  int32_t id_from_config(const std::string& key) const {
    for (const char* file : {"generation_config.json", "config.json"}) {
      const Json config = read_optional(folder_ / file);
      auto found = config.find(key);
      if (found == config.end() || found->is_null()) continue;
      const Json& value = found->is_array() && !found->empty() ? found->front() : *found;
      if (value.is_number_integer() && value.get<int64_t>() >= 0 &&
          value.get<int64_t>() < parts_.vocabulary->size()) {
        return value.get<int32_t>();
      }
    }
    return -1;
  }

  // transformers rebuilds the post-processor when tokenizer_config.json says whether to add BOS or EOS.
  void build_post_processor() {
    const std::string name = config_path_.string();
    const auto given = [&](const char* key) { return config_.contains(key) && !config_[key].is_null(); };
    if (!given("add_bos_token") && !given("add_eos_token")) {
      parts_.post_processor = parse_post_processor(part("post_processor"), *parts_.vocabulary, source_);
      return;
    }
    if (json_bool(config_, "add_bos_token", false, name) && parts_.bos_id >= 0) {
      parts_.post_processor.prefix.push_back(parts_.bos_id);
    }
    if (json_bool(config_, "add_eos_token", false, name) && parts_.eos_id >= 0) {
      parts_.post_processor.suffix.push_back(parts_.eos_id);
    }
  }

  // chat_template.jinja, or "chat_template": a string, or a list of {"name", "template"} of which "default"
  // counts.
  std::string read_chat_template() const {
    const fs::path path = folder_ / "chat_template.jinja";
    std::error_code error;
    if (fs::is_regular_file(path, error) && fs::file_size(path, error) > 0) {
      const auto file = MappedFile::open(path);
      return {reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()};
    }
    const auto found = config_.find("chat_template");
    if (found == config_.end() || found->is_null()) return "";
    if (found->is_string()) return found->get<std::string>();
    std::string first;
    if (found->is_array()) {
      for (size_t i = 0; i < found->size(); ++i) {
        const Description item((*found)[i], config_path_.string(), format_text("chat_template[{}]", i));
        std::string text = item.string("template");
        if (item.string("name") == "default") return text;
        if (i == 0) first = std::move(text);
      }
      return first;
    }
    fail("{}: 'chat_template' is {}, expected a string or an array", config_path_.string(),
         found->type_name());
  }

  fs::path folder_;
  std::string source_;
  fs::path config_path_;
  Json json_, config_, special_map_;
  TokenizerParts parts_;
  std::vector<AddedToken> added_;
  std::unordered_set<int32_t> added_ids_;
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_folder(const fs::path& folder) {
  std::error_code error;
  if (fs::exists(folder / "tokenizer.json", error)) return FolderTokenizerBuilder(folder).build();
  // What a nibble folder keeps of a GGUF source.
  if (const fs::path kept = folder / "tokenizer.gguf"; fs::exists(kept, error)) return open(kept);
  if (fs::exists(folder / "tokenizer.model", error)) {
    fail(
        "{}: has tokenizer.model but no tokenizer.json; SentencePiece models are not read: save the "
        "tokenizer with "
        "transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...)) to get a tokenizer.json",
        folder.string());
  }
  fail("{}: has no tokenizer.json", folder.string());
}

}  // namespace nibble
