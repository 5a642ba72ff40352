#!/bin/sh
# usage: check_isa_objects.sh NM OBJECT...
# Objects compiled for one instruction set must not define symbols that the linker may merge with those of other objects
# (inline functions, templates, vtables): the copy it keeps could hold instructions that the machine at hand does not have.
set -eu
nm=$1
shift
if [ $# -eq 0 ]; then
  echo "no objects given" >&2
  exit 1
fi
status=0
for object in "$@"; do
  # W, w, V, v: weak definitions (lower case without an address is a reference); u: unique global.
  found=$("$nm" -C --defined-only "$object" | awk '$2 ~ /^[WwVvu]$/')
  if [ -n "$found" ]; then
    echo "$object defines symbols shared between objects:" >&2
    echo "$found" >&2
    status=1
  fi
done
[ $status -ne 0 ] || echo "$# objects, no shared symbols"
exit $status
