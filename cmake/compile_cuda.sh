#!/usr/bin/env bash
# Runs a CUDA compile command and keeps what it said, ptxas' report of registers and spills among it, as
# OBJECT.log beside the object: tests/cuda/generated_code_test.cc reads both. Only the rest is shown.
#
#   compile_cuda.sh COMPILER ARGUMENTS... -o OBJECT
set -uo pipefail
object=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"
"$@" 2>"$object.log"
code=$?
grep -vE '^ptxas info|bytes stack frame|^$' "$object.log" >&2
exit "$code"
