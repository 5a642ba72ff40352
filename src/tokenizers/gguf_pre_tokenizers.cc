#include "tokenizers/gguf_pre_tokenizers.h"

#include <string_view>
#include <vector>

#include "base/error.h"
#include "io/printable.h"

namespace nibble {
namespace {

// The published tokenizer.json of the models: patterns applied one after the other, matches isolated.
enum class Family {
  kDefault,
  kGpt2,
  kDigitsGpt2,
  kFalcon,
  kBloom,
  kViking,
  kLlama3,
  kQwen2,
  kQwen35,
  kGpt4o,
  kTekken,
  kDeepseekLlm,
  kDeepseekCoder,
  kDeepseekV3,
  kBailing,
  kSeedCoder,
  kExaoneMoe,
};

struct Known {
  std::string_view name;
  Family family;
  bool ignore_merges = false, add_bos = false, nfc = false;
};

constexpr Known kKnown[] = {
    {"default", Family::kDefault},
    {"gpt-2", Family::kGpt2},
    {"phi-2", Family::kGpt2},
    {"mpt", Family::kGpt2, false, false, true},
    {"olmo", Family::kGpt2, false, false, true},
    {"jais", Family::kGpt2},
    {"gigachat", Family::kGpt2},
    {"a.x-4.0", Family::kGpt2},
    {"mellum", Family::kGpt2},
    {"exaone4", Family::kGpt2},
    {"trillion", Family::kGpt2},
    {"granite-docling", Family::kGpt2},
    {"smollm", Family::kDigitsGpt2},
    {"starcoder", Family::kDigitsGpt2},
    {"refact", Family::kDigitsGpt2},
    {"command-r", Family::kDigitsGpt2, false, false, true},
    {"codeshell", Family::kDigitsGpt2},
    {"exaone", Family::kDigitsGpt2},
    {"minerva-7b", Family::kDigitsGpt2},
    {"mellum2", Family::kDigitsGpt2},
    {"falcon", Family::kFalcon},
    {"bloom", Family::kBloom},
    {"poro-chat", Family::kBloom},
    {"gpt3-finnish", Family::kBloom},
    {"viking", Family::kViking},
    {"llama3", Family::kLlama3, true, true},
    {"llama-v3", Family::kLlama3, true, true},
    {"llama-bpe", Family::kLlama3, true, true},
    {"falcon3", Family::kLlama3, true, true},
    {"falcon-h1", Family::kLlama3, true, true},
    {"pixtral", Family::kLlama3, true, true},
    {"midm-2.0", Family::kLlama3, true, true},
    {"lfm2", Family::kLlama3, true, true},
    {"dbrx", Family::kLlama3},
    {"smaug-bpe", Family::kLlama3},
    {"glm4", Family::kLlama3},
    {"chatglm-bpe", Family::kLlama3},
    {"qwen2", Family::kQwen2, false, false, true},
    {"deepseek-r1-qwen", Family::kQwen2, false, false, true},
    {"megrez", Family::kQwen2, false, false, true},
    {"kormo", Family::kQwen2},
    {"stablelm2", Family::kQwen2},
    {"hunyuan", Family::kQwen2},
    {"grok-2", Family::kQwen2},
    {"solar-open", Family::kQwen2},
    {"qwen35", Family::kQwen35, false, false, true},
    {"gpt-4o", Family::kGpt4o},
    {"llama4", Family::kGpt4o},
    {"kanana2", Family::kGpt4o},
    {"minimax-m2", Family::kGpt4o},
    {"tekken", Family::kTekken, true, true},
    {"deepseek-llm", Family::kDeepseekLlm},
    {"deepseek-coder", Family::kDeepseekCoder},
    {"deepseek-v3", Family::kDeepseekV3},
    {"hunyuan-dense", Family::kDeepseekV3},
    {"joyai-llm", Family::kDeepseekV3},
    {"bailingmoe", Family::kBailing},
    {"bailingmoe2", Family::kBailing},
    {"llada-moe", Family::kBailing},
    {"seed-coder", Family::kSeedCoder},
    {"exaone-moe", Family::kExaoneMoe},
};

// Punctuation and the ASCII symbols: `tokenizers`' "Punctuation", contiguous.
constexpr const char* kPunctuation = R"([\p{P}$+<=>^`|~]+)";

constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen35Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|)"
    R"(\s+(?!\S)|\s+)";
constexpr const char* kGpt4oPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kBloomPattern =
    R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+)";
