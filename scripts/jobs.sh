#!/usr/bin/env bash
# Prints how many compilers may run at once: one per core this process may use, but no more than memory allows (1.5 GiB
# each, which the heaviest translation unit under AddressSanitizer needs), and never fewer than one.
set -euo pipefail

cores=$(nproc)
memory_kib=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
for limit in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
  if [ -r "$limit" ] && bytes=$(cat "$limit") && [[ $bytes =~ ^[0-9]{1,15}$ ]] && [ $((bytes / 1024)) -lt "$memory_kib" ]; then
    memory_kib=$((bytes / 1024))
  fi
done
if [ -r /sys/fs/cgroup/cpu.max ]; then
  read -r quota period < /sys/fs/cgroup/cpu.max
  if [ "$quota" != max ] && [ $(((quota + period - 1) / period)) -lt "$cores" ]; then
    cores=$(((quota + period - 1) / period))
  fi
fi
jobs=$((memory_kib / 1572864))
[ "$jobs" -lt "$cores" ] || jobs=$cores
[ "$jobs" -ge 1 ] || jobs=1
echo "$jobs"
