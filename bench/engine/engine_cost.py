"""What a message costs the engine's thread by copy and by splice, at each size. The pump's thresholds come from it.

    python -P bench/engine/engine_cost.py                    modes off, auto and always, interleaved
    python -P bench/engine/engine_cost.py --against REV      this tree and another revision, mode auto, interleaved

    python -P bench/engine/engine_cost.py --crowd            what idle and stalled connections cost, also a busy one
    python -P bench/engine/engine_cost.py --unsent           what a limit of unsent bytes costs, and what it is good for
    python -P bench/engine/engine_cost.py --thresholds       the same, with each threshold of the pump at other values

Prints medians of ROUNDS interleaved repetitions. CPU is that of the engine's thread (getrusage would add the load's).
"""

import argparse
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import trustme

from bentpipe.native import _build

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "bench" / "engine"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2")
ROUNDS = 7
ECHO_SIZES = (128, 1024, 4096, 16384)
STREAM_SIZES = (1024, 4096, 16384, 65536, 1 << 20)
TLS_SIZES = (16384, 1 << 20)
STREAM_BYTES = 400_000_000
SWEEP_BYTES = 100_000_000
ECHO_COUNT = 10_000
CROWDS = (("idle", 10_000, False), ("idle", 5_000, True), *(("stalled", count, False) for count in (1, 100, 1000)))
"""Kind, how many (fewer if the limit of open files forbids so many), whether the client's connection has TLS."""
SPARE_FILES = 200
THRESHOLDS = {
    "STREAM_READS": (1, 3, 10),
    "FULL_READ_BYTES": (4 << 10, 32 << 10, 64 << 10),
    "QUIET_READS": (1, 3, 10),
    "SMALL_READ_BYTES": (1024, 4096, 16384),
    "TURN_BYTES": (64 << 10, 1 << 20, 16 << 20),
    "SCRATCH_BYTES": (16 << 10, 64 << 10, 256 << 10),
}
"""Names in native/src/internal.h and the values tried. The middle one is the value that is built in."""
ROUND_TRIPS = 20_000
CROWD_ROUNDS = 3


UNSENT_BYTES = 128 << 10
UNSENT_CASES = (("down", 65536), ("down", 1 << 20), ("tls-down", 65536), ("tls-down", 1 << 20))
UNSENT_STALLED = 100
KERNEL_COLUMN = -2
"""Of what crowd.c prints: kernel bytes for each connection."""


def build(native: Path, output: Path, program: str = "cost.c", unsent_bytes: int = 0) -> Path:
    """Compile a measuring program with the engine's sources in `native`."""
    defined = [f"-DUNSENT_BYTES={unsent_bytes}u"] if unsent_bytes else []
    sources = [str(path) for path in sorted((native / "src").glob("*.c"))]
    include = f"-I{native / 'include'}"
    libraries = ["-lpthread", *(f"-l{name}" for name in _build.LIBRARIES)]
    subprocess.run(
        ["gcc", *FLAGS, *defined, include, str(PROGRAMS / program), *sources, *libraries, "-o", str(output)], check=True
    )
    return output


