"""What the measuring scripts share: running nibble, naming the machine, laying out tables. Standard library only."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "nibble"
RESULTS = ROOT / "bench" / "results"
VALID_TEXT = ROOT / "tests" / "fixtures" / "text" / "valid.txt"
SMOLLM2 = "SmolLM2-135M-Instruct"


class CommandFailed(RuntimeError):
    pass


def relative(path):
    """`path` as the reports show it: below the repository without its root."""
    path = Path(path)
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError:
        return path.name


def nibble(*arguments, log=None):
    """Runs `nibble ARGUMENTS --json` and returns its JSON object. Progress goes on to standard error.

    `log`, a list, receives the command as one would type it in the repository.
    """
    arguments = [str(a) for a in arguments]
    if log is not None:
        shown = [relative(a) if os.path.isabs(a) else a for a in arguments]
        log.append("build/nibble " + " ".join(shown))
    done = subprocess.run([str(PROGRAM), *arguments, "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise CommandFailed(f"nibble {' '.join(arguments)} ended with exit code {done.returncode}")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise CommandFailed(f"nibble {' '.join(arguments)} --json printed no JSON object: {error}") from error


def cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return re.sub(r"\((R|TM)\)|CPU|Processor|@.*", " ", line.split(":", 1)[1], flags=re.I).split()
    except OSError:
        pass
    return [platform.machine()]


def instruction_sets():
    """The instruction sets that matter here, of those the machine has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = set(re.search(r"^flags\s*:\s*(.*)$", text, re.M).group(1).split()) if "flags" in text else set()
    known = [("avx2", "avx2"), ("avx_vnni", "avxvnni"), ("avx512_vnni", "avx512vnni"), ("avx512vbmi", "avx512vbmi"),
             ("amx_int8", "amx")]
    return [name for flag, name in known if flag in flags]


def threads():
    return len(os.sched_getaffinity(0))


def memory_gib():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) / 2**20
    return 0.0


def machine_slug():
    """A file name for this kind of machine, such as intel-xeon-amx-2c. Names no host."""
    newest = instruction_sets()[-1:]
    words = [w for w in re.sub(r"[^A-Za-z0-9]+", " ", " ".join(cpu_model())).lower().split()]
    return "-".join(words[:4] + newest + [f"{threads()}c"])


def machine_lines():
    return [
        f"machine: {' '.join(cpu_model())}, {threads()} cores in use, {memory_gib():.0f} GiB, "
        f"{', '.join(instruction_sets()) or 'no AVX2'}",
        f"system:  {platform.system()} {platform.release().split('-')[0]}, "
        f"nibble {version()}, commit {commit()}, {time.strftime('%Y-%m-%d')}",
    ]


def version():
    done = subprocess.run([str(PROGRAM), "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    words = done.stdout.split()
    return words[-1] if done.returncode == 0 and words else "of unknown version"


def commit():
    """Short commit id, with + when tracked files differ from it."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    try:
        head = git("rev-parse", "--short=10", "HEAD")
        if head.returncode != 0:
            return "unknown"
        return head.stdout.strip() + ("+" if git("diff", "--quiet", "HEAD", "--", "src", "tools").returncode else "")
    except OSError:
        return "unknown"


def table(rows, align=None, indent="  "):
    """Lines of a plain-text table: the first row is the head. `align` is one of <> per column."""
    rows = [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    align = align or "<" + ">" * (len(widths) - 1)
    def line(row):
        return (indent + "  ".join(f"{cell:{align[i]}{widths[i]}}" for i, cell in enumerate(row))).rstrip()
    return [line(rows[0]), indent + "  ".join("-" * w for w in widths), *[line(r) for r in rows[1:]]]


def shares(mac_share):
    """{"4": 0.71, ...} as '4-bit 71.0 %, 8-bit 26.0 %'."""
    parts = sorted(mac_share.items(), key=lambda item: int(item[0]))
    return ", ".join(f"{bits}-bit {100 * share:.1f} %" for bits, share in parts if share > 0) or "none"


def main_guard(main):
    """Runs main() and turns expected failures into one line and exit code 1."""
    try:
        sys.exit(main())
    except (CommandFailed, FileNotFoundError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
