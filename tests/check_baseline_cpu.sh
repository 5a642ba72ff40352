#!/usr/bin/env bash
# The program starts and computes on any x86-64: run under an emulated Nehalem (2008: no AVX, no FMA, no F16C), it writes the
# same tokens as the scalar path does natively, and refuses a forced path that such a machine lacks.
#
#   check_baseline_cpu.sh PROGRAM FIXTURES
#
# Exit code: 0 it does, 1 it does not, 77 skipped (no qemu-x86_64, Debian package qemu-user).
set -uo pipefail
program=$1
model=$2/tiny/llama

if ! command -v qemu-x86_64 >/dev/null; then
  echo "SKIPPED: no qemu-x86_64 (Debian package qemu-user)"
  exit 77
fi
old_machine=(qemu-x86_64 -cpu Nehalem "$program")
run=(run "$model" -p "Hello world" -n 8 --temp 0 --ignore-eos -t 2 --json)

native=$(NIBBLE_CPU=scalar "$program" "${run[@]}") || { echo "FAILED: the scalar path does not run"; exit 1; }
emulated=$("${old_machine[@]}" "${run[@]}") || { echo "FAILED: does not run on a Nehalem (exit code $?)"; exit 1; }
# Times differ from run to run; the tokens may not.
ids() { grep -o '"output_ids":\[[0-9,]*\]' <<< "$1"; }
[ -n "$(ids "$native")" ] || { echo "FAILED: no output_ids in: $native"; exit 1; }
if [ "$(ids "$native")" != "$(ids "$emulated")" ]; then
  printf 'FAILED: scalar path: %s\n        on a Nehalem: %s\n' "$(ids "$native")" "$(ids "$emulated")"
  exit 1
fi
"${old_machine[@]}" doctor >/dev/null || { echo "FAILED: doctor does not run on a Nehalem (exit code $?)"; exit 1; }

message=$(NIBBLE_CPU=avx2 "${old_machine[@]}" "${run[@]}" 2>&1 >/dev/null)
code=$?
if [ "$code" -ne 1 ] || [[ $message != *avx2* ]]; then
  echo "FAILED: NIBBLE_CPU=avx2 on a Nehalem gave exit code $code, expected 1 and a message that names avx2: $message"
  exit 1
fi
echo "a Nehalem computes the same: $(ids "$emulated")"
