#!/usr/bin/env bash
# The rules of the tree itself, checked by ctest (tree.rules) and `make check`:
#   tracked files stay under 45 MiB together and 20 MiB each; sources stay under 700 lines; C++ is clang-format clean; no
#   file names a folder of somebody's machine, a private package host, or carries conflict markers; scripts are executable
#   and parse.
# Exit code: 0 all hold, 1 some do not (each is printed), 77 skipped (no git checkout).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

readonly max_tree_mib=45 max_file_mib=20 max_source_lines=700

if ! command -v git >/dev/null || ! git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  echo "check_tree: SKIPPED, this is no git checkout"
  exit 77
fi

failures=0
fail() {
  echo "check_tree: $*"
  failures=$((failures + 1))
}

# Tracked files that are there; a file deleted but not yet committed does not count.
mapfile -d '' -t tracked < <(git ls-files -z | while IFS= read -r -d '' file; do
  if [ -f "$file" ]; then printf '%s\0' "$file"; fi
done)
[ "${#tracked[@]}" -gt 0 ] || fail "git lists no files"

total=0
while read -r size file; do
  total=$((total + size))
  [ "$size" -le $((max_file_mib * 1048576)) ] || fail "$file has $((size / 1048576)) MiB; at most $max_file_mib"
done < <(stat -c '%s %n' -- "${tracked[@]}")
[ "$total" -le $((max_tree_mib * 1048576)) ] || fail "tracked files have $((total / 1048576)) MiB; at most $max_tree_mib"

sources=()
scripts=()
for file in "${tracked[@]}"; do
  case "$file" in
    *.cc | *.h | *.cu | *.cuh) sources+=("$file") ;;
    *.sh | .ci/run) scripts+=("$file") ;;
  esac
done
while read -r lines file; do
  if [ "$file" != total ] && [ "$lines" -gt "$max_source_lines" ]; then
    fail "$file has $lines lines; at most $max_source_lines"
  fi
done < <(wc -l -- "${sources[@]}")

for file in "${scripts[@]}"; do
  [ -x "$file" ] || fail "$file is not executable"
  bash -n "$file" || fail "$file does not parse"
done

# Folders that exist on one machine only, package hosts behind a login, and URLs that carry credentials. The patterns are
# written so that they do not match themselves.
machine_paths='(^|[^A-Za-z0-9_.$}/-])/(home|root|Users|work|workspace|mnt)/[A-Za-z0-9_.-]'
private_hosts='[a-z0-9-]+[.]pkg[.]dev|[a-z0-9.-]+[.](internal|corp)/|https?://[^/@ "]*:[^/@ "]*@'
while IFS= read -r hit; do
  fail "names a machine: ${hit:0:160}"
done < <(grep -InE "$machine_paths|$private_hosts" -- "${tracked[@]}")
while IFS= read -r hit; do
  fail "conflict marker: $hit"
done < <(grep -InE '^(<{7}|>{7}) ' -- "${tracked[@]}")

# Versions differ in details, so only the one that the tree is formatted with (Debian 12's) may judge it.
if clang-format --version 2>/dev/null | grep -q ' version 14[.]'; then
  while IFS= read -r file; do
    fail "$file is not formatted as .clang-format says (make format)"
  done < <(printf '%s\0' "${sources[@]}" |
    xargs -0 -P "$(nproc)" -n 1 bash -c 'clang-format "$0" | cmp -s - "$0" || printf "%s\n" "$0"' | sort)
else
  echo "check_tree: formatting SKIPPED, there is no clang-format 14 here"
fi

if [ "$failures" -gt 0 ]; then
  echo "check_tree: $failures rule(s) broken"
  exit 1
fi
echo "check_tree: ${#tracked[@]} files, $((total / 1048576)) MiB, ${#sources[@]} sources: all rules hold"