constexpr const char* kDeepseekLetters =
    R"(\s?[)"
    R"(\x{41}-\x{5A}\x{61}-\x{7A}\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF})"
    R"(\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}-\x{377}\x{37B}-\x{37D}\x{37F}\x{386})"
    R"(\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F})"
    R"(\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA})"
    R"(\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15})"
    R"(\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D})"
    R"(\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC})"
    R"(\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102})"
    R"(\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D})"
    R"(\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}-\x{2184})"
    R"(\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}-\x{2CF3}\x{A640}-\x{A66D})"
    R"(\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF})"
    R"(\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F})"
    R"(\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF})"
    R"(\x{1E900}-\x{1E943})"
    R"(]+)";
constexpr const char* kDeepseekSigns =
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)";
constexpr const char* kDeepseekHan = R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";

struct Patterns {
  std::vector<const char*> of_text;   // before bytes become characters
  std::vector<const char*> of_bytes;  // after
};

Patterns patterns_of(Family family) {
  switch (family) {
    case Family::kDefault:
      return {{R"([\p{P}$+<=>^~|]+)", kGpt2Pattern, R"(\p{N}+)", "[0-9][0-9][0-9]"}, {}};
    case Family::kGpt2:
      return {{kGpt2Pattern}, {}};
    case Family::kDigitsGpt2:
      return {{R"(\p{N})", kGpt2Pattern}, {}};
    case Family::kFalcon:
      return {{kPunctuation, kGpt2Pattern}, {R"(\p{N}+)", "[0-9][0-9][0-9]"}};
    case Family::kBloom:
      return {{kBloomPattern}, {}};
    case Family::kViking:
      return {{kBloomPattern, R"(\p{N})"}, {}};
    case Family::kLlama3:
      return {{kLlama3Pattern}, {}};
    case Family::kQwen2:
      return {{kQwen2Pattern}, {}};
    case Family::kQwen35:
      return {{kQwen35Pattern}, {}};
    case Family::kGpt4o:
      return {{kGpt4oPattern}, {}};
    case Family::kTekken:
      return {{kTekkenPattern}, {}};
    case Family::kDeepseekLlm:
      return {{R"([\r\n])", kDeepseekLetters, kDeepseekSigns, R"(\s+$)", kDeepseekHan, R"(\p{N}+)"}, {}};
    case Family::kDeepseekCoder:
      return {{R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kDeepseekHan, R"(\p{N})"}, {}};
    case Family::kDeepseekV3:
      return {{R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
               R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
               R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
              {}};
    case Family::kBailing:
      return {
          {R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"},
          {}};
    case Family::kSeedCoder:
      return {
          {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)"},
          {}};
    case Family::kExaoneMoe:
      return {{R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|)"
               R"( ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)"},
              {}};
  }
  return {};
}

}  // namespace

GgufPreTokenizer make_gguf_pre_tokenizer(const std::string& name, const std::string& source) {
  for (const Known& known : kKnown) {
    if (known.name != name) continue;
    GgufPreTokenizer made;
    made.ignore_merges = known.ignore_merges;
    made.add_bos = known.add_bos;
    if (known.nfc) made.normalizers.push_back(make_nfc_normalizer());
    const Patterns patterns = patterns_of(known.family);
    const auto add = [&](const char* pattern) {
      made.pre_tokenizers.push_back(make_split_pre_tokenizer(Regex(pattern, source)));
    };
    for (const char* pattern : patterns.of_text) add(pattern);
    made.pre_tokenizers.push_back(make_byte_level_pre_tokenizer(false));
    for (const char* pattern : patterns.of_bytes) add(pattern);
    return made;
  }
  fail("{}: tokenizer.ggml.pre is '{}', a pre-tokenizer that is not supported", source, printable(name));
}

}  // namespace nibble
