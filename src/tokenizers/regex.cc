#include "tokenizers/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "base/error.h"
#include "io/printable.h"
#include "tokenizers/onig_syntax.h"
#include "tokenizers/unicode.h"

namespace nibble {
namespace {

// Backtracking steps allowed for a subject: enough for the patterns in use on any input, far below what an
// exponential pattern would take.
constexpr uint32_t kBaseMatchLimit = 10'000'000;
constexpr size_t kStepsPerByte = 64;
constexpr uint32_t kHeapLimitKib = 1u << 20;
constexpr size_t kJitStackBytes = size_t{64} << 20;

std::string pcre_message(int code) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(code, text, sizeof text) < 0) return "unknown error";
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Regex::State {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string pattern;  // as given, for messages
  std::string source;

  ~State() { pcre2_code_free(code); }
};

Regex::Regex(std::string_view pattern, const std::string& source) : state_(std::make_unique<State>()) {
  state_->pattern = printable(pattern);
  state_->source = source;
  const std::string translated = translate_onig_pattern(pattern, source);

  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (context == nullptr) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 100);
  // Ruby's ^ and $ always match at lines.
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE offset = 0;
  state_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), kOptions,
                               &error, &offset, context.get());
  if (state_->code == nullptr) {
    fail("{}: regular expression '{}': {}", source, state_->pattern, pcre_message(error));
  }
  // Where the machine or its policy has no JIT, matching works without, slower.
  state_->jit = pcre2_jit_compile(state_->code, PCRE2_JIT_COMPLETE) == 0;
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

struct RegexMatcher::Scratch {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;

  ~Scratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack != nullptr) pcre2_jit_stack_free(stack);
  }
};

RegexMatcher::RegexMatcher(const Regex& regex) : regex_(regex), scratch_(std::make_unique<Scratch>()) {
  scratch_->data = pcre2_match_data_create(1, nullptr);
  scratch_->context = pcre2_match_context_create(nullptr);
  if (scratch_->data == nullptr || scratch_->context == nullptr) throw std::bad_alloc();
  pcre2_set_heap_limit(scratch_->context, kHeapLimitKib);
}

RegexMatcher::~RegexMatcher() = default;

void RegexMatcher::start(std::string_view subject) {
  subject_ = subject;
  from_ = 0;
  previous_end_ = SIZE_MAX;
  const size_t limit =
      std::max<size_t>(kBaseMatchLimit, std::min<size_t>(UINT32_MAX, kStepsPerByte * subject.size()));
  pcre2_set_match_limit(scratch_->context, static_cast<uint32_t>(limit));
}

int RegexMatcher::match(size_t from) {
  const auto run = [&](uint32_t options) {
    return pcre2_match(regex_.state_->code, reinterpret_cast<PCRE2_SPTR>(subject_.data()), subject_.size(),
                       from, PCRE2_NO_UTF_CHECK | options, scratch_->data, scratch_->context);
  };
  int result = run(0);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT && scratch_->stack == nullptr) {
    scratch_->stack = pcre2_jit_stack_create(size_t{1} << 16, kJitStackBytes, nullptr);
    if (scratch_->stack != nullptr) {
      pcre2_jit_stack_assign(scratch_->context, nullptr, scratch_->stack);
      result = run(0);
    }
  }
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(PCRE2_NO_JIT);
  if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
    fail("{}: regular expression '{}' failed on {} bytes of text: {}", regex_.state_->source,
         regex_.state_->pattern, subject_.size(), pcre_message(result));
  }
  return result;
}

bool RegexMatcher::next(size_t& begin, size_t& end) {
  while (from_ <= subject_.size()) {
    if (match(from_) == PCRE2_ERROR_NOMATCH) break;
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(scratch_->data);
    const size_t first = span[0], last = span[1];
    // \K in a lookahead can make a match end before it starts.
    if (last < first) {
      fail("{}: regular expression '{}' yields a match that ends before it starts", regex_.state_->source,
           regex_.state_->pattern);
    }
    if (first == last && last == previous_end_) {
      from_ += from_ < subject_.size() ? utf8_length(subject_[from_]) : 1;
      continue;
    }
    begin = first;
    end = last;
    from_ = previous_end_ = last;
    return true;
  }
  from_ = subject_.size() + 1;
  return false;
}

}  // namespace nibble
