#!/usr/bin/env python3
"""Prints the demo's table from the JSON objects that scripts/demo.sh collected.

  scripts/demo_table.py FOLDER MODEL RECIPE WINDOW WINDOWS TEXT BENCH_OPTIONS
"""

import json
import sys
from collections import Counter
from pathlib import Path

import measure


def plus_minus(value, error, digits):
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def arithmetics(inspected):
    """'int4xint4->int32 in 180, int8xint8->int32 in 30', the most frequent first."""
    count = Counter(linear["arithmetic"] for linear in inspected["linears"])
    return [f"{name} in {n} linears" for name, n in count.most_common()]


def main():
    folder, model, recipe, window, windows, text, lengths = sys.argv[1:8]
    def read(name):
        return json.loads((Path(folder) / f"{name}.json").read_text())
    original, quantized = read("original_inspect"), read("quantized_inspect")
    before, after = read("original_perplexity"), read("quantized_perplexity")
    speed_before, speed_after = read("original_bench"), read("quantized_bench")

    rows = [["", "original", recipe]]
    rows.append(["perplexity (lower is better)", plus_minus(before["perplexity"], before["perplexity_stderr"], 2),
                 plus_minus(after["perplexity"], after["perplexity_stderr"], 2)])
    rows.append(["KL to the original, nats per token", "0", plus_minus(after["kl_divergence"], after["kl_stderr"], 4)])
    rows.append(["same most likely token", "100 %",
                 plus_minus(100 * after["top1_agreement"], 100 * after["top1_stderr"], 1) + " %"])
    both = (original, quantized)
    rows.append(["file", *(f"{x['file_bytes'] / 1e6:.1f} MB" for x in both)])
    rows.append(["  of its size in 16 bits", *(f"{100 * x['file_bytes'] / (2 * x['parameters']):.0f} %" for x in both)])
    rows.append(["  bits per weight (16-bit: 16)", *(f"{x['file_bits_per_weight']:.2f}" for x in both)])
    rows.append(["  in the blocks' linears", *(f"{x['bits_per_weight']:.2f}" for x in both)])
    for bits in sorted({int(b) for x in both for b in x["mac_share"]}):
        share = [x["mac_share"].get(str(bits), 0.0) for x in both]
        rows.append([f"multiply-adds with {bits}-bit weights", *(f"{100 * s:.1f} %" for s in share)])
    rows.append(["prompt, tokens/s", *(f"{x['prompt_tokens_per_second']:.0f}" for x in (speed_before, speed_after))])
    rows.append(["decode, tokens/s", *(f"{x['decode_tokens_per_second']:.1f}" for x in (speed_before, speed_after))])
    rows.append(["peak memory", *(f"{x['peak_memory_bytes'] / 1e6:.0f} MB" for x in (speed_before, speed_after))])

    print()
    print("\n".join(measure.table(rows)))
    print()
    for label, inspected in (("original", original), (recipe, quantized)):
        print(f"  arithmetic that ran, {label}: {'; '.join(arithmetics(inspected))}")
    print(f"  protocol: {windows} windows of {window} tokens of {text}, no special tokens, each window scored alone from its")
    print(f"  second token; errors are one standard error over windows; speed: nibble bench {lengths}, median,")
    print(f"  {' '.join(measure.cpu_model())}, {measure.threads()} cores")
    if model == measure.SMOLLM2:
        print()
        change = quantized["file_bytes"] / original["file_bytes"] - 1
        print("  To be fair: this GGUF's weights already are 4-bit numbers in groups of 32 (Q4_1), so 'original' is that model")
        print(f"  computed in float, and {recipe} quantizes it a second time. The file becomes {100 * abs(change):.0f} % "
              f"{'larger' if change > 0 else 'smaller'}, not four times")
        print("  smaller: in so small a model the columns kept in 16 bits weigh much. What changes is the arithmetic: 4-bit")
        print("  weights times 4-bit activations, summed in integers.")


if __name__ == "__main__":
    measure.main_guard(main)
