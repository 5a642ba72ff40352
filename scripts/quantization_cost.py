#!/usr/bin/env python3
"""What quantizing SmolLM2 costs, in forward passes of the float model over the same tokens.

  scripts/quantization_cost.py [--rounds 2] [--no-write]

A forward pass is `nibble perplexity` over the calibration tokens, less its start: the time of all windows less that of one,
scaled to all. Beside it, in turn: calibration with second moments and GPTQ (quik-4b), the gradients of the loss (squeezellm-3b)
and rounding (rtn-w4a16-g128), by the quantizer's own clock; and the peak memory of each process beside what --dry-run said.

Limits: calibration for GPTQ at most 2.5 forward passes beside the solver's own time, gradients at most 4, rounding at most 10 s,
memory at most the forecast. Exit code: 0 all hold, 1 not. Writes bench/results/quantization_cost_<machine>.txt unless told not to.
SmolLM2 is read from $NIBBLE_SMOLLM2 or models/ (scripts/fetch_smollm2.sh gets it).
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from accuracy_gates import REFERENCE, model_path
from measure import PROGRAM, ROOT, SMOLLM2, nibble

LENGTH = 512
# Recipe, what is timed, the limit and its unit.
COSTS = [("quik-4b", "calibration_seconds", 2.5, "forwards"),
         ("squeezellm-3b", "sensitivity_seconds", 4.0, "forwards"),
         ("rtn-w4a16-g128", "seconds", 10.0, "s")]


def run(arguments):
    """JSON of `nibble ARGUMENTS --json`, seconds of the process, and the most memory it held in bytes.

    Memory is sampled every 10 ms and leaves out pages of mapped files, which the system may drop.
    """
    started = time.monotonic()
    process = subprocess.Popen([str(a) for a in [PROGRAM, *arguments, "--json"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        match = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, 1024 * int(match.group(1)) if match else 0)
        time.sleep(0.01)
    if process.returncode != 0:
        raise measure.CommandFailed(f"nibble {' '.join(map(str, arguments))} ended with {process.returncode}")
    return json.loads(process.stdout.read()), time.monotonic() - started, peak


def shown(argument, output):
    if argument == output:
        return "OUT"
    return measure.relative(argument) if isinstance(argument, Path) else str(argument)


def forward_seconds(model, ids):
    """Of one pass of the float model over all windows of `ids`."""
    arguments = ["perplexity", model, "--ids-file", ids, "-c", LENGTH]
    _, one, _ = run([*arguments, "--windows", 1])
    everything, all_, _ = run(arguments)
    windows = everything["windows"]
    return (all_ - one) * windows / (windows - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=2, help="of all measurements, in turn (2)")
    parser.add_argument("--no-write", action="store_true", help="only print")
    options = parser.parse_args()
    model = model_path(SMOLLM2)
    ids = ROOT / json.loads(REFERENCE.read_text())["models"][SMOLLM2]["calibration"]
    forwards, results, memory, commands = [], {c[0]: [] for c in COSTS}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        for round_ in range(options.rounds):
            forwards.append(forward_seconds(model, ids))
            print(f"round {round_ + 1}: one forward pass {forwards[-1]:.1f} s", file=sys.stderr)
            for recipe, key, _, _ in COSTS:
                arguments = ["quantize", model, "-o", output, "--recipe", recipe, "--calib-ids", ids, "--calib-length", LENGTH, "--force"]
                result, seconds, peak = run(arguments)
                results[recipe].append({**result, "process_seconds": seconds})
                forecast = nibble(*[a for a in arguments if a not in ("--force",)], "--dry-run") if round_ == 0 else None
                if forecast:
                    memory[recipe] = {"forecast": forecast["peak_memory_bytes"], "peak": peak}
                    commands.append("build/nibble " + " ".join(shown(a, output) for a in arguments))
                memory[recipe]["peak"] = max(memory[recipe]["peak"], peak)
                print(f"round {round_ + 1}: {recipe}: {key} {result[key]:.1f}", file=sys.stderr)
    forward = statistics.median(forwards)
    rows = [["recipe", "what", "seconds", "forward passes", "limit", "solver s", "whole s", "peak MB", "forecast MB", ""]]
    failed = False
    for recipe, key, limit, unit in COSTS:
        median = {k: statistics.median(r[k] for r in results[recipe]) for k in (key, "solver_seconds", "process_seconds")}
        cost = median[key] / forward if unit == "forwards" else median["process_seconds"]
        holds = cost <= limit and memory[recipe]["peak"] <= memory[recipe]["forecast"]
        failed = failed or not holds
        rows.append([recipe, key.replace("_seconds", "").replace("seconds", "all"), f"{median[key]:.1f}", f"{median[key] / forward:.2f}",
                     f"{limit:g} {unit}", f"{median['solver_seconds']:.1f}", f"{median['process_seconds']:.1f}",
                     f"{memory[recipe]['peak'] / 1e6:.0f}", f"{memory[recipe]['forecast'] / 1e6:.0f}", "holds" if holds else "FAILED"])
    text = "\n".join([f"what quantizing {SMOLLM2} costs; calibration on 32 sequences of {LENGTH} tokens, medians of {options.rounds} rounds", "",
                      *measure.machine_lines(), "",
                      f"one forward pass of the float model over the same tokens: {forward:.1f} s ({', '.join(f'{f:.1f}' for f in forwards)})", "",
                      *measure.table(rows, align="<<>>>>>>><"), "", "commands:", "  scripts/quantization_cost.py, which runs in turn",
                      f"  build/nibble perplexity {measure.relative(model)} --ids-file {measure.relative(ids)} -c {LENGTH}",
                      *(f"  {c}" for c in commands)]) + "\n"
    print(text, end="")
    if not options.no_write:
        path = measure.RESULTS / f"quantization_cost_{measure.machine_slug()}.txt"
        path.write_text(text)
        print(f"written to {measure.relative(path)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    measure.main_guard(main)