def at_revision(revision: str, folder: Path) -> Path:
    """The folder native/ as it is in `revision`."""
    archive = subprocess.run(["git", "archive", revision, "native"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder / "native"


FILES: list[str] = []
"""Certificate, key and authority, once they are made."""


def make_certificate(folder: Path) -> None:
    """Fill FILES."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    blobs = (issued.cert_chain_pems[0], issued.private_key_pem, authority.cert_pem)
    for name, blob in zip(("cert", "key", "ca"), blobs, strict=True):
        (folder / name).write_bytes(blob.bytes())
        FILES.append(str(folder / name))


def measure(
    program: Path, mode: str, size: int, kind: str, stream_bytes: int = STREAM_BYTES
) -> tuple[float, float, float]:
    """One run. Returns CPU and wall microseconds per message, and the spliced share."""
    count = ECHO_COUNT if kind == "echo" else max(1, min(200_000, stream_bytes // size))
    arguments = [str(program), mode, str(size), str(count), kind, *(FILES if kind.startswith("tls") else ())]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    cpu_us, wall_us, spliced = (float(each) for each in done.stdout.split())
    return cpu_us, wall_us, spliced


def show_crowds(folder: Path) -> None:
    """Print the busy connection's round trip alone and beside each crowd, and a direct one's to show the kernel's part."""
    program = build(ROOT / "native", folder / "crowd", "crowd.c")
    columns = ("direct", "engine", "direct beside", "engine beside")
    names = [f"{column} {quantile}" for column in columns for quantile in ("p50", "p99")]
    print(
        "| crowd | " + " | ".join(f"{name} us" for name in names) + " | engine bytes each | kernel bytes each | pipes |"
    )
    print("| --- |" + " ---: |" * (len(names) + 3))
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES) // 2
    for kind, wanted, tls in CROWDS:
        count = min(wanted, most)
        runs = []
        for _ in range(CROWD_ROUNDS):
            arguments = [str(program), kind, str(count), str(ROUND_TRIPS), *(FILES if tls else ())]
            done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
            runs.append([float(each) for each in done.stdout.split()])
        medians = [statistics.median(column) for column in zip(*runs, strict=True)]
        cells = [f"{value:.1f}" for value in medians[: len(names)]] + [
            f"{value:.0f}" for value in medians[len(names) :]
        ]
        print(f"| {count} {kind}{' TLS' if tls else ''} | " + " | ".join(cells) + " |", flush=True)


def with_threshold(folder: Path, name: str, value: int) -> Path:
    """The folder native/ as it is here, except for one threshold."""
    copy = folder / f"{name}-{value}"
    shutil.copytree(ROOT / "native", copy, ignore=shutil.ignore_patterns("*.so", "_engine.c", "__pycache__"))
    header = copy / "src" / "internal.h"
    changed, count = re.subn(
        rf"(?m)^#define {name} \(?[^/\n]*?\)?(?= */\*|$)", f"#define {name} {value}u", header.read_text()
    )
    if count != 1:
        raise SystemExit(f"internal.h defines {name} {count} times")
    header.write_text(changed)
    return copy


def show_thresholds(folder: Path) -> None:
    """Print, for each threshold, what every case costs at each value tried."""
    cases = (("echo", 16384), ("stream", 4096), ("stream", 65536), ("stream", 1 << 20), ("tls-up", 1 << 20))
    print("| threshold | value | " + " | ".join(f"{kind} {size}" for kind, size in cases) + " |")
    print("| --- | ---: |" + " ---: |" * len(cases))
    for name, values in THRESHOLDS.items():
        programs = {
            value: build(with_threshold(folder, name, value), folder / f"{name}{value}.out") for value in values
        }
        seen: dict[tuple[int, int], list[float]] = {}
        for _ in range(ROUNDS):
            for value, program in programs.items():
                for index, (kind, size) in enumerate(cases):
                    seen.setdefault((value, index), []).append(measure(program, "auto", size, kind, SWEEP_BYTES)[0])
        for value in values:
            cells = [f"{statistics.median(seen[value, index]):.2f}" for index in range(len(cases))]
            print(f"| {name} | {value} | " + " | ".join(cells) + " |", flush=True)


def show_unsent(folder: Path) -> None:
    """Print what a fast reader costs, and what a stalled one holds in the kernel, without the limit and with it."""
    limits = {"the system's limit": 0, f"{UNSENT_BYTES >> 10} KiB": UNSENT_BYTES}
    costs = {
        name: build(ROOT / "native", folder / f"cost-{limit}", unsent_bytes=limit) for name, limit in limits.items()
    }
    crowds = {
        name: build(ROOT / "native", folder / f"crowd-{limit}", "crowd.c", limit) for name, limit in limits.items()
    }
    print("| | " + " | ".join(limits) + " |")
    print("| --- |" + " ---: |" * len(limits))
    for kind, size in UNSENT_CASES:
        seen: dict[str, list[float]] = {name: [] for name in limits}
        for _ in range(ROUNDS):
            for name, program in costs.items():
                seen[name].append(measure(program, "auto", size, kind)[0])
        cells = [f"{statistics.median(runs):.2f}" for runs in seen.values()]
        print(f"| {kind} {size}, CPU us | " + " | ".join(cells) + " |", flush=True)
    held: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(CROWD_ROUNDS):
        for name, program in crowds.items():
            arguments = [str(program), "stalled", str(UNSENT_STALLED), "1000"]
            done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
            held[name].append(float(done.stdout.split()[KERNEL_COLUMN]))
    cells = [f"{statistics.median(runs):.0f}" for runs in held.values()]
    print(f"| {UNSENT_STALLED} stalled, kernel bytes each | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="cost of a message on the engine's thread")
    parser.add_argument("--against", help="a git revision")
    parser.add_argument("--crowd", action="store_true", help="idle and stalled connections beside a busy one")
    parser.add_argument("--unsent", action="store_true", help="TCP_NOTSENT_LOWAT on the client's leg")
    parser.add_argument("--only", action="append", default=[], help="a kind of case: echo, stream, tls-up, tls-down")
    parser.add_argument("--thresholds", action="store_true", help="the pump's constants at other values")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_certificate(Path(folder))
        if arguments.crowd or arguments.thresholds:
            (show_crowds if arguments.crowd else show_thresholds)(Path(folder))
            return
        if arguments.unsent:
            show_unsent(Path(folder))
            return
        here = build(ROOT / "native", Path(folder) / "here")
        variants = {mode: (here, mode) for mode in ("off", "auto", "always")}
        if arguments.against:
            there = build(at_revision(arguments.against, Path(folder)), Path(folder) / "there")
            variants = {"here": (here, "auto"), arguments.against: (there, "auto")}
        cases = [("echo", size) for size in ECHO_SIZES] + [("stream", size) for size in STREAM_SIZES]
        cases += [(kind, size) for kind in ("tls-up", "tls-down") for size in TLS_SIZES]
        cases = [case for case in cases if not arguments.only or case[0] in arguments.only]
        print("| case | " + " | ".join(f"{name}: CPU us (wall us, spliced)" for name in variants) + " |")
        print("| --- |" + " ---: |" * len(variants))
        for kind, size in cases:
            seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
            for _ in range(ROUNDS):
                for name, (program, mode) in variants.items():
                    seen[name].append(measure(program, mode, size, kind))
            cells = [
                "{:.2f} ({:.2f}, {:.0%})".format(*(statistics.median(column) for column in zip(*runs, strict=True)))
                for runs in seen.values()
            ]
            print(f"| {kind} {size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
