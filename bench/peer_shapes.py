#!/usr/bin/env python3
"""Decode and prompt speed of nibble beside llama.cpp's on random weights of a larger model's shape, in alternating runs.

  bench/peer_shapes.py [--shape llama-3.2-1b] [--recipes quik-4b,...] [--rounds 3] [-t THREADS] [--python PEER_PYTHON]
  bench/peer_shapes.py --nibble-only --shape tiny      (no peer needed)

Both sides get the same layers. The peer runs a Q4_0 GGUF file with random blocks (synthetic_gguf.py); nibble runs folders
quantized from that file. Speed does not depend on what the weights are, so the recipe's storage is what counts: linears are
rounded to nearest (--set quantizer=rtn, --set clip=false) with a short random calibration, which fills the same format with the
same bits, groups and outlier columns in minutes instead of hours. Embedding and head, one matrix here, are Q8_0 in the peer's file and
8 bit in nibble's folder; --embedding 4 makes both 4 bit. Such models say nothing about accuracy.

Prints the report and writes it to bench/results/ (not with --nibble-only). Standard library only.
"""

import argparse
import statistics
import sys
from pathlib import Path

import peer_compare
import synthetic_gguf
from peer_compare import KEYS, measure

EMBEDDING_TYPES = {8: synthetic_gguf.Q8_0, 4: synthetic_gguf.Q4_0}


def source_file(shape, embedding_bits):
    peer_compare.PEER_HOME.mkdir(parents=True, exist_ok=True)
    path = peer_compare.PEER_HOME / f"{shape}-e{embedding_bits}.Q4_0.gguf"
    if not path.exists():
        print(f"peer_shapes: writing {measure.relative(path)}", file=sys.stderr, flush=True)
        synthetic_gguf.write_model(path, shape, EMBEDDING_TYPES[embedding_bits])
    return path


def quantized(source, recipe, options):
    """A nibble folder of the source's shape as `recipe` stores it."""
    name = Path(recipe).stem
    path = peer_compare.PEER_HOME / f"{source.name.split('.Q4_0')[0]}-{name}"
    if options.requantize or not path.exists():
        rounding = [] if options.full else ["--set", "quantizer=rtn", "--set", "clip=false"]
        peer_compare.run_checked(
            [measure.PROGRAM, "quantize", source, "-o", path, "--recipe", recipe, *rounding, "--calib-random",
             "--calib-sequences", "1", "--calib-length", "64", "--embedding-bits", options.embedding, "--force"],
            f"storing the weights as {recipe} does")
    return path


def measure_round(python, source, models, options, log):
    """One run of everyone: {"llama.cpp": {...}, recipe: {...}, ..., "foreign": share of the cores}."""
    runs = {}
    with peer_compare.ForeignLoad() as load:
        if python:
            runs["llama.cpp"] = peer_compare.peer(python, "bench", source, options.threads, options.prompt, options.new)
        for recipe, model in models.items():
            runs[recipe] = measure.nibble("bench", model, "-p", options.prompt, "-n", options.new, "-r", 1, "-t",
                                          options.threads, log=log)
    return {**runs, "foreign": load.share}


