#!/usr/bin/env python3
"""Writes README.md's result tables from the reports in bench/results.

  scripts/update_readme_table.py [--check] [--machine SLUG]

--check changes nothing and fails when README.md is not what this would write. With results of several machines, --machine
names the one to show (the end of the file name: accuracy_<SLUG>.json); otherwise the newest commit's is shown.
"""

import argparse
import json
import subprocess
import sys

import measure
from measure import RESULTS, ROOT

BEGIN, END = "<!-- results:begin", "<!-- results:end -->"
RECIPES = ["quik-8b", "quik-4b", "rtn-w4a4"]


def newest(paths):
    def committed(path):
        done = subprocess.run(["git", "-C", str(ROOT), "log", "-1", "--format=%ct", "--", str(path)], capture_output=True, text=True)
        return int(done.stdout.strip() or 2**62)  # not committed yet: newest of all
    return max(paths, key=lambda path: (committed(path), path.name))


def find_result(prefix, suffix, machine, suits=lambda path: True):
    paths = [path for path in sorted(RESULTS.glob(f"{prefix}{machine or '*'}{suffix}")) if suits(path)]
    return newest(paths) if paths else None


def accuracy_lines(path):
    record = json.loads(path.read_text())
    reference = json.loads((ROOT / "bench" / "reference" / "accuracy.json").read_text())["models"]
    lines = []
    for name, result in record["models"].items():
        protocol = reference[name]
        lines += [f"**{name}**, {protocol['windows']} windows of {protocol['window']} tokens of `tests/fixtures/text/valid.txt`:",
                  "", "| | bits per weight | perplexity | KL to the original | same top token | multiply-adds by weight bits |",
                  "|---|---|---|---|---|---|"]
        floating = result["float"]
        lines.append(f"| original, in float | 16 | {floating['perplexity']:.2f} ± {floating['perplexity_stderr']:.2f} | 0 | 100 % | |")
        for recipe in RECIPES:
            row = result["recipes"].get(recipe)
            if row:
                lines.append(f"| `{recipe}` | {row['bits_per_weight']:.2f} | {row['perplexity']:.2f} ± {row['perplexity_stderr']:.2f} "
                             f"| {row['kl_divergence']:.4f} ± {row['kl_stderr']:.4f} | {100 * row['top1_agreement']:.1f} % "
                             f"| {measure.shares(row['mac_share'])} |")
        lines.append("")
    lines.append(f"± is one standard error, clustered by window. Commands, machine and the independent reference's rows: "
                 f"[{measure.relative(path.with_suffix('.txt'))}]({measure.relative(path.with_suffix('.txt'))}) (`make accuracy`).")
    return lines


def peer_rows(path):
    """The two summary rows of a report of bench/peer_compare.py; none of other reports."""
    rows = [line.split() for line in path.read_text().splitlines() if line.split()[:1] and line.split()[0][:2] in ("pp", "tg")]
    return [row for row in rows if len(row) == 5 and row[0][2:].isdigit()]


def peer_lines(path):
    lines = ["", "Tokens per second beside llama.cpp's Q4_0 of the same model, in alternating runs (SmolLM2, `quik-4b`):", "",
             "| | llama.cpp | nibble | ratio |", "|---|---|---|---|"]
    for name, theirs, ours, ratio, _ in peer_rows(path):
        what = f"prompt of {name[2:]} tokens" if name.startswith("pp") else f"decoding {name[2:]} tokens"
        lines.append(f"| {what} | {theirs} | {ours} | {ratio} |")
    link = measure.relative(path)
    return [*lines, "", f"Every round, versions, commands and machine: [{link}]({link}) (`make bench-peer`)."]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--machine", default="")
    options = parser.parse_args()
    accuracy = find_result("accuracy_", ".json", options.machine)
    if accuracy is None:
        raise measure.CommandFailed(f"no {measure.relative(RESULTS)}/accuracy_*.json; 'make accuracy' writes it")
    peer = find_result("peer-", ".txt", options.machine, peer_rows)

    lines = accuracy_lines(accuracy) + (peer_lines(peer) if peer else [])
    readme = ROOT / "README.md"
    text = readme.read_text()
    begin, end = text.index("\n", text.index(BEGIN)) + 1, text.index(END)
    updated = text[:begin] + "\n".join(lines) + "\n" + text[end:]
    if options.check:
        if updated != text:
            print("update_readme_table: README.md does not show the newest results", file=sys.stderr)
        return int(updated != text)
    readme.write_text(updated)
    print("README.md shows " + ", ".join(measure.relative(path) for path in (accuracy, peer) if path))
    return 0


if __name__ == "__main__":
    measure.main_guard(main)
