"""The engine's C files call and include each other in one direction only.

The calls are those that the compiler sees: each file is compiled alone, and nm(1) lists the symbols that it defines and
those that it needs from another file.
"""

import graphlib
import re
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "native" / "src"
INCLUDES = ("native/include", "native/src")

Graph = dict[str, set[str]]


def symbols(object_file: Path) -> tuple[set[str], set[str]]:
    """The global symbols that an object file defines and those that it needs."""
    listing = subprocess.run(["nm", "-g", object_file], check=True, capture_output=True, text=True).stdout
    defined: set[str] = set()
    needed: set[str] = set()
    for line in listing.splitlines():
        *_, kind, name = line.split()
        (needed if kind == "U" else defined).add(name)
    return defined, needed


def calls(sources: list[Path], folder: Path) -> Graph:
    """Which file needs symbols of which other file."""
    include = [f"-I{SOURCES.parents[1] / each}" for each in INCLUDES]
    found: dict[str, tuple[set[str], set[str]]] = {}
    for source in sources:
        compiled = folder / f"{source.stem}.o"
        subprocess.run(["gcc", "-std=c11", "-D_GNU_SOURCE", *include, "-c", source, "-o", compiled], check=True)
        found[source.name] = symbols(compiled)
    owner = {name: source for source, (defined, _) in found.items() for name in defined}
    return {source: {owner[name] for name in needed & owner.keys()} for source, (_, needed) in found.items()}


def included(files: list[Path]) -> Graph:
    """Which file includes which other file of the engine."""
    return {path.name: set(re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)) for path in files}


def order(graph: Graph) -> list[str]:
    """The files, each after those that it needs. Raises graphlib.CycleError."""
    return list(graphlib.TopologicalSorter(graph).static_order())


def test_no_circle_of_calls(tmp_path: Path) -> None:
    graph = calls(sorted(SOURCES.glob("*.c")), tmp_path)
    assert "pump.c" in graph["splice.c"], "the calls were not found"
    placed = order(graph)
    assert placed.index("thread.c") < placed.index("engine.c")


def test_no_circle_of_includes() -> None:
    graph = included([*SOURCES.glob("*.[ch]"), *(SOURCES.parent / "include").glob("*.h")])
    placed = order(graph)
    assert placed.index("bp.h") < placed.index("internal.h") < placed.index("tls.h")


def test_a_circle_is_found(tmp_path: Path) -> None:
    """engine.c calls a function of thread.c, and thread.c one of engine.c: the circle that this test is for."""
    (tmp_path / "engine.c").write_text("void run(void); void ended(void); void ended(void) { run(); }")
    (tmp_path / "thread.c").write_text("void run(void); void ended(void); void run(void) { ended(); }")
    with pytest.raises(graphlib.CycleError, match="nodes are in a cycle"):
        order(calls(sorted(tmp_path.glob("*.c")), tmp_path))