def report(rounds, about, source, models, options, commands):
    used = peer_compare.used_rounds(rounds)
    names = {"prompt": f"pp{options.prompt}", "decode": f"tg{options.new}"}
    contestants = [c for c in rounds[0] if c != "foreign"]
    head = ["round", *(f"{names[k]} {c}" for k in KEYS for c in contestants), "other load"]
    rows = [[str(i + 1), *(f"{r[c][KEYS[k]]:.2f}" for k in KEYS for c in contestants),
             f"{100 * r['foreign']:.0f} %" + ("" if r in used else ", not used")] for i, r in enumerate(rounds)]
    summary = [["median, tokens/s", *contestants, *(f"{c} / llama.cpp" for c in contestants[1:] if about)]]
    for k, key in KEYS.items():
        medians = {c: statistics.median(r[c][key] for r in used) for c in contestants}
        ratios = [f"{statistics.median(r[c][key] / r['llama.cpp'][key] for r in used):.2f}" for c in contestants[1:] if about]
        summary.append([names[k], *(f"{medians[c]:.2f}" for c in contestants), *ratios])
    who = "nibble and llama.cpp" if about else "nibble"
    lines = [f"{who} on random weights of the shape {options.shape}: prompt of {options.prompt} and {options.new} "
             f"new tokens, {options.threads} threads" + ("; ratios are medians of the rounds' ratios" if about else ""), "", *measure.machine_lines()]
    if about:
        lines.append(f"peer:    llama.cpp in llama-cpp-python {about['binding']} ({', '.join(about['features'])})")
    lines += ["", f"{'llama.cpp' if about else 'source'}: {measure.relative(source)}, Q4_0 linears, Q{options.embedding}_0 embedding and head, "
              f"{source.stat().st_size / 1e6:.1f} MB"]
    for recipe, model in models.items():
        facts = measure.nibble("inspect", model)
        lines.append(f"nibble:    {recipe}, {facts['bits_per_weight']:.2f} bits per weight of the linears, {options.embedding} bit "
                     f"embedding and head, {facts['file_bytes'] / 1e6:.1f} MB; multiply-adds: {measure.shares(facts['mac_share'])}")
    lines += ["", *measure.table([head, *rows]), "", *measure.table(summary), ""]
    if len(used) < len(rounds):
        lines.append(f"Rounds in which other processes took more than {100 * peer_compare.FOREIGN_LIMIT:.0f} % of the cores are "
                     "not used.")
    elif max(r["foreign"] for r in rounds) > peer_compare.FOREIGN_LIMIT:
        lines.append("The machine was not quiet: compare the ratios, not the numbers.")
    lines += ["commands:", *(f"  {c}" for c in commands)]
    return "\n".join(lines) + "\n"


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", default="llama-3.2-1b", choices=sorted(synthetic_gguf.SHAPES), help="(llama-3.2-1b)")
    parser.add_argument("--recipes", default="quik-4b", help="comma-separated recipes of nibble (quik-4b)")
    parser.add_argument("--embedding", type=int, default=8, choices=sorted(EMBEDDING_TYPES), help="bits of embedding and head (8)")
    parser.add_argument("--python", help="a Python that has llama_cpp (default: bench/.peer, made when missing)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (3)")
    parser.add_argument("-t", "--threads", type=int, default=measure.threads(), help="of both (all cores)")
    parser.add_argument("-p", "--prompt", type=int, default=128, help="prompt tokens (128)")
    parser.add_argument("-n", "--new", type=int, default=32, help="new tokens (32)")
    parser.add_argument("--name", help="of the file in bench/results (default: peer-<shape>-<machine>)")
    parser.add_argument("--full", action="store_true",
                        help="let each recipe's own quantizer make the codes (needed where rounding does not fill its format)")
    parser.add_argument("--requantize", action="store_true", help="make nibble's folders anew")
    parser.add_argument("--nibble-only", action="store_true", help="leave the peer out; nothing is written to bench/results")
    options = parser.parse_args()
    if min(options.rounds, options.threads, options.prompt, options.new) < 1:
        parser.error("--rounds, --threads, --prompt and --new must be at least 1")
    return options


def main():
    options = parse_options()
    python = None if options.nibble_only else peer_compare.peer_python(options.python)
    about = peer_compare.peer(python, "about") if python else None
    source = source_file(options.shape, options.embedding)
    models = {recipe: quantized(source, recipe, options) for recipe in options.recipes.split(",")}
    rounds, commands = [], []
    for i in range(options.rounds):
        log = []
        rounds.append(measure_round(python, source, models, options, log))
        commands = [f"bench/peer_shapes.py --shape {options.shape} --recipes {options.recipes} --rounds {options.rounds} "
                    f"-t {options.threads}, which runs in turn"]
        if python:
            commands.append(f"bench/peer_llama_cpp.py bench {measure.relative(source)} {options.threads} {options.prompt} "
                            f"{options.new}")
        commands += [f"{c} --json" for c in log]
        shown = ", ".join(f"{c} {rounds[-1][c][KEYS['prompt']]:.1f} and {rounds[-1][c][KEYS['decode']]:.2f}"
                          for c in rounds[-1] if c != "foreign")
        print(f"peer_shapes: round {i + 1} of {options.rounds}, prompt and decode: {shown}", file=sys.stderr, flush=True)
    text = report(rounds, about, source, models, options, commands)
    print(text, end="")
    if python:
        measure.RESULTS.mkdir(parents=True, exist_ok=True)
        path = measure.RESULTS / f"{options.name or 'peer-' + options.shape + '-' + measure.machine_slug()}.txt"
        path.write_text(text)
        print(f"peer_shapes: written to {measure.relative(path)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    measure.main_guard(main)
