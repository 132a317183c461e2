"""Runs the bench: `make bench`, `make bench-quick`, or `python -m bench.run [--quick] [--only PEER] [QUESTION ...]`.

Writes results/full.json or results/quick.json; `bench.report` makes the table and the pictures from it.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import time
from types import ModuleType
from typing import cast

from bench.environment import describe
from bench.lab import BENCH, PINNED, SAME_CORE, Lab
from bench.session import FULL, QUICK, Session

QUESTIONS = (
    "added_latency",
    "cost_of_bytes",
    "placement",
    "new_connections",
    "two_cores",
    "idle_connections",
    "wakes",
    "storms",
    "control_plane_noise",
    "blocked_control_plane",
    "api_calls",
    "overload",
    "profile",
)


def as_text(results: dict[str, object]) -> str:
    """JSON with one sample on each line, so that the files are small and `diff` shows their differences."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in results.items() if name != "samples"]
    samples = ",\n".join(json.dumps(sample) for sample in cast(list[object], results["samples"]))
    return "{\n" + ",\n".join([*lines, f'"samples": [\n{samples}\n]']) + "\n}\n"


def main() -> None:
    """Measure what was asked for and write the results."""
    parser = argparse.ArgumentParser(description="bentpipe beside what a user would choose instead")
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="all, if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer cases, shorter: to see that all of it works")
    parser.add_argument("--only", action="append", default=[], help="a peer's name; may be repeated")
    parser.add_argument("--output", default=None, help="a name for the results instead of full or quick")
    parser.add_argument("--same-core", action="store_true", help="the peer shares the load generator's core")
    arguments = parser.parse_args()
    questions: list[ModuleType] = [
        importlib.import_module(f"bench.questions.{name}") for name in arguments.questions or QUESTIONS
    ]
    results: dict[str, object] = {"environment": describe(), "quick": arguments.quick, "same_core": arguments.same_core}
    seconds: dict[str, float] = {}
    with Lab(SAME_CORE if arguments.same_core else PINNED) as lab:
        session = Session(lab, QUICK if arguments.quick else FULL, frozenset(arguments.only))
        for question in questions:
            start = time.monotonic()
            question.run(session)
            seconds[question.QUESTION] = round(time.monotonic() - start, 1)
    results |= {
        "seconds": seconds,
        "absent": session.absent,
        "samples": [dataclasses.asdict(sample) for sample in session.samples],
    }
    name = arguments.output or ("quick" if arguments.quick else "full")
    path = BENCH / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(as_text(results))
    print(f"{path.relative_to(BENCH.parent)}: {len(session.samples)} samples, {seconds}", file=sys.stderr)


if __name__ == "__main__":
    main()
