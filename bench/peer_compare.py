#!/usr/bin/env python3
"""Tokens per second of nibble beside llama.cpp's, on this machine, in alternating runs.

  bench/peer_compare.py [--model NIBBLE_MODEL] [--rounds 5] [-t THREADS] [--python PEER_PYTHON]

The peer is llama.cpp in llama-cpp-python (built here for this machine, into bench/.peer), on the same SmolLM2 GGUF
converted to Q4_0. Each round runs the peer, then nibble, each in a process of its own; a machine whose speed drifts moves
both. A round in which other processes took more than 5 % of the cores is left out of the medians if enough others remain.
Prints the report and writes it to bench/results/. Standard library only.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import measure  # noqa: E402

PEER_VERSION = "0.3.36"
PEER_HOME = measure.ROOT / "bench" / ".peer"
WORKER = Path(__file__).resolve().parent / "peer_llama_cpp.py"
FOREIGN_LIMIT = 0.05
FEWEST_ROUNDS = 3
KEYS = {"prompt": "prompt_tokens_per_second", "decode": "decode_tokens_per_second"}


def run_checked(command, what, environment=None):
    """Runs a step of the preparation; its output goes to standard error."""
    print(f"peer_compare: {what}", file=sys.stderr, flush=True)
    done = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
    if done.returncode != 0:
        raise measure.CommandFailed(f"{what}: exit code {done.returncode}")


def peer_environment():
    """The environment to build the peer in: the default compiler, unless that breaks it on this machine.

    g++ before 14 may drop stores to the tile configuration before ldtilecfg (GCC bug 114098), and llama.cpp's AMX code then
    crashes. There, clang builds it.
    """
    environment = dict(os.environ)
    if "amx" not in measure.instruction_sets() or "CXX" in environment:
        return environment
    version = subprocess.run(["c++", "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    number = re.search(r"\) (\d+)\.", version)
    if "clang" in version or (number and int(number.group(1)) >= 14):
        return environment
    for suffix in ("-19", "-18", "-17", "-16", ""):
        if shutil.which("clang" + suffix) and shutil.which("clang++" + suffix):
            environment.update(CC="clang" + suffix, CXX="clang++" + suffix)
            return environment
    raise measure.CommandFailed("g++ before 14 miscompiles llama.cpp's AMX code; install clang-19 to build the peer")


def peer_python(given):
    """The Python that has llama_cpp: `given`, or that of bench/.peer, which is made when it is not there."""
    if given:
        return Path(given)
    python = PEER_HOME / "venv" / "bin" / "python"
    wanted = [str(python), "-c", f"import llama_cpp; raise SystemExit(llama_cpp.__version__ != '{PEER_VERSION}')"]
    if python.exists() and subprocess.run(wanted, stderr=subprocess.DEVNULL).returncode == 0:
        return python
    run_checked([sys.executable, "-m", "venv", PEER_HOME / "venv"], "making the peer's virtual environment")
    run_checked([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                 "--no-cache-dir", f"llama-cpp-python=={PEER_VERSION}"],
                f"building llama-cpp-python {PEER_VERSION} for this machine (several minutes)", peer_environment())
    return python


def peer(python, *arguments):
    done = subprocess.run([str(python), str(WORKER), *[str(a) for a in arguments]], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise measure.CommandFailed(f"the peer's '{arguments[0]}' ended with exit code {done.returncode}")
    return json.loads(done.stdout)


def fetched_gguf():
    done = subprocess.run([str(measure.ROOT / "scripts" / "fetch_smollm2.sh")], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True, cwd=measure.ROOT)
    if done.returncode != 0:
        raise measure.CommandFailed("the model cannot be had (see above)")
    return measure.ROOT / done.stdout.strip()


def busy_seconds():
    """CPU seconds that anything has used on this machine, time taken by its host included."""
    ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class ForeignLoad:
    """The share of all cores that other processes use while this context is open."""

    def __enter__(self):
        self.started = (busy_seconds(), self.own_seconds(), os.times().elapsed)
        return self

    def __exit__(self, *_):
        busy, own, elapsed = (now - before for now, before in
                              zip((busy_seconds(), self.own_seconds(), os.times().elapsed), self.started))
        self.share = max(0.0, busy - own) / (elapsed * os.cpu_count())

    @staticmethod
    def own_seconds():
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in usage)


def one_round(python, peer_model, model, options, log):
    """One peer run and one of ours: {"peer": {...}, "nibble": {...}, "foreign": share of the cores}."""
    with ForeignLoad() as load:
        theirs = peer(python, "bench", peer_model, options.threads, options.prompt, options.new)
        ours = measure.nibble("bench", model, "-p", options.prompt, "-n", options.new, "-r", 1, "-t", options.threads,
                              log=log)
    return {"peer": theirs, "nibble": ours, "foreign": load.share}


def used_rounds(rounds):
    quiet = [r for r in rounds if r["foreign"] <= FOREIGN_LIMIT]
    return quiet if len(quiet) >= FEWEST_ROUNDS else rounds


def report(rounds, about, model, peer_model, options, commands):
    used = used_rounds(rounds)
    names = {"prompt": f"pp{options.prompt}", "decode": f"tg{options.new}"}
    head = ["round", *(f"{names[k]} {who}" for k in KEYS for who in ("llama.cpp", "nibble")), "other load"]
    rows = [[str(i + 1), *(f"{r[who][KEYS[k]]:.1f}" for k in KEYS for who in ("peer", "nibble")),
             f"{100 * r['foreign']:.0f} %" + ("" if r in used else ", not used")] for i, r in enumerate(rounds)]
    summary = [["median, tokens/s", "llama.cpp Q4_0", "nibble", "ratio of medians", "median of ratios"]]
    for k, key in KEYS.items():
        theirs, ours = ([r[who][key] for r in used] for who in ("peer", "nibble"))
        summary.append([names[k], f"{statistics.median(theirs):.1f}", f"{statistics.median(ours):.1f}",
                        f"{statistics.median(ours) / statistics.median(theirs):.2f}",
                        f"{statistics.median(o / t for o, t in zip(ours, theirs)):.2f}"])
    inspected = measure.nibble("inspect", model)
    lines = [
        f"nibble and llama.cpp in alternating runs: prompt of {options.prompt} and {options.new} new tokens, "
        f"{options.threads} threads", "",
        *measure.machine_lines(),
        f"peer:    llama.cpp in llama-cpp-python {about['binding']} ({', '.join(about['features'])})", "",
        f"llama.cpp: {measure.relative(peer_model)}, Q4_0, {peer_model.stat().st_size / 1e6:.1f} MB; batch 512, empty "
        "context, one warm-up",
        f"nibble:    {measure.relative(model)}, {inspected['file_bytes'] / 1e6:.1f} MB, "
        f"{inspected['bits_per_weight']:.2f} bits per weight of its linears; multiply-adds: "
        f"{measure.shares(inspected['mac_share'])}", "",
        *measure.table([head, *rows]), "",
        *measure.table(summary), "",
    ]
    if len(used) < len(rounds):
        lines.append(f"Rounds in which other processes took more than {100 * FOREIGN_LIMIT:.0f} % of the cores are not used.")
    elif max(r["foreign"] for r in rounds) > FOREIGN_LIMIT:
        lines.append("The machine was not quiet: compare the ratios, not the numbers.")
    lines += ["commands:", *(f"  {c}" for c in commands)]
    return "\n".join(lines) + "\n"


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="nibble's model (default: SmolLM2 quantized with --recipe)")
    parser.add_argument("--recipe", default="quik-4b", help="of the default model (quik-4b)")
    parser.add_argument("--gguf", type=Path, help="the peer's source (default: SmolLM2, fetched)")
    parser.add_argument("--python", help="a Python that has llama_cpp (default: bench/.peer, made when missing)")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (5)")
    parser.add_argument("-t", "--threads", type=int, default=measure.threads(), help="of both (all cores)")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="prompt tokens (512)")
    parser.add_argument("-n", "--new", type=int, default=128, help="new tokens (128)")
    parser.add_argument("--name", help="of the file in bench/results (default: peer-<machine>)")
    parser.add_argument("--peer-only", action="store_true", help="measure llama.cpp alone and print its numbers as JSON")
    options = parser.parse_args()
    if min(options.rounds, options.threads, options.prompt, options.new) < 1:
        parser.error("--rounds, --threads, --prompt and --new must be at least 1")
    return options


def prepared_peer_model(python, gguf, threads):
    PEER_HOME.mkdir(parents=True, exist_ok=True)
    target = PEER_HOME / (gguf.stem.split(".")[0] + ".Q4_0.gguf")
    if not target.exists():
        print("peer_compare: converting the peer's model to Q4_0", file=sys.stderr, flush=True)
        unfinished = target.with_suffix(".tmp")
        peer(python, "quantize", gguf, unfinished, threads)
        unfinished.rename(target)
    return target


def prepared_model(options, gguf):
    if options.model:
        return options.model
    target = PEER_HOME / f"{gguf.stem.split('.')[0]}-{options.recipe}"
    if not target.exists():
        run_checked([measure.PROGRAM, "quantize", gguf, "-o", target, "--recipe", options.recipe,
                     "--calib-ids", "tests/fixtures/smollm2/calibration_ids.safetensors"],
                    f"quantizing the model with {options.recipe}")
    return target


def main():
    options = parse_options()
    python = peer_python(options.python)
    about = peer(python, "about")
    gguf = options.gguf or fetched_gguf()
    peer_model = prepared_peer_model(python, gguf, options.threads)
    if options.peer_only:
        runs = []
        for _ in range(options.rounds):
            with ForeignLoad() as load:
                result = peer(python, "bench", peer_model, options.threads, options.prompt, options.new)
            runs.append({**result, "other_load": load.share})
        print(json.dumps({"about": about, "runs": runs}))
        return 0

    model = prepared_model(options, gguf)
    rounds, commands = [], []
    for i in range(options.rounds):
        log = []
        rounds.append(one_round(python, peer_model, model, options, log))
        commands = [f"bench/peer_compare.py --rounds {options.rounds} -t {options.threads}, which runs in turn",
                    f"bench/peer_llama_cpp.py bench {measure.relative(peer_model)} {options.threads} {options.prompt} "
                    f"{options.new}", *(f"{c} --json" for c in log)]
        shown = ", ".join(f"{k} {rounds[-1]['peer'][key]:.0f} / {rounds[-1]['nibble'][key]:.0f}" for k, key in KEYS.items())
        print(f"peer_compare: round {i + 1} of {options.rounds}, llama.cpp / nibble: {shown}", file=sys.stderr, flush=True)
    text = report(rounds, about, model, peer_model, options, commands)
    print(text, end="")
    measure.RESULTS.mkdir(parents=True, exist_ok=True)
    path = measure.RESULTS / f"{options.name or 'peer-' + measure.machine_slug()}.txt"
    path.write_text(text)
    print(f"peer_compare: written to {measure.relative(path)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    measure.main_guard(main)
