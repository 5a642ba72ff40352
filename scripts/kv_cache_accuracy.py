#!/usr/bin/env python3
"""Measures what key-value caches of 8 and 4 bits cost, as KL from the float model with a cache in F32.

  scripts/kv_cache_accuracy.py [--models NAME,...] [--no-write]

Protocol as in scripts/accuracy_gates.py: the first 200,000 characters of tests/fixtures/text/valid.txt without special
tokens, 40 windows of 512 tokens (fixtures: 256), each scored alone from its second token. Each model is measured as it is and
as quantized by quik-4b with its own calibration. Memory is of the cache of one sequence of 2048 tokens.

Writes bench/results/kv_cache_<machine>.txt unless told not to.
"""

import argparse
import json
import shutil
import sys

import measure
from accuracy_gates import REFERENCE, TEXT_CHARACTERS, model_path
from measure import ROOT, nibble

CACHES = [("f32", "f32"), ("f16", "f16"), ("q8", "q8"), ("q8", "q4"), ("q4", "q8"), ("q4", "q4")]
HEAD = ["keys", "values", "bits/value", "2048 tokens", "perplexity", "KL (nats)", "top-1 %"]
CONTEXT = 2048


def row_bytes(kind, head_dim):
    """Of one key or value of one head; src/kernels/cache_row.h has the layouts."""
    groups = (head_dim + 31) // 32
    return {"f32": 4 * head_dim, "f16": 2 * head_dim, "q8": head_dim + 2 * groups, "q4": 20 * groups}[kind]


def shape_of(folder):
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    return (config["num_hidden_layers"], config.get("num_key_value_heads", heads),
            config.get("head_dim") or config["hidden_size"] // heads)


def measure_model(model, source, shape, protocol, text, commands):
    layers, kv_heads, head_dim = shape
    rows = [HEAD]
    for keys, values in CACHES:
        got = nibble("perplexity", model, "-f", text, "-c", protocol["window"], "--chunks", protocol["windows"], "--no-special",
                     "--reference", source, "--cache-type-k", keys, "--cache-type-v", values, log=commands)
        size = row_bytes(keys, head_dim) + row_bytes(values, head_dim)
        rows.append([keys, values, f"{8 * size / (2 * head_dim):.2f}", f"{layers * kv_heads * CONTEXT * size / 2**20:.2f} MiB",
                     f"{got['perplexity']:.3f}", f"{got['kl_divergence']:.5f} +- {got['kl_stderr']:.5f}",
                     f"{100 * got['top1_agreement']:.2f}"])
    return rows


def main():
    reference = json.loads(REFERENCE.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(reference["models"]), help="comma-separated (default: all)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    folder = ROOT / "build" / "kv_cache"
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"valid_{TEXT_CHARACTERS}.txt"
    text.write_text(measure.VALID_TEXT.read_text(encoding="utf-8")[:TEXT_CHARACTERS], encoding="utf-8")

    lines = ["Accuracy of key-value caches by type: KL from the float model with a cache in F32", "",
             "command: scripts/kv_cache_accuracy.py", *measure.machine_lines(), ""]
    commands = []
    for name in options.models.split(","):
        if name not in reference["models"]:
            parser.error(f"unknown name '{name}' (expected one of {', '.join(reference['models'])})")
        protocol, source = reference["models"][name], model_path(name)
        quantized = folder / f"{name}-quik-4b"
        nibble("quantize", source, "-o", quantized, "--recipe", "quik-4b", "--calib-ids", ROOT / protocol["calibration"],
               "--embedding-bits", 16, "--force", log=commands)
        for title, model in [("float", source), ("quik-4b", quantized)]:
            rows = measure_model(model, source, shape_of(quantized), protocol, text, commands)
            lines += [f"{name}, {title}, {protocol['windows']} windows of {protocol['window']} tokens", "",
                      *measure.table(rows, "<<>>>>>"), ""]
    lines += ["Commands, in order", *[f"  {c}" for c in commands]]
    report = "\n".join(lines) + "\n"
    print(report)
    if not options.no_write:
        path = measure.RESULTS / f"kv_cache_{measure.machine_slug()}.txt"
        path.write_text(report)
        print(f"written to {measure.relative(path)}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    measure.main_guard(main)
