#!/usr/bin/env python3
"""Quantizes by each recipe, measures against the float model, and compares with an independent reference.

  scripts/accuracy_gates.py [--models NAME,...] [--recipes NAME,...] [--keep] [--no-write]

The rows compared with are in bench/reference/accuracy.json. Protocol: the first 200,000 characters of
tests/fixtures/text/valid.txt without special tokens, 40 windows of 512 tokens (llama_outliers: 256), each scored alone
from its second token; calibration on the ids beside the fixtures; embedding and head stay at 16 bits.

A gate holds when perplexity is at most 2 % and KL at most 5 % above the reference's row (or three of their standard errors,
if that is more), when KL orders recipes as KL_ORDERS says (quik-8b < quik-4b < rtn-w4a4, ...), and when the float model's
perplexity is within 0.02 % of transformers'. A row's "set" are settings that the reference had and the recipe has not.
SmolLM2 is read from $NIBBLE_SMOLLM2 or models/ (scripts/fetch_smollm2.sh gets it).

Writes bench/results/accuracy_<machine>.txt and .json when everything was measured. Exit code: 0 all gates hold, 1 not.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import measure
from measure import ROOT, nibble

REFERENCE = ROOT / "bench" / "reference" / "accuracy.json"
TEXT_CHARACTERS = 200_000
RECIPE_ORDER = ["quik-8b", "quik-4b", "rtn-w4a4", "quik-4b-gptaq", "gptq-w4a16-g128", "rtn-w4a16-g128", "gptq-w3a16", "rtn-w3a16",
                "quik-8b-sparse", "quik-4b-sparse", "w4a4-hadamard",
                "mixed-2-4-16", "mixed-2-4", "fptq", "squeezellm-4b-sparse",
                "squeezellm-4b", "squeezellm-3b-lnq", "squeezellm-3b-sparse", "squeezellm-3b"]
# Within each, KL must rise.
KL_ORDERS = [["quik-8b", "quik-4b", "rtn-w4a4"], ["quik-4b-gptaq", "quik-4b"], ["gptq-w4a16-g128", "rtn-w4a16-g128"],
             ["gptq-w3a16", "rtn-w3a16"], ["quik-8b-sparse", "quik-4b-sparse"], ["quik-4b", "w4a4-hadamard", "rtn-w4a4"],
             ["mixed-2-4-16", "mixed-2-4"], ["quik-8b", "fptq"],
             ["squeezellm-4b-sparse", "squeezellm-4b", "squeezellm-3b-sparse", "squeezellm-3b"],
             ["squeezellm-3b-lnq", "squeezellm-3b"], ["squeezellm-3b-sparse", "gptq-w3a16"]]


def model_path(name):
    if name != measure.SMOLLM2:
        return ROOT / "tests" / "fixtures" / name
    path = Path(os.environ.get("NIBBLE_SMOLLM2") or ROOT / "models" / f"{name}.Q4_1.gguf")
    if not path.is_file():
        raise measure.CommandFailed(f"{path} is not there; scripts/fetch_smollm2.sh gets it, --models leaves it out")
    return path


class Gates:
    def __init__(self):
        self.lines = []
        self.failed = 0

    def check(self, what, holds, detail):
        self.lines.append(f"  {'holds ' if holds else 'FAILED'}  {what}: {detail}")
        self.failed += not holds
        print(self.lines[-1].strip(), file=sys.stderr)


def perplexity(model, text, window, windows, log, reference=None):
    extra = ["--reference", reference] if reference else []
    return nibble("perplexity", model, "-f", text, "-c", window, "--chunks", windows, "--no-special", *extra, log=log)


def check_float_path(reference, models, text, gates, commands):
    tolerance = reference["float_path"]["tolerance"]
    for row in reference["float_path"]["rows"]:
        if row["model"] not in models + ["qwen3"]:
            continue
        got = perplexity(model_path(row["model"]), text, row["window"], row["windows"], commands)["perplexity"]
        deviation = got / row["perplexity"] - 1
        gates.check(f"{row['model']}, float, {row['windows']} windows of {row['window']}", abs(deviation) <= tolerance,
                    f"perplexity {got:.4f}, transformers {row['perplexity']:.4f} ({100 * deviation:+.4f} %)")


def measure_recipe(name, protocol, recipe, text, folder, commands):
    """Quantizes model `name`, measures it, and returns one row of results."""
    source, output = model_path(name), folder / f"{name}-{recipe}"
    settings = [word for field in protocol["rows"][recipe].get("set", []) for word in ("--set", field)]
    started = time.monotonic()
    nibble("quantize", source, "-o", output, "--recipe", recipe, "--calib-ids", ROOT / protocol["calibration"],
           "--embedding-bits", 16, "--force", *settings, log=commands)
    seconds = time.monotonic() - started
    result = perplexity(output, text, protocol["window"], protocol["windows"], commands, reference=source)
    facts = nibble("inspect", output, log=commands)
    return {"recipe": recipe, "quantize_seconds": round(seconds, 1),
            **{key: result[key] for key in ("perplexity", "perplexity_stderr", "kl_divergence", "kl_stderr",
                                            "top1_agreement", "top1_stderr", "tokens", "windows")},
            **{key: facts[key] for key in ("bits_per_weight", "file_bits_per_weight", "file_bytes", "mac_share")}}


def check_recipe(name, row, wanted, gates):
    label = f"{name}, {row['recipe']}"
    for key, stderr, share, what in (("perplexity", "perplexity_stderr", 0.02, "perplexity"),
                                     ("kl_divergence", "kl_stderr", 0.05, "KL")):
        allowed = max(share * wanted[key], 3 * row[stderr])
        gates.check(f"{label}, {what}", row[key] <= wanted[key] + allowed,
                    f"{row[key]:.4f} +- {row[stderr]:.4f}, reference {wanted[key]:.4f} "
                    f"({100 * (row[key] / wanted[key] - 1):+.1f} %, {100 * allowed / wanted[key]:.1f} % allowed)")


def check_order(name, rows, gates):
    for order in KL_ORDERS:
        measured = [(r, rows[r]["kl_divergence"]) for r in order if r in rows]
        if len(measured) > 1:
            gates.check(f"{name}, order of KL", all(a[1] < b[1] for a, b in zip(measured, measured[1:])),
                        " < ".join(f"{r} {kl:.4f}" for r, kl in measured))


def accuracy_table(protocol, floating, rows):
    head = ["method", "bits/weight", "perplexity", "KL (nats)", "top-1 %", "reference: bits", "perplexity", "KL", "top-1 %"]
    lines = [["float", "16.000", f"{floating['perplexity']:.2f} +- {floating['perplexity_stderr']:.2f}", "0", "100",
              f"{protocol['float']['bits_per_weight']:.3f}", f"{protocol['float']['perplexity']:.2f}", "0", "100"]]
    for recipe in RECIPE_ORDER:
        if recipe not in rows:
            continue
        row, wanted = rows[recipe], protocol["rows"][recipe]
        lines.append([recipe, f"{row['bits_per_weight']:.3f}", f"{row['perplexity']:.2f} +- {row['perplexity_stderr']:.2f}",
                      f"{row['kl_divergence']:.4f} +- {row['kl_stderr']:.4f}", f"{100 * row['top1_agreement']:.2f}",
                      f"{wanted['bits_per_weight']:.3f}", f"{wanted['perplexity']:.2f}", f"{wanted['kl_divergence']:.4f}",
                      f"{100 * wanted['top1_agreement']:.2f}"])
    return measure.table([head, *lines])


def write_report(reference, results, gates, commands):
    measure.RESULTS.mkdir(parents=True, exist_ok=True)
    stem = measure.RESULTS / f"accuracy_{measure.machine_slug()}"
    lines = ["Accuracy of nibble's recipes beside an independent reference", ""]
    lines += ["command: make accuracy   (python3 scripts/accuracy_gates.py)", *measure.machine_lines(), ""]
    for name, result in results.items():
        protocol = reference["models"][name]
        lines += [f"{name}, {protocol['windows']} windows of {protocol['window']} tokens; calibration {protocol['calibration']}",
                  ""]
        lines += accuracy_table(protocol, result["float"], result["recipes"])
        lines += ["", "  share of multiply-adds by weight bits:"]
        lines += [f"    {r}: {measure.shares(row['mac_share'])}" for r, row in result["recipes"].items()] + [""]
    lines += [f"Reference: {reference['source']}", "", "Gates", *gates.lines, "", "Commands, in order", *[f"  {c}" for c in commands]]
    stem.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    record = {"machine": measure.machine_lines(), "models": results, "gates_failed": gates.failed}
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return "\n".join(lines), stem.with_suffix(".txt")


def main():
    reference = json.loads(REFERENCE.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(reference["models"]), help="comma-separated (default: all)")
    parser.add_argument("--recipes", default=",".join(RECIPE_ORDER), help="comma-separated (default: all)")
    parser.add_argument("--keep", action="store_true", help="keep the quantized models in build/accuracy")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results as it is")
    options = parser.parse_args()
    models, recipes = options.models.split(","), options.recipes.split(",")
    for name, known in [(m, reference["models"]) for m in models] + [(r, RECIPE_ORDER) for r in recipes]:
        if name not in known:
            parser.error(f"unknown name '{name}' (expected one of {', '.join(known)})")

    gates, commands, results = Gates(), [], {}
    folder = ROOT / "build" / "accuracy"
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"valid_{TEXT_CHARACTERS}.txt"
    text.write_text(measure.VALID_TEXT.read_text(encoding="utf-8")[:TEXT_CHARACTERS], encoding="utf-8")
    check_float_path(reference, models, text, gates, commands)
    for name in models:
        protocol = reference["models"][name]
        results[name] = {"float": perplexity(model_path(name), text, protocol["window"], protocol["windows"], commands),
                         "recipes": {}}
        for recipe in sorted(set(recipes) & set(protocol["rows"]), key=RECIPE_ORDER.index):
            row = measure_recipe(name, protocol, recipe, text, folder, commands)
            if not options.keep:
                shutil.rmtree(folder / f"{name}-{recipe}")
            results[name]["recipes"][recipe] = row
            check_recipe(name, row, protocol["rows"][recipe], gates)
        check_order(name, results[name]["recipes"], gates)

    complete = set(models) == set(reference["models"]) and set(recipes) == set(RECIPE_ORDER)
    if complete and not options.no_write:
        report, path = write_report(reference, results, gates, commands)
        print(report)
        print(f"\nwritten to {measure.relative(path)}")
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"accuracy gates: {len(gates.lines) - gates.failed} hold, {gates.failed} failed")
    return 1 if gates.failed else 0


if __name__ == "__main__":
    measure.main_guard(main)
