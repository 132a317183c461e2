"""Compares the Python parts with those of another revision: `make bench-compare BASE=rev`.

Both trees run the same `bench.micro` (this tree's) in turns, so that drifts of the machine affect both. The difference is
that of the medians, and a rank test says whether it can be told from noise.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pyperf

from bench.lab import BENCH, BUILD, LabError
from bench.stats import bootstrap_ratio, rank_test

ROOT = BENCH.parent
FOLDERS = ("daemon", "native", "config", "proto")
ROUNDS = 8
SURE = 0.01
WHERE = """
import bentpipe.native._engine as engine, bentpipe.proto.greeting as greeting
import bentpipe.daemon.accounts.admission as admission
print(engine.__file__, greeting.__file__, admission.__file__, sep="\\n")
"""
BUILD_NATIVE = ("setup.py", "-q", "build_ext", "--inplace")


def main() -> None:
    """Build the base, measure in turns, print a table. Raises LabError."""
    parser = argparse.ArgumentParser(description="compare bench.micro between revisions")
    parser.add_argument("base", help="a revision that git knows")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    tree = BUILD / "base"
    _run(["git", "-C", str(ROOT), "worktree", "prune"])
    if tree.exists():
        _run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)])
    _run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), arguments.base])
    try:
        _run([sys.executable, "-P", *BUILD_NATIVE], cwd=tree)
        trees = {"base": _links("base", tree), "here": _links("here", ROOT)}
        figures: dict[str, dict[str, list[float]]] = {name: {} for name in trees}
        for number in range(arguments.rounds):
            for name in sorted(trees, reverse=bool(number % 2)):
                for what, values in run_micro(trees[name]).items():
                    figures[name].setdefault(what, []).extend(values)
                print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
    finally:
        _run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)])
    for line in table(figures["base"], figures["here"]):
        print(line)


def table(base: dict[str, list[float]], here: dict[str, list[float]]) -> list[str]:
    """Make one line for each benchmark that both have."""
    lines = [f"{'':<40} {'base':>10} {'here':>10}  here/base (95 %)        p"]
    for what in base.keys() & here.keys():
        ratio, low, high = bootstrap_ratio(here[what], base[what])
        p = rank_test(here[what], base[what])
        verdict = "no difference seen" if p >= SURE else "slower" if ratio > 1 else "faster"
        medians = " ".join(f"{statistics.median(side[what]) * 1e6:>7.1f} µs" for side in (base, here))
        lines.append(f"{what:<40} {medians}  {ratio:.3f} ({low:.3f} to {high:.3f})  {p:.4f}  {verdict}")
    return [lines[0], *sorted(lines[1:])]


def _links(name: str, tree: Path) -> Path:
    """A folder for PYTHONPATH where `bentpipe` is `tree`."""
    farm = BUILD / f"path-{name}"
    shutil.rmtree(farm, ignore_errors=True)
    (farm / "bentpipe").mkdir(parents=True)
    for folder in FOLDERS:
        (farm / "bentpipe" / folder).symlink_to(tree / folder)
    (farm / "bench").symlink_to(BENCH)
    # If the folder were not found, an editable install would silently be measured instead.
    where = _run([sys.executable, "-P", "-c", WHERE], environment={**os.environ, "PYTHONPATH": str(farm)})
    strangers = [line for line in where.splitlines() if not Path(line).resolve().is_relative_to(tree.resolve())]
    if strangers:
        raise LabError(f"{name} would be measured with {strangers}")
    return farm


def run_micro(path: Path) -> dict[str, list[float]]:
    """A short run of bench.micro with `path` as PYTHONPATH: seconds, by benchmark. Raises LabError."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.json"
        options = [
            "--quiet",
            "--processes=1",
            "--values=5",
            "--warmups=1",
            "--min-time=0.02",
            "--inherit-environ=PYTHONPATH,PYTHONSAFEPATH",
        ]
        command = [sys.executable, "-P", "-m", "bench.micro", *options, "-o", str(output)]
        _run(command, environment={**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"})
        suite = pyperf.BenchmarkSuite.load(str(output))
        return {benchmark.get_name(): list(benchmark.get_values()) for benchmark in suite.get_benchmarks()}


def _run(command: list[str], *, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
    return result.stdout


if __name__ == "__main__":
    main()
