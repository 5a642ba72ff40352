#!/usr/bin/env bash
# CUDA: what `nibble doctor` says of this machine's GPUs is what the driver's own tool says.
#
#   check_gpu.sh PROGRAM
#
# Exit code: 0 it is, 1 it is not, 77 skipped (no NVIDIA GPU, or no nvidia-smi to compare with).
set -uo pipefail
program=$1

if ! command -v nvidia-smi >/dev/null || ! names=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null) ||
  [ -z "$names" ]; then
  echo "SKIPPED: no NVIDIA GPU here"
  exit 77
fi
told=$("$program" doctor --json) || { echo "FAILED: doctor ended with exit code $?"; exit 1; }
while IFS= read -r name; do
  if [[ $told != *"\"$name\""* ]]; then
    echo "FAILED: nvidia-smi lists '$name', doctor does not: $told"
    exit 1
  fi
done <<< "$names"
echo "doctor lists $(wc -l <<< "$names") GPU(s): $names"
