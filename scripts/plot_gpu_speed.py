#!/usr/bin/env python3
"""Draws docs/images/gpu-speed.svg from bench/results/h100: how many times as fast as FP16 on the same card.

  scripts/plot_gpu_speed.py [OUTPUT]

Three panels: the four linears of a layer at one token (w4a16.txt), with MARLIN's kernel and what reading the weights alone would
take; the same linears at 2048 tokens (quik_prompt.txt and a8_prompt.txt, medians of the invocations under steady load), with
cuBLASLt's bare INT8 product; whole models (whole_models.txt). Standard library only.
"""

import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "h100"
MODELS = {"llama-2-7b": "7B", "llama-2-13b": "13B", "llama-2-70b": "70B"}
# MARLIN's kernel measured by the same method on another H100 (its evict-first hint removed, which faults on Hopper).
MARLIN = {"llama-2-7b": 2.24, "llama-2-13b": 2.59, "llama-2-70b": 3.05}
COLOURS = ["#0072b2", "#b35900", "#0a7d6c", "#7a4fa3"]
PEER = "#8a9099"
PANEL, HEIGHT, LEFT, TOP, BOTTOM = 350, 300, 44, 46, 66


def one_token():
    """[(label, {model: ratio})] of W4A16 and MARLIN, and {model: ratio} of reading the weights and nothing else."""
    text = (RESULTS / "w4a16.txt").read_text()
    read = float(re.search(r"reading ([\d.]+) TB/s", text)[1])
    ours, floor = {}, {}
    for model, f16, us, ratio, rate in re.findall(r"^(llama-2-\w+) +1 +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) ", text, re.M):
        ours[model] = float(ratio)
        floor[model] = float(f16) / (float(us) * float(rate) / read)
    return [("MARLIN", MARLIN), ("nibble, W4A16", ours)], floor


def medians(file, until, pattern):
    """Of every column after the model, over the rows above the line that starts with `until`: [{model: ratio}]."""
    text = (RESULTS / file).read_text()
    rows = re.findall(pattern, text[:text.index(f"\n{until}")], re.M)
    return [{m: statistics.median(float(r[column]) for r in rows if r[0] == m) for m in MODELS}
            for column in range(1, len(rows[0]))]


def prompts():
    int8, quik8, quik4 = medians("quik_prompt.txt", "The same with --load 0",
                                 r"^(llama-2-\w+) +2048 +[\d.]+ +[\d.]+ +([\d.]+) \| +[\d.]+ +([\d.]+) .*?\| +[\d.]+ +([\d.]+) ")
    [fptq] = medians("a8_prompt.txt", "Before folding took", r"^(llama-2-\w+) +folded +2048 +[\d.]+ \| +[\d.]+ +([\d.]+) ")
    return [("cuBLASLt INT8, bare", int8), ("nibble, quik-8b", quik8), ("nibble, quik-4b", quik4), ("nibble, fptq", fptq)]


def whole_models():
    runs = {}
    for part in re.split(r"^(?=llama-)", (RESULTS / "whole_models.txt").read_text(), flags=re.M):
        head = re.match(r"(llama-2-\w+) on .*?, recipe ([\w-]+), .*?, (\d+) layers", part)
        prompt, decode = re.search(r"^prompt .*?: ([\d.]+) ms", part, re.M), re.search(r"^decode .*?: ([\d.]+) ms", part, re.M)
        if head and prompt and decode:
            runs[head[1], head[2], head[3]] = float(prompt[1]), float(decode[1])
    layers = {m: next(k[2] for k in runs if k[0] == m and k[1] == "none") for m in MODELS}
    def series(recipe, which):
        return {m: runs[m, "none", layers[m]][which] / runs[m, recipe, layers[m]][which] for m in MODELS}
    return [("prompt of 2048, quik-4b", series("quik-4b", 0)), ("prompt of 2048, fptq", series("fptq", 0)),
            ("decode at 2048, quik-4b", series("quik-4b", 1)), ("decode at 2048, W4A16", series("gptq-w4a16-g128", 1))]


def panel(left, title, groups, floor, top, out):
    def y(ratio):
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - ratio / top)
    out.append(f'<text x="{left}" y="24" class="title">{title}</text>')
    for tick in range(0, int(top) + 1):
        out.append(f'<line x1="{left}" x2="{left + PANEL - 60}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
                   f'class="{"unit" if tick == 1 else "grid"}"/>')
        out.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" class="tick" text-anchor="end">{tick}x</text>')
    width = (PANEL - 60) / len(MODELS)
    bar = min(26.0, (width - 14) / len(groups))
    for i, (model, name) in enumerate(MODELS.items()):
        middle = left + width * (i + 0.5)
        start = middle - bar * len(groups) / 2
        for j, (_, series) in enumerate(groups):
            x = start + j * bar
            out.append(f'<rect x="{x:.1f}" y="{y(series[model]):.1f}" width="{bar - 2:.1f}" '
                       f'height="{y(0) - y(series[model]):.1f}" fill="{colour(groups, j)}"/>')
            out.append(f'<text x="{x + bar / 2 - 1:.1f}" y="{y(series[model]) - 4:.1f}" class="value" '
                       f'text-anchor="middle">{series[model]:.2f}</text>')
        if floor:
            out.append(f'<line x1="{start:.1f}" x2="{start + bar * len(groups):.1f}" y1="{y(floor[model]):.1f}" '
                       f'y2="{y(floor[model]):.1f}" class="floor"/>')
        out.append(f'<text x="{middle:.1f}" y="{y(0) + 16:.1f}" class="tick" text-anchor="middle">{name}</text>')
    labels = [(label, colour(groups, j)) for j, (label, _) in enumerate(groups)] + ([("reading the weights", None)] if floor else [])
    for j, (label, fill) in enumerate(labels):
        at = HEIGHT - 36 + 15 * j
        out.append(f'<rect x="{left}" y="{at - 9}" width="10" height="10" fill="{fill}"/>' if fill else
                   f'<line x1="{left}" x2="{left + 10}" y1="{at - 4}" y2="{at - 4}" class="floor"/>')
        out.append(f'<text x="{left + 16}" y="{at}" class="tick">{label}</text>')


def colour(groups, j):
    others = sum(1 for label, _ in groups if not label.startswith(("nibble", "prompt", "decode")))
    return PEER if j < others else COLOURS[j - others]


def main():
    decode, floor = one_token()
    panels = [("One token, four linears", decode, floor), ("2048 tokens, four linears", prompts(), None),
              ("Whole models", whole_models(), None)]
    top = max(max(series.values()) for _, groups, f in panels for series in [g[1] for g in groups] + ([f] if f else [])) + 0.2
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + PANEL * len(panels)} {HEIGHT + 20}" role="img">',
           "<title>Speed on an H100 as multiples of FP16's</title>",
           "<style>text{font-family:sans-serif;font-size:11px;fill:#333}.title{font-size:13px;font-weight:bold}"
           ".value{font-size:9px}.grid{stroke:#ddd}.unit{stroke:#555}.floor{stroke:#c00;stroke-dasharray:4 3;stroke-width:1.5}</style>",
           '<rect width="100%" height="100%" fill="#fff"/>']
    for i, (title, groups, floor_of) in enumerate(panels):
        panel(LEFT + PANEL * i, title, groups, floor_of, top, out)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "gpu-speed.svg"
    path.write_text("\n".join([*out, "</svg>"]) + "\n")
    print(f"plot_gpu_speed: written to {path}")


if __name__ == "__main__":
    main()
