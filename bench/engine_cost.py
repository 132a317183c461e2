"""What a message costs the engine's thread by copy and by splice, at each size: the ground of the pump's thresholds.

    python -P bench/engine_cost.py                    modes off, auto and always, interleaved
    python -P bench/engine_cost.py --against REV      this tree and another revision, mode auto, interleaved

    python -P bench/engine_cost.py --crowd            what idle and stalled connections cost a busy one

Prints medians of ROUNDS interleaved repetitions; CPU is the engine thread's own (getrusage would add the load's).
"""

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

import trustme

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "bench" / "engine"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2")
ROUNDS = 7
ECHO_SIZES = (128, 1024, 4096, 16384)
STREAM_SIZES = (1024, 4096, 16384, 65536, 1 << 20)
TLS_SIZES = (16384, 1 << 20)
STREAM_BYTES = 400_000_000
ECHO_COUNT = 10_000
CROWDS = (("idle", 4000), ("stalled", 100), ("stalled", 1000))
"""All four ends of each are one process's descriptors: 4,000 is what 20,000 allow."""
ROUND_TRIPS = 20_000


def build(native: Path, output: Path, program: str = "cost.c") -> Path:
    """Compile a measuring program with the engine's sources in `native`."""
    sources = [str(path) for path in sorted((native / "src").glob("*.c"))]
    include = f"-I{native / 'include'}"
    libraries = ["-lssl", "-lcrypto", "-lpthread"]
    subprocess.run(
        ["gcc", *FLAGS, include, str(PROGRAMS / program), *sources, *libraries, "-o", str(output)], check=True
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


def measure(program: Path, mode: str, size: int, kind: str) -> tuple[float, float, float]:
    """One run. Returns CPU and wall microseconds per message, and the spliced share."""
    count = ECHO_COUNT if kind == "echo" else max(1, min(200_000, STREAM_BYTES // size))
    arguments = [str(program), mode, str(size), str(count), kind, *(FILES if kind.startswith("tls") else ())]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    cpu_us, wall_us, spliced = (float(each) for each in done.stdout.split())
    return cpu_us, wall_us, spliced


def show_crowds(folder: Path) -> None:
    """Print the busy connection's round trip alone and beside each crowd, and a direct one's to tell the kernel's part."""
    program = build(ROOT / "native", folder / "crowd", "crowd.c")
    columns = ("direct", "engine", "direct beside", "engine beside")
    names = [f"{column} {quantile}" for column in columns for quantile in ("p50", "p99")]
    print("| crowd | " + " | ".join(f"{name} us" for name in names) + " | bytes each | pipes |")
    print("| --- |" + " ---: |" * (len(names) + 2))
    for kind, count in CROWDS:
        runs = []
        for _ in range(ROUNDS):
            arguments = [str(program), kind, str(count), str(ROUND_TRIPS)]
            done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
            runs.append([float(each) for each in done.stdout.split()])
        medians = [statistics.median(column) for column in zip(*runs, strict=True)]
        print(f"| {count} {kind} | " + " | ".join(f"{value:.1f}" for value in medians) + " |", flush=True)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="cost of a message on the engine's thread")
    parser.add_argument("--against", help="a git revision")
    parser.add_argument("--crowd", action="store_true", help="idle and stalled connections beside a busy one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.crowd:
            show_crowds(Path(folder))
            return
        here = build(ROOT / "native", Path(folder) / "here")
        variants = {mode: (here, mode) for mode in ("off", "auto", "always")}
        if arguments.against:
            there = build(at_revision(arguments.against, Path(folder)), Path(folder) / "there")
            variants = {"here": (here, "auto"), arguments.against: (there, "auto")}
        make_certificate(Path(folder))
        cases = [("echo", size) for size in ECHO_SIZES] + [("stream", size) for size in STREAM_SIZES]
        cases += [(kind, size) for kind in ("tls-up", "tls-down") for size in TLS_SIZES]
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
