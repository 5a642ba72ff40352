#!/usr/bin/env bash
# Installs the Debian packages that nibble needs and that are missing. Does nothing, at once, when all are there.
#
#   scripts/install_dependencies.sh [--check] [build] [demo] [peer]
#
# Groups: build (default) compiles and tests; demo also fetches the demo's model with pip and prints its table with
# Python; peer also builds llama.cpp to compare with. --check only reports. Reads nothing from standard input.
# Exit code: 0 all are there (now), 1 something is missing; the message says what and the command that installs it.
set -euo pipefail

declare -A commands=([g++]=g++ [make]=make [cmake]=cmake [ninja-build]=ninja [ccache]=ccache [pkg-config]=pkg-config
                     [git]=git [python3]=python3 [clang-19]=clang-19)
build_packages=(g++ make cmake ninja-build ccache pkg-config git
                libcli11-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev
                libssl-dev libopenblas0 libgtest-dev libbenchmark-dev)
demo_packages=(python3 python3-pip)
peer_packages=(python3 python3-venv python3-dev)
# bench/peer_compare.py says why: Debian 12's g++ miscompiles llama.cpp's AMX code.
if grep -qsw amx_int8 /proc/cpuinfo; then peer_packages+=(clang-19); fi

check_only=false
packages=()
for argument in "${@:-build}"; do
  case "$argument" in
    --check) check_only=true ;;
    build) packages+=("${build_packages[@]}") ;;
    demo) packages+=("${demo_packages[@]}") ;;
    peer) packages+=("${peer_packages[@]}") ;;
    *) echo "install_dependencies: unknown group '$argument' (expected build, demo or peer)" >&2; exit 2 ;;
  esac
done
[ "${#packages[@]}" -gt 0 ] || packages=("${build_packages[@]}")

if ! command -v dpkg-query >/dev/null; then
  echo "install_dependencies: this is no Debian system, so packages are neither checked nor installed." >&2
  echo "  The equivalents of these Debian packages are needed: ${packages[*]}" >&2
  exit 0
fi

# A tool counts as there when its command is (people bring their own CMake or Python), a library when dpkg says so. One
# dpkg-query for all; unknown names are left out of its answer. "Provides" covers other builds of OpenBLAS.
is_there() {
  local package=$1
  if [ -n "${commands[$package]:-}" ]; then
    command -v "${commands[$package]}" >/dev/null
  elif [ "$package" = python3-pip ]; then
    python3 -m pip --version >/dev/null 2>&1
  elif [ "$package" = python3-venv ]; then
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1
  elif [ "$package" = python3-dev ]; then
    python3 -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' 2>/dev/null
  else
    [[ " $installed " == *" $package "* ]]
  fi
}
installed=$(dpkg-query -W -f='${db:Status-Abbrev}|${Package}|${Provides}\n' 2>/dev/null |
  awk -F'|' '$1 ~ /^.i/ {n = split($3, provided, ","); printf "%s ", $2
                         for (i = 1; i <= n; ++i) { split(provided[i], word, " "); printf "%s ", word[1] } }')

missing=()
for package in "${packages[@]}"; do
  is_there "$package" || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

install_command="apt-get install --no-install-recommends ${missing[*]}"
refuse() {
  echo "install_dependencies: missing Debian packages: ${missing[*]}" >&2
  echo "  $1" >&2
  echo "  To install them: sudo apt-get update && sudo $install_command" >&2
  exit 1
}
if $check_only; then
  refuse "Nothing was installed (--check)."
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || refuse "They cannot be installed from here: not root, and there is no sudo."
  as_root=(sudo)
  if ! sudo -n true 2>/dev/null; then
    # A person at a terminal may type the password (sudo asks on the terminal, not on standard input).
    if [ -n "${CI:-}" ] || ! [ -t 2 ]; then
      refuse "They cannot be installed from here: not root, and sudo asks for a password."
    fi
    echo "install_dependencies: sudo installs ${missing[*]}" >&2
  fi
fi

echo "install_dependencies: installing ${missing[*]}" >&2
apt_get() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Acquire::Retries=2 "$@" </dev/null
}
# An update that fails is no reason to stop: the lists at hand may do.
apt_get update >&2 || echo "install_dependencies: 'apt-get update' failed; trying with the lists at hand" >&2
apt_get install --no-install-recommends "${missing[@]}" >&2 ||
  refuse "apt-get could not install them (is there a network?); its messages are above."
hash -r
