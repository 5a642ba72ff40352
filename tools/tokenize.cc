// nibble tokenize: text to token ids and back. Needs a tokenizer only: no weights, no known architecture.
#include "base/error.h"
#include "command.h"
#include "json_output.h"
#include "runtime/token_ids.h"
#include "tokenizers/tokenizer.h"

namespace nibble {
namespace {

struct TokenizeCommand {
  std::filesystem::path model, file;
  std::string prompt;
  bool from_file = false;
  bool no_special = false;
  bool decode = false;
};

int tokenize(const TokenizeCommand& options, const CommonOptions& common) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(options.model);
  const bool piped = !options.from_file && options.prompt == "-";
  const std::string source = options.from_file ? options.file.string() : piped ? "standard input" : "-p";
  const std::string text = options.from_file ? read_text(options.file)
                           : piped           ? read_text("-")
                                             : options.prompt;

  std::vector<int32_t> ids;
  std::string decoded;
  if (options.decode) {
    ids = parse_token_ids(text, source);
    check_token_ids(ids, tokenizer->vocabulary_size(), source);
    decoded = tokenizer->decode(ids, options.no_special);
  } else {
    ids = tokenizer->encode(text, {.add_special = !options.no_special});
  }
  if (common.json) {
    OrderedJson json = {{"ids", ids}};
    if (options.decode) json["text"] = decoded;
    write_json(json);
  } else if (options.decode) {
    write_output(decoded + "\n");
  } else {
    std::string line;
    for (const int32_t id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
    write_output(line + "\n");
  }
  return kExitDone;
}

}  // namespace

Action add_tokenize(CLI::App& command) {
  const auto common = add_common_options(command);
  const auto options = std::make_shared<TokenizeCommand>();
  add_model_argument(command, &options->model);
  auto* input =
      command.add_option_group("text", "What to turn into ids, or ids with --decode (one of these)");
  input->add_option("-p,--prompt", options->prompt, "The text itself; '-' reads it from standard input")
      ->type_name("TEXT");
  CLI::Option* file =
      input->add_option("-f,--file", options->file, "A file that holds it; '-' is standard input")
          ->type_name("FILE");
  input->require_option(1);
  command.add_flag(
      "--no-special", options->no_special,
      "Leave out the tokens that the tokenizer adds (BOS); with --decode, print no special tokens");
  command.add_flag("--decode", options->decode, "The input is token ids, the output their text");
  set_examples(command, {"nibble tokenize MODEL -p 'Hello world'",
                         "nibble tokenize MODEL --file text.txt --no-special --json",
                         "nibble tokenize MODEL --decode -p '19556 905'"});
  return [options, common, file] {
    common->apply();
    options->from_file = file->count() > 0;
    return tokenize(*options, *common);
  };
}

}  // namespace nibble
